"""Pieces of the class axis: what a shard of classes knows of each row, how that merges, and the gradient of a shard.

Of the classes that a partial result covers it has, for each row, m and r (the maximum, and the sum of exp(x_k - m) but
for one class at m), the mass Q of the target measure q there, and its distance D = sum of q_k (m - x_k). Of two the
larger m wins; what the other has is moved to it, and every term is >= 0, so that nothing cancels:

    r = r_w + (1 + r_l) exp(m_l - m)      Q = Q_w + Q_l      D = D_w + D_l + Q_l (m - m_l)

Over all classes the loss is Q log1p(r) + D + z lse^2, and the gradient of shard s

    (Q + 2 z lse) p_k - q_k,    p_k = softmax of the shard alone * (1 + r_s) exp(m_s - m) / (1 + r)

so that the kernels of statistics, of losses and of softmax with a factor for each row are all that is needed; what is
done here is done with a few numbers a row. Rows are visited in blocks that stay in cache where that takes more than one
visit, since the target has mass on every class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fastce import _blocks, _inputs, _pipeline
from fastce._inputs import Shard
from fastce._pipeline import Chosen
from fastce._problem import Array, Kind, Output, Problem, Statistics


class _Options(NamedTuple):
    """What partial results must have in common to be merged; messages show the name of what differs."""

    n_classes: int
    positions: tuple[int, ...]
    dtype: str
    target: str
    ignore_index: int
    label_smoothing: float
    z_loss: float
    weight: int | None


@dataclass(frozen=True, eq=False, repr=False)
class CrossEntropyPartial:
    r"""What some classes contribute to the cross entropy of each row: the result of `partial_cross_entropy`.

    Partial results of the same rows merge, in any order and grouping, until all classes are there. They are a few
    numbers a row, whatever the number of classes, and can be pickled. With :math:`m` the maximum of a row's logits
    among the classes that are covered, and :math:`q` its target measure,

    .. math:: r = \sum e^{x_k - m} - 1, \quad Q = \sum q_k, \quad D = \sum q_k (m - x_k)

    over these classes. Two are merged by the larger :math:`m`; all that is added is >= 0, so that nothing cancels and
    small losses keep their digits.

    Attributes
    ----------
    classes : tuple of (int, int)
        The ranges of classes that are covered, first and one past the last, in order.
    n_classes : int
        Of the whole.
    shape : tuple of int
        That of the labels.
    maximum, rest, mass, distance : ndarray
        :math:`m, r, Q, D` of each row, in C order: float64. Where a row has no finite maximum here, ``rest`` means
        nothing, but for -1 where all logits are -inf.
    row_weight : ndarray or None
        The sample weight of each row, 0 where it is ignored; None where all are 1.
    weight : float
        What a mean divides by.

    See Also
    --------
    partial_cross_entropy : Makes them.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    >>> left = fastce.partial_cross_entropy(logits[:, :2], [1, 2], 0, 3)
    >>> right = fastce.partial_cross_entropy(logits[:, 2:], [1, 2], 2, 3)
    >>> left
    <CrossEntropyPartial: 2 rows, classes 0 to 1 of 3>
    >>> round(left.merge(right).compute(), 4)
    0.6365
    """

    classes: tuple[tuple[int, int], ...]
    maximum: Array
    rest: Array
    mass: Array
    distance: Array
    row_weight: Array | None
    weight: float
    options: _Options

    def __repr__(self) -> str:
        covered = ", ".join(_range(*part) for part in self.classes)
        rows = f"{self.maximum.size} row{'' if self.maximum.size == 1 else 's'}"
        return f"<{type(self).__name__}: {rows}, {covered} of {self.n_classes}>"

    @property
    def n_classes(self) -> int:
        """How many classes there are in all."""
        return self.options.n_classes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the labels."""
        return self.options.positions

    def merge(self, other: CrossEntropyPartial) -> CrossEntropyPartial:
        """Return what both contribute, as a new record; neither changes.

        Parameters
        ----------
        other : CrossEntropyPartial
            Of other classes of the same rows, with the same options.

        Returns
        -------
        CrossEntropyPartial
            In any order and grouping the same to rounding of float64, in the same one to the bit.

        Raises
        ------
        TypeError
            For what is no partial result.
        ValueError
            Where classes are in both, or where rows, options or the dtype differ.
        """
        if not isinstance(other, CrossEntropyPartial):
            raise TypeError(f"merge: expected a CrossEntropyPartial, got {type(other).__name__}")
        _refuse_difference(self.options, other.options, "merge")
        classes = _joined(self.classes, other.classes)
        with np.errstate(all="ignore"):
            top = np.maximum(self.maximum, other.maximum)
            here, there = _below(top, self.maximum), _below(top, other.maximum)
            wins = here == 0
            rest = np.where(wins, self.rest + _moved(other.rest, there), other.rest + _moved(self.rest, here))
            distance = self.distance + _weighed(self.mass, here) + other.distance + _weighed(other.mass, there)
        return replace(self, classes=classes, maximum=top, rest=rest, mass=self.mass + other.mass, distance=distance)

    def compute(
        self, reduction: str = "mean", denominator: float | None = None, base: float | None = None
    ) -> float | Array:
        """Return the loss, of all classes.

        Parameters
        ----------
        reduction : {"mean", "sum", "none"}
            As for `cross_entropy`.
        denominator, base : float, optional
            As for `cross_entropy`.

        Returns
        -------
        float or ndarray
            As of `cross_entropy`, within the accuracy that is documented there.

        Raises
        ------
        ValueError
            Where classes are missing, and for options that are not accepted.
        """
        denominator, unit = _inputs.scales(reduction, denominator, base)
        _refuse_missing(self, "compute")
        losses = self._losses()
        with np.errstate(all="ignore"):
            if reduction == "none":
                return (losses / unit).astype(self.options.dtype).reshape(self.shape)
            total = float(losses.sum(dtype=np.longdouble))
        if reduction == "sum":
            return total / unit
        divisor = self.weight if denominator is None else denominator
        return total / divisor / unit if divisor else math.nan

    def _losses(self) -> Array:
        with np.errstate(all="ignore"):
            losses = self.mass * np.log1p(self.rest) + self.distance
            if self.options.z_loss:
                losses += self._z() * self._lse() ** 2
            losses[~np.isfinite(self.maximum)] = np.nan
            if self.row_weight is not None:
                losses[self.row_weight == 0] = 0.0
        return losses

    def _lse(self) -> Array:
        lse: Array = self.maximum + np.log1p(self.rest)
        return lse

    def _z(self) -> Array | float:
        return self.options.z_loss if self.row_weight is None else self.options.z_loss * self.row_weight


