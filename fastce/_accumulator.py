"""CrossEntropyAccumulator: an evaluation that comes in batches, or from several processes.

Owns the sums and how they merge. Every row's loss is that of `cross_entropy`, whatever the batch it came in; sums carry
what rounding loses of them, so that no grouping of batches shows in the digits of float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fastce import _inputs, _pipeline
from fastce._blocks import blocks
from fastce._problem import Array, Output, Problem, Statistics
from fastce._sums import Sum


class CrossEntropySummary(NamedTuple):
    """What `CrossEntropyAccumulator.compute` returns.

    Attributes
    ----------
    loss : float
        The mean, of the value of `cross_entropy` for all batches at once.
    perplexity : float
        exp of the mean cross entropy in nats, without class weights, label smoothing and z-loss.
    accuracy : float
        The part of the rows whose greatest logit, the first of equals, is that of the label.
    count : int
        How many rows there were, without those that are ignored.
    standard_error : float
        Of the loss, as the mean of a sample; NaN for fewer than two rows.

    Examples
    --------
    >>> import fastce
    >>> summary = fastce.CrossEntropyAccumulator().update([[0.0, 0.0]], [0]).compute()
    >>> round(summary.perplexity, 4), summary.accuracy, summary.count
    (2.0, 1.0, 1)
    """

    loss: float
    perplexity: float
    accuracy: float
    count: int  # type: ignore[assignment]  # of rows; the method of tuples is not missed
    standard_error: float


class CrossEntropyAccumulator:
    r"""The cross entropy of batches of logits, one after the other, and of several such evaluations together.

    Takes no memory but for a few numbers: it can be pickled, sent from one process to another, and merged there.

    Parameters
    ----------
    axis, weight, ignore_index, label_smoothing, z_loss, temperature, softcap, spread_missing, base
        As in `cross_entropy`, for all batches.
    backend, num_threads
        As in `cross_entropy`.

    Raises
    ------
    TypeError, ValueError
        For an option that `cross_entropy` does not accept.

    See Also
    --------
    cross_entropy : One batch.
    row_statistics : What there is to know about each row.

    Notes
    -----
    **Order.** The same batches in the same order give the same bits. Any other grouping, by `update` or by `merge`,
    gives the same value but for the rounding of float64, however many batches there are.

    **Weights.** With sample weights :math:`s_i` and the losses :math:`l_i` and weights :math:`w_i = s_i w_{y_i}` of the
    rows (:math:`w_i = s_i` for dense and sparse targets), the loss is :math:`L = \sum l_i / \sum w_i`; accuracy and
    perplexity are weighted by :math:`s_i`. The standard error is that of a ratio of sums,

    .. math:: \frac{\sqrt{\tfrac{n}{n-1} \sum (l_i - L\,w_i)^2}}{\sum w_i}

    which without weights is the standard deviation of the losses over :math:`\sqrt n`. It says nothing about rows that
    depend on one another, as those of one text do.

    **Special values** are those of `cross_entropy`: a row with NaN makes loss, perplexity and standard error NaN, and
    is not right. Of no rows everything but the count is NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4], [0.5, 0.25, 0.25]])
    >>> first = fastce.CrossEntropyAccumulator().update(logits[:2], [1, 2])
    >>> second = fastce.CrossEntropyAccumulator().update(logits[2:], [1])
    >>> summary = first.merge(second).compute()
    >>> round(summary.loss, 4), round(summary.accuracy, 4), summary.count
    (0.8864, 0.6667, 3)
    >>> round(fastce.cross_entropy(logits, [1, 2, 1]), 4)
    0.8864
    """

    __slots__ = ("_backend", "_num_threads", "_options", "_sums")

    def __init__(
        self,
        *,
        axis: int = -1,
        weight: Any = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        temperature: float | None = None,
        softcap: float | None = None,
        spread_missing: bool = False,
        base: float | None = None,
        backend: str = "auto",
        num_threads: int | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "axis": axis,
            "weight": None if weight is None else np.array(weight),
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "temperature": temperature,
            "softcap": softcap,
            "spread_missing": spread_missing,
            "base": base,
        }
        self._backend = backend
        self._num_threads = num_threads
        self._sums = _Sums()
        n_classes = 1 if weight is None else np.size(weight)
        nothing = np.zeros((0, n_classes), np.float32), (np.zeros((0, 1), np.int64), np.zeros((0, 1)))
        request = self._request(*nothing, None, axis=-1)
        _pipeline.choose(request.problem, backend, num_threads)

    def update(self, logits: Any, target: Any, *, sample_weight: Any = None) -> CrossEntropyAccumulator:
        """Add a batch.

        Parameters
        ----------
        logits, target, sample_weight : array_like
            As in `cross_entropy`.

        Returns
        -------
        CrossEntropyAccumulator
            This one.

        Raises
        ------
        IndexError, TypeError, ValueError, BackendUnavailableError
            As in `cross_entropy`. Nothing of the batch is added then.
        """
        request = self._request(logits, target, sample_weight)
        chosen = _pipeline.choose(request.problem, self._backend, self._num_threads)
        _pipeline.check(request, chosen)
        sums = self._sums
        problem = request.problem
        row_bytes = problem.n_classes * sum(x.itemsize for x in (problem.logits, problem.dense) if x is not None)
        if problem.listed is not None:
            row_bytes += 8 * problem.listed.shape[-1] ** 2  # of pairs of entries, see _labels
        for where in blocks(problem.positions, row_bytes):
            sums = _added(sums, problem.at(where), request, chosen)
        self._sums = sums
        return self

    def merge(self, other: CrossEntropyAccumulator) -> CrossEntropyAccumulator:
        """Add what another has seen.

        Parameters
        ----------
        other : CrossEntropyAccumulator
            One with the same options; it stays as it is. Backend and threads may differ.

        Returns
        -------
        CrossEntropyAccumulator
            This one.

        Raises
        ------
        TypeError, ValueError
            For something else, and for one with other options.
        """
        if not isinstance(other, CrossEntropyAccumulator):
            raise TypeError(f"other: expected a CrossEntropyAccumulator, got {type(other).__name__}")
        for name, own in self._options.items():
            theirs = other._options[name]
            same = np.array_equal(own, theirs) if name == "weight" and own is not None else own == theirs
            if not np.all(same):
                shown = "" if name == "weight" else f": {own!r} and {theirs!r}"
                raise ValueError(f"other: its {name} is not that of this one{shown}")
        self._sums = self._sums.merged(other._sums)
        return self

    def compute(self) -> CrossEntropySummary:
        """Return what has been found so far.

        Returns
        -------
        CrossEntropySummary
            ``loss``, ``perplexity``, ``accuracy``, ``count``, ``standard_error``.
        """
        sums = self._sums
        base = self._options["base"]
        unit = 1.0 if base is None else math.log(base)
        with np.errstate(all="ignore"):
            loss = np.float64(sums.loss.value) / sums.weight.value
            perplexity = np.exp(sums.plain_loss.value / np.float64(sums.sample_weight.value))
            accuracy = sums.right.value / np.float64(sums.sample_weight.value)
            error = sums.moments.residual(float(loss)) / np.float64(sums.weight.value)
        return CrossEntropySummary(
            float(loss / unit), float(perplexity), float(accuracy), sums.moments.count, float(error / unit)
        )

    def __repr__(self) -> str:
        found = self.compute()
        return f"<CrossEntropyAccumulator: loss {found.loss:.6g} of {found.count} rows>"

    def _request(self, logits: Any, target: Any, sample_weight: Any, **other: Any) -> _inputs.Request:
        return _inputs.loss_request(
            logits,
            target,
            sample_weight=sample_weight,
            reduction="none",
            denominator=None,
            **(self._options | other),
        )


@dataclass(frozen=True)
class _Moments:
    """Of losses l and weights w of rows: means, and sums of products of deviations from them.

    Two sides merge by the formula of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing
    sample variances", 1979), by which nothing cancels where all losses are about the same.
    """

    count: int = 0
    mean: tuple[float, float] = (0.0, 0.0)
    """Of l and of w."""
    products: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """ll, lw and ww."""

    @classmethod
    def of(cls, losses: Array, weights: Array) -> _Moments:
        if not losses.size:
            return cls()
        mean = float(losses.mean()), float(weights.mean())
        dl, dw = losses - mean[0], weights - mean[1]
        return cls(losses.size, mean, (float(dl @ dl), float(dl @ dw), float(dw @ dw)))

    def merged(self, other: _Moments) -> _Moments:
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        dl, dw = other.mean[0] - self.mean[0], other.mean[1] - self.mean[1]
        part = other.count / count
        both = self.count * part
        mean = self.mean[0] + dl * part, self.mean[1] + dw * part
        between = dl * dl * both, dl * dw * both, dw * dw * both
        ll, lw, ww = (a + b + c for a, b, c in zip(self.products, other.products, between, strict=True))
        return _Moments(count, mean, (ll, lw, ww))

    def residual(self, ratio: float) -> float:
        """Return the root of n / (n - 1) times the sum of (l - ratio w)^2, where ratio is that of the means."""
        if self.count < 2:
            return math.nan
        ll, lw, ww = self.products
        squares = ll - 2 * ratio * lw + ratio * ratio * ww
        return math.sqrt(max(squares, 0.0) * self.count / (self.count - 1)) if math.isfinite(squares) else math.nan


class _Sums(NamedTuple):
    """What has been seen."""

    loss: Sum = Sum()
    weight: Sum = Sum()
    plain_loss: Sum = Sum()
    """Without class weights, label smoothing and z-loss."""
    sample_weight: Sum = Sum()
    right: Sum = Sum()
    moments: _Moments = _Moments()

    def merged(self, other: _Sums) -> _Sums:
        return _Sums(*(own.merged(theirs) for own, theirs in zip(self, other, strict=True)))  # type: ignore[attr-defined]


def _added(sums: _Sums, problem: Problem, request: _inputs.Request, chosen: _pipeline.Chosen) -> _Sums:
    """Return the sums with the rows of a block, whose logits are in cache after the first visit."""
    losses = np.empty(problem.n_rows, problem.real)
    totals = _pipeline.run(request._replace(problem=replace(problem, row_values=losses)), chosen)
    sample_weight = np.ones(problem.n_rows)
    if problem.sample_weight is not None:
        sample_weight = problem.sample_weight.reshape(-1).astype(np.float64)
    labels = _labels(problem)
    ignored = np.zeros(problem.n_rows, bool)
    if problem.labels is not None and problem.ignore_index is not None:
        ignored = labels == problem.ignore_index
    kept = ~ignored & (sample_weight != 0)
    weights = sample_weight[kept]
    labels, sample_weight = labels[kept], weights
    if problem.class_weight is not None and problem.labels is not None:
        weights = weights * problem.class_weight[labels]

    plain = totals
    if problem.class_weight is not None or problem.class_vector is not None or problem.z_loss != 0:
        bare = replace(problem, target_scale=1.0, class_weight=None, class_vector=None, z_loss=0.0)
        plain = _pipeline.run(request._replace(problem=bare), chosen)
    correct = _correct(problem, request, chosen) & ~np.isnan(losses)
    with np.errstate(all="ignore"):
        return _Sums(
            sums.loss.plus(totals.loss),
            sums.weight.plus(totals.weight),
            sums.plain_loss.plus(plain.loss),
            sums.sample_weight.plus(float(sample_weight.sum())),
            sums.right.plus(float(sample_weight[correct[kept]].sum())),
            sums.moments.merged(_Moments.of(losses[kept].astype(np.float64), weights)),
        )


def _labels(problem: Problem) -> Array:
    """Return the labels, of dense and sparse targets the class of the greatest probability, the first of equals."""
    if problem.labels is not None:
        return problem.labels.reshape(-1)
    if problem.dense is not None:
        best: Array = problem.dense.reshape(problem.n_rows, -1).argmax(axis=-1)
        return best
    if problem.listed is None or problem.probabilities is None:
        raise RuntimeError("a loss has a target")
    listed = problem.listed.reshape(problem.n_rows, -1)
    probabilities = np.where(listed < 0, 0.0, problem.probabilities.reshape(listed.shape).astype(np.float64))
    same = listed[:, :, None] == listed[:, None, :]
    totals = (same * probabilities[:, None, :]).sum(-1)
    listed = np.append(listed, np.full((problem.n_rows, 1), -1), axis=-1)  # for lists of no length
    most: Array = np.take_along_axis(listed, totals.argmax(-1)[:, None], -1)[:, 0] if totals.size else listed[:, -1]
    return most


def _correct(problem: Problem, request: _inputs.Request, chosen: _pipeline.Chosen) -> Array:
    """Tell of each row whether its first greatest logit is that of its label."""
    found = np.zeros(problem.n_rows, bool)
    asked = Problem(
        Output.STATISTICS,
        problem.logits,
        labels=_labels(problem).reshape(problem.positions),
        ignore_index=-1 if problem.labels is None else problem.ignore_index,
        statistics=Statistics(correct=found),
    )
    _pipeline.run(request._replace(problem=asked), chosen)
    return found