def partial_cross_entropy(
    logits: Any,
    target: Any,
    class_start: int,
    n_classes: int,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    backend: str = "auto",
    num_threads: int | None = None,
) -> CrossEntropyPartial:
    r"""What a shard of the class axis contributes to `cross_entropy`: a partial result that merges.

    For a row whose logits of classes ``class_start``, ``class_start + 1``, … are :math:`x`, and whose target measure
    among them is :math:`q`,

    .. math:: m = \max_k x_k, \quad r = \sum_k e^{x_k - m} - 1, \quad Q = \sum_k q_k, \quad D = \sum_k q_k (m - x_k)

    from which, merged over all classes, come the loss :math:`Q \log(1 + r) + D` and the gradient of each shard. So a
    vocabulary that is spread over processes needs to exchange a few numbers a row.

    Parameters
    ----------
    logits : array_like
        Those of the shard, as for `cross_entropy`.
    target : array_like
        Integer labels, which count all classes, wherever they are; or the shard's classes of a dense target, of the
        shape of ``logits``; or a sparse target ``(indices, probabilities)`` whose indices count all classes.
    class_start : int
        The first class of the shard.
    n_classes : int
        How many classes there are in all.
    axis : int, default -1
        The class axis.
    weight : array_like, optional
        A weight for each class of the whole, shape ``(n_classes,)``, finite, >= 0.
    sample_weight, ignore_index, label_smoothing, z_loss
        As for `cross_entropy`, the same for every shard.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    CrossEntropyPartial
        With ``merge`` and ``compute``.

    Raises
    ------
    IndexError
        For a label that is out of the range of all classes.
    TypeError, ValueError, BackendUnavailableError
        As for `cross_entropy`, and where the shard's classes are not among ``n_classes``.

    See Also
    --------
    partial_cross_entropy_grad : The gradient of a shard.
    cross_entropy : With all classes at hand.

    Notes
    -----
    **Accuracy.** That of `cross_entropy`, however many shards there are: merging works in float64 and adds what is
    >= 0. Loss and gradient differ from those of the whole in the last digits, as another order of additions does.

    **Cost.** Labels and lists take one visit of the logits, and gather few of them. Label smoothing and dense targets
    take a second one, in cache.

    **Special values.** A shard of a row that is all -inf, as of excluded classes, contributes nothing. NaN and infinite
    logits do to a row of the whole what they do in `cross_entropy`, in whichever shard they are. The logits of ignored
    rows do not matter.

    A temperature or softcap is for the caller to apply to each shard beforehand, and its slope to the gradient: both
    are element-wise.

    Examples
    --------
    Two halves of the classes, as if on two machines:

    >>> import numpy as np
    >>> import fastce
    >>> logits = np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    >>> labels = np.array([1, 2])
    >>> halves = [fastce.partial_cross_entropy(logits[:, s : s + n], labels, s, 3) for s, n in ((0, 2), (2, 1))]
    >>> whole = halves[0].merge(halves[1])
    >>> round(whole.compute(), 4), round(fastce.cross_entropy(logits, labels), 4)
    (0.6365, 0.6365)
    >>> halves[1].compute()
    Traceback (most recent call last):
    ValueError: compute: classes 0 to 1 of 3 are missing
    """
    shard = _inputs.shard_request(
        logits,
        target,
        class_start,
        n_classes,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    problem = shard.request.problem
    n_rows, width = problem.n_rows, shard.logits.shape[-1]
    chosen = _pipeline.choose(Problem(Output.STATISTICS, shard.logits), backend, num_threads)
    total_weight = _pipeline.check(shard.request, chosen).weight
    parts = CrossEntropyPartial(
        classes=((shard.start, shard.start + width),),
        maximum=np.empty(n_rows),
        rest=np.empty(n_rows),
        mass=np.zeros(n_rows),
        distance=np.zeros(n_rows),
        row_weight=_row_weight(problem),
        weight=total_weight,
        options=_options(shard, label_smoothing, ignore_index),
    )
    with np.errstate(all="ignore"):
        for block in _cut(shard, parts.row_weight):
            _fill(parts, block, shard, chosen)
    return parts


def partial_cross_entropy_grad(
    logits: Any,
    target: Any,
    part: CrossEntropyPartial,
    merged: CrossEntropyPartial,
    *,
    axis: int = -1,
    weight: Any = None,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
    out: Array | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> Array:
    r"""Gradient of `cross_entropy` by the logits of a shard of the class axis.

    With :math:`p` the softmax over all classes, :math:`\ell` the log-sum-exp over all of them and :math:`Q` all of the
    target's mass, :math:`(Q + 2 z \ell)\,p_k - q_k` for the classes of the shard, times whatever the value
    ``merged.compute(reduction, denominator, base)`` is divided by. Over all shards a row of it sums to 0.

    Parameters
    ----------
    logits, target
        As they were given to `partial_cross_entropy`.
    part : CrossEntropyPartial
        What that returned for this shard. It knows the options that are not here.
    merged : CrossEntropyPartial
        All partial results of these rows, merged.
    axis, weight
        As they were given to `partial_cross_entropy`.
    reduction, denominator, base, grad_output
        As for `cross_entropy_with_grad`.
    out : ndarray, optional
        Receives the gradient, as for `cross_entropy_with_grad`: it may be ``logits``.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    ndarray
        ``out``, or a new array of the shape, dtype and layout of ``logits``.

    Raises
    ------
    IndexError, TypeError, BackendUnavailableError
        As for `partial_cross_entropy`; nothing has been written then.
    ValueError
        Also where the shard is not that of ``part``, where classes are missing in ``merged``, or where options differ.

    See Also
    --------
    partial_cross_entropy : The partial results.

    Notes
    -----
    Accuracy and special values are those of `cross_entropy_with_grad`: where all of the target is on one class, each
    element is accurate relative to itself. Labels and lists take one visit; label smoothing and dense targets are
    subtracted while a block of rows is in cache.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits, labels = np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]), np.array([1, 2])
    >>> left = fastce.partial_cross_entropy(logits[:, :2], labels, 0, 3)
    >>> right = fastce.partial_cross_entropy(logits[:, 2:], labels, 2, 3)
    >>> whole = left.merge(right)
    >>> fastce.partial_cross_entropy_grad(logits[:, :2], labels, left, whole).round(3)
    array([[ 0.1 , -0.15],
           [ 0.15,  0.15]])
    >>> fastce.cross_entropy_with_grad(logits, labels).grad.round(3)
    array([[ 0.1 , -0.15,  0.05],
           [ 0.15,  0.15, -0.3 ]])
    """
    for name, record in (("part", part), ("merged", merged)):
        if not isinstance(record, CrossEntropyPartial):
            raise TypeError(f"{name}: expected a CrossEntropyPartial, got {type(record).__name__}")
    options = part.options
    shard = _inputs.shard_request(
        logits,
        target,
        part.classes[0][0],
        options.n_classes,
        axis=axis,
        weight=weight,
        sample_weight=None,
        ignore_index=options.ignore_index,
        label_smoothing=options.label_smoothing,
        z_loss=options.z_loss,
        reduction=reduction,
        denominator=denominator,
        base=base,
        gradient=True,
        grad_output=grad_output,
        out=out,
    )
    width = shard.logits.shape[-1]
    if part.classes != ((shard.start, shard.start + width),):
        raise ValueError(f"part: expected the partial result of these {width} classes, got {part!r}")
    given = _options(shard, options.label_smoothing, options.ignore_index)
    _refuse_difference(options, given, "part")
    _refuse_difference(options, merged.options, "merged")
    _refuse_missing(merged, "merged")
    chosen = _pipeline.choose(Problem(Output.SOFTMAX, shard.logits, out=shard.out), backend, num_threads)
    _pipeline.check(shard.request, chosen)
    scale = np.full(part.maximum.size, _pipeline.grad_scale(shard.request, merged.weight))
    with np.errstate(all="ignore"):
        if shard.request.problem.grad_output is not None:
            scale *= shard.request.problem.grad_output.reshape(-1).astype(np.float64)
        for block in _cut(shard, part.row_weight):
            _write(_Rows.of(part, merged, scale, block.rows), block, shard, chosen)
    result: Array = shard.request.result
    return result


# --- a block of rows --------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """Some rows of a shard, and what of the target is in it."""

    where: tuple[slice, ...]
    """The positions; ``rows`` are their numbers."""
    rows: slice
    logits: Array
    dense: Array | None
    listed: Array
    """(rows, k): classes of the shard with mass of their own, counted from its first one; -1 for none."""
    listed_mass: Array
    """(rows, k): that mass over s, entry by entry."""
    kept: Array | None
    """(rows,): False where ignored; None where none is."""


def _cut(shard: Shard, row_weight: Array | None) -> Iterator[_Block]:
    """Cut a shard into blocks of rows: one alone where the target has mass on few classes."""
    problem = shard.request.problem
    n_rows = problem.n_rows
    if n_rows == 0:
        return
    step = n_rows
    if problem.listed is not None:
        step = max(1, _blocks.BLOCK_BYTES // (8 * max(problem.listed.shape[-1], 1) ** 2))
    if problem.dense is not None or shard.class_vector is not None:
        row_bytes = shard.logits.shape[-1] * (
            shard.logits.itemsize + (0 if problem.dense is None else problem.dense.itemsize)
        )
        step = max(1, min(step, _blocks.BLOCK_BYTES // row_bytes))
    first = 0
    for where in _blocks.boxes(problem.positions, step):
        logits = _of_block(shard.logits, where)
        rows = slice(first, first + math.prod(logits.shape[:-1]))
        first = rows.stop
        kept = None if row_weight is None else row_weight[rows] != 0
        dense = None if problem.dense is None else _of_block(problem.dense, where)
        listed, mass = _listed(shard, where, kept, rows.stop - rows.start)
        yield _Block(where, rows, logits, dense, listed, mass, kept)


def _of_block(array: Array, where: tuple[slice, ...]) -> Array:
    """Return an array's part, which has an axis of positions even where the whole has none."""
    part: Array = array[where] if where else array[None]
    return part


def _listed(shard: Shard, where: tuple[slice, ...], kept: Array | None, n: int) -> tuple[Array, Array]:
    """Return the classes of the shard that labels or lists name, and their masses."""
    p, width = shard.request.problem, shard.logits.shape[-1]
    if p.labels is not None:
        index = p.labels[where].reshape(n, 1)
        t: Array = np.ones(index.shape)
    elif p.listed is not None and p.probabilities is not None:
        index = p.listed[where].reshape(n, p.listed.shape[-1])
        t = p.probabilities[where].reshape(index.shape).astype(np.float64)
    else:
        return np.empty((n, 0), np.intp), np.empty((n, 0))
    here = (index >= shard.start) & (index < shard.start + width)
    if kept is not None:
        here &= kept[:, None]
    whole = np.where(here, index, shard.start).astype(np.intp)
    mass = np.where(here, p.target_scale * t, 0.0)
    if p.class_weight is not None:
        mass *= p.class_weight[whole]
    return np.where(here, whole - shard.start, -1), mass


def _fill(parts: CrossEntropyPartial, block: _Block, shard: Shard, chosen: Chosen) -> None:
    """Find the numbers of a block of rows."""
    rows = block.rows
    n = rows.stop - rows.start
    real = np.dtype(parts.options.dtype)
    found = Statistics(maximum=np.empty(n, real), rest=np.empty(n, real))
    chosen.module.run(Problem(Output.STATISTICS, block.logits, statistics=found), chosen.num_threads)
    m, r = parts.maximum[rows], parts.rest[rows]
    m[...], r[...] = found.maximum, found.rest
    nothing = m == -np.inf
    r[nothing] = -1.0

    mass, distance = parts.mass[rows], parts.distance[rows]
    if block.listed.size:
        below = m[:, None] - _gathered(block.logits, block.listed)
        mass += block.listed_mass.sum(axis=1)
        distance += _weighed(block.listed_mass, below).sum(axis=1)
    if block.dense is not None or shard.class_vector is not None:
        spread, loss = _second_visit(block, shard, chosen, real)
        mass += spread
        distance += loss - _weighed(spread, np.log1p(r))
    distance[nothing] = 0.0  # merging adds what a mass there is infinitely far from
    if parts.row_weight is not None:
        s = parts.row_weight[rows]
        mass *= s
        distance[...] = _weighed(s, distance)


def _second_visit(block: _Block, shard: Shard, chosen: Chosen, real: np.dtype[Any]) -> tuple[Array, Array]:
    """Return, of what the target has on every class, mass and loss by the softmax of the shard; over s."""
    p, rows = shard.request.problem, block.rows
    n, positions = rows.stop - rows.start, block.logits.shape[:-1]
    losses = np.empty(n, real)
    problem = Problem(
        Output.LOSS,
        block.logits,
        class_vector=shard.class_vector,
        sample_weight=None if block.kept is None else block.kept.reshape(positions),
        row_values=losses,
    )
    if block.dense is None:
        # As if of label 0, with nothing on it but what it has as any class.
        zeros = np.broadcast_to(np.zeros((), np.int64), positions)
        chosen.module.run(replace(problem, labels=zeros, target_scale=0.0), chosen.num_threads)
        total = 0.0 if shard.class_vector is None else float(shard.class_vector.sum(dtype=np.longdouble))
        return np.where(True if block.kept is None else block.kept, total, 0.0), losses.astype(np.float64)
    problem = replace(problem, dense=block.dense, target_scale=p.target_scale, class_weight=p.class_weight)
    chosen.module.run(problem, chosen.num_threads)
    masses = np.empty(n)
    ones = np.broadcast_to(np.float64(-1.0), block.logits.shape)
    problem = replace(problem, logits=ones, kind=Kind.LOG_PROBABILITIES, row_values=masses)
    chosen.module.run(problem, chosen.num_threads)
    return masses, losses.astype(np.float64)


class _Rows(NamedTuple):
    """What the gradient of some rows is made of, one number each."""

    scale: Array
    """Of the whole gradient."""
    s: Array | None
    mass: Array
    """Q of all classes."""
    pull: Array
    """2 z lse"""
    top: Array
    rest: Array
    reached: Array
    """Whether the shard has the maximum of all."""
    empty: Array
    """Whether it has no probability at all, of a row that has some."""
    factor: Array
    """What the shard's own probabilities are multiplied by."""

    @staticmethod
    def of(part: CrossEntropyPartial, merged: CrossEntropyPartial, scale: Array, rows: slice) -> _Rows:
        m, r, top, rest = (v[rows] for v in (part.maximum, part.rest, merged.maximum, merged.rest))
        pull = np.zeros(rows.stop - rows.start)
        if merged.options.z_loss:
            z = merged._z()
            pull = 2.0 * (z if isinstance(z, float) else z[rows]) * merged._lse()[rows]
        mass = merged.mass[rows]
        s = None if part.row_weight is None else part.row_weight[rows]
        finite = np.isfinite(top)
        share = _moved(r, _below(top, m)) / (1.0 + rest)
        return _Rows(
            scale=scale[rows],
            s=s,
            mass=mass,
            pull=pull,
            top=top,
            rest=rest,
            reached=finite & (m == top) & (True if s is None else s != 0),
            empty=finite & (m == -np.inf),
            factor=np.where(finite, scale[rows] * (mass + pull) * share, np.nan),
        )

    def at(self, x: Array, q: Array) -> Array:
        """Return the gradient at some classes of each row, (rows, k), that have all there is of q at logits x.

        (Q - q + pull) p - q (1 - p), where 1 - p is the sum of the others: exact where q is all there is.
        """
        gap = x - self.top[:, None]
        total, others = 1.0 + self.rest[:, None], self.mass[:, None] - q
        p, not_p = np.exp(gap) / total, (self.rest[:, None] - np.expm1(gap)) / total
        slope: Array = self.scale[:, None] * ((others + self.pull[:, None]) * p - q * not_p)
        return slope

    def take(self, rows: Array) -> _Rows:
        return _Rows(*(None if v is None else v[rows] for v in self))  # type: ignore[arg-type]


def _write(g: _Rows, block: _Block, shard: Shard, chosen: Chosen) -> None:
    """Write the gradient of a block of rows."""
    if shard.out is None:
        raise RuntimeError("a gradient goes somewhere")
    out, positions = _of_block(shard.out, block.where), block.logits.shape[:-1]
    s = np.ones(g.mass.size) if g.s is None else g.s
    listed, listed_logits = block.listed, _gathered(block.logits, block.listed)
    everywhere = block.dense is not None or shard.class_vector is not None
    # In a dtype with few bits probabilities are not stored before the target is subtracted.
    to = np.empty(block.logits.shape, shard.request.problem.real) if everywhere else out
    at_top = np.empty(0, np.intp)
    if everywhere:
        (at_top,) = np.nonzero(g.reached)
        place = block.logits[np.unravel_index(at_top, positions)].astype(to.dtype).argmax(axis=-1)
    problem = Problem(Output.SOFTMAX, block.logits, out=to, grad_output=g.factor.reshape(positions))
    chosen.module.run(problem, chosen.num_threads)
    if g.empty.any():
        to[g.empty.reshape(positions)] = 0
    if everywhere:
        q = _spread(block, shard, to.dtype)
        to -= (g.scale * s).astype(to.dtype).reshape(*positions, 1) * q
        rows = g.take(at_top)
        q_top = s[at_top] * _q_at(block, shard, at_top, place)
        values = rows.at(rows.top[:, None], q_top[:, None])[:, 0]
        to[_index(at_top, place, positions)] = values.astype(to.dtype)
    row, j = np.nonzero(listed >= 0)
    if row.size:
        equal = listed[:, :, None] == listed[:, None, :]
        q_listed = (equal * block.listed_mass[:, None, :]).sum(axis=-1)
        if shard.class_vector is not None:
            q_listed += shard.class_vector[np.maximum(listed, 0)]
        values = g.at(listed_logits, s[:, None] * q_listed)[row, j]
        to[_index(row, listed[row, j], positions)] = values.astype(to.dtype)
    if block.kept is not None and not block.kept.all():
        to[~block.kept.reshape(positions)] = 0
    if to is not out:
        out[...] = to


def _index(rows: Array, classes: Array, positions: tuple[int, ...]) -> tuple[Array, ...]:
    """Return the index of one class of each of some rows."""
    return (*np.unravel_index(rows, positions), classes)


def _spread(block: _Block, shard: Shard, real: np.dtype[Any]) -> Array:
    """Return what the target has on every class, over s, of the shape of the logits or one that spreads over it."""
    p = shard.request.problem
    q: Any = 0.0
    if block.dense is not None:
        q = block.dense.astype(real)
        if p.target_scale != 1.0 or p.class_weight is not None:
            w = np.ones(q.shape[-1]) if p.class_weight is None else p.class_weight
            q *= (p.target_scale * w).astype(real)
    if shard.class_vector is not None:
        q = q + shard.class_vector.astype(real)
    result: Array = q
    return result


def _q_at(block: _Block, shard: Shard, rows: Array, classes: Array) -> Array:
    """Return the same in float64 at one class of each of some rows."""
    p = shard.request.problem
    q = np.zeros(rows.size)
    if block.dense is not None:
        q += block.dense[_index(rows, classes, block.dense.shape[:-1])].astype(np.float64)
        q *= p.target_scale if p.class_weight is None else p.target_scale * p.class_weight[classes]
    return q if shard.class_vector is None else q + shard.class_vector[classes]


# --- numbers of rows --------------------------------------------------------------------------------------------------


def _below(top: Array, m: Array) -> Array:
    """Return how far a maximum is below that of all; 0 where there is none at all."""
    below: Array = np.where(top == -np.inf, 0.0, top - m)
    return below


def _moved(rest: Array, below: Array) -> Array:
    """Return the sum of exponentials, relative to a maximum that is so much higher."""
    moved: Array = (1.0 + rest) * np.exp(-below)
    return moved


def _weighed(mass: Array, distance: Array) -> Array:
    """Return the product, 0 where there is no mass, whatever the distance."""
    return np.where(mass > 0, mass * distance, 0.0)


def _gathered(logits: Array, listed: Array) -> Array:
    """Return the logits of listed classes, (rows, k), in float64; those of a class where none is listed."""
    index = np.maximum(listed, 0).reshape(*logits.shape[:-1], listed.shape[1])
    return np.take_along_axis(logits, index, axis=-1).reshape(listed.shape).astype(np.float64)


def _row_weight(problem: Problem) -> Array | None:
    """Return each row's sample weight, 0 where it is ignored; None where all are 1."""
    ignored = None
    if problem.labels is not None and problem.ignore_index is not None:
        ignored = np.equal(problem.labels, problem.ignore_index).reshape(-1)
        ignored = ignored if ignored.any() else None
    if problem.sample_weight is None and ignored is None:
        return None
    weights = np.ones(problem.n_rows)
    if problem.sample_weight is not None:
        weights[...] = problem.sample_weight.reshape(-1)
    if ignored is not None:
        weights[ignored] = 0.0
    return weights


# --- what goes with what ----------------------------------------------------------------------------------------------


def _options(shard: Shard, label_smoothing: float, ignore_index: int) -> _Options:
    p = shard.request.problem
    target = "labels" if p.labels is not None else "a dense target" if p.dense is not None else "a sparse target"
    return _Options(
        n_classes=shard.n_classes,
        positions=p.positions,
        dtype=p.real.name,
        target=target,
        ignore_index=int(ignore_index),
        label_smoothing=float(label_smoothing),
        z_loss=p.z_loss,
        weight=shard.weight_digest,
    )


def _refuse_difference(a: _Options, b: _Options, name: str) -> None:
    for field, left, right in zip(_Options._fields, a, b, strict=True):
        if left == right:
            continue
        if field == "weight":
            raise ValueError(f"{name}: the class weights differ")
        shown = {"positions": "shape of labels", "dtype": "dtype of the arithmetic"}.get(field, field)
        raise ValueError(f"{name}: {shown} differs, {left} and {right}")


def _range(first: int, stop: int) -> str:
    return f"class {first}" if stop == first + 1 else f"classes {first} to {stop - 1}"


def _joined(a: tuple[tuple[int, int], ...], b: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Return the ranges of both in order, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for first, stop in sorted(a + b):
        if joined and first < joined[-1][1]:
            raise ValueError(f"merge: both cover {_range(first, min(stop, joined[-1][1]))}")
        if joined and first == joined[-1][1]:
            first = joined.pop()[0]
        joined.append((first, stop))
    return tuple(joined)


def _refuse_missing(merged: CrossEntropyPartial, name: str) -> None:
    missing, at = [], 0
    for first, stop in (*merged.classes, (merged.n_classes, merged.n_classes)):
        if at < first:
            missing.append(_range(at, first))
        at = stop
    if missing:
        verb = "is" if len(missing) == 1 and missing[0].startswith("class ") else "are"
        raise ValueError(f"{name}: {', '.join(missing)} of {merged.n_classes} {verb} missing")
