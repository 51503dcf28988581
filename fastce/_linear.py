"""Cross entropy of logits that are never stored: `input @ linear_weight.T + linear_bias`, tile by tile.

A tile is a run of whole rows of logits: each matrix product is done once, and every option of cross entropy is the
business of the kernels that see the tile. The products are NumPy's, so they run on its BLAS and on its threads. Rows
that are ignored are left out of all of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastce import _inputs, _pipeline
from fastce._problem import Array, Output, Problem, Totals

TILE_BYTES = 56 << 20
"""Of a tile's logits, inputs and gradients by inputs: a product of fewer rows reads the weights for less work."""

CHUNK_BYTES = 4 << 20
"""Of classes of linear_weight whose gradient is added, or which are converted, at a time: they stay in cache."""

LEAST_ROWS = 64
"""Of a tile, however many classes there are."""


class LinearLossAndGrad(NamedTuple):
    """The result of `linear_cross_entropy_with_grad`.

    Attributes
    ----------
    loss : float or ndarray
        An array for ``reduction="none"``.
    grad_input, grad_linear_weight : ndarray
        Of the shapes of ``input`` and ``linear_weight``.
    grad_linear_bias : ndarray or None
        Of the shape of ``linear_bias``; None where there is none.

    Examples
    --------
    >>> import fastce
    >>> result = fastce.linear_cross_entropy_with_grad([[2.0]], [[0.0], [0.0]], [0])
    >>> round(result.loss, 4), result.grad_linear_weight.tolist()
    (0.6931, [[-1.0], [1.0]])
    """

    loss: Any
    grad_input: Array
    grad_linear_weight: Array
    grad_linear_bias: Array | None


def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float | None = None,
    softcap: float | None = None,
    spread_missing: bool = False,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Cross entropy of a linear layer's outputs, which are never stored as a whole.

    .. math:: \mathrm{logits} = \mathrm{input}\;\mathrm{linear\_weight}^\top + \mathrm{linear\_bias}

    and then `cross_entropy` of these, with all of its options: the last layer of a language model, whose logits are the
    largest array of all.

    Parameters
    ----------
    input : array_like
        Shape ``(..., D)``: float16, bfloat16, float32 or float64.
    linear_weight : array_like
        Shape ``(C, D)``, of any of these dtypes.
    target : array_like
        Integer labels of the shape of ``input`` without its last axis, a dense target of that shape and C, or a sparse
        one, as in `cross_entropy`.
    linear_bias : array_like, optional
        Shape ``(C,)``. -inf excludes a class.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap, spread_missing
        As in `cross_entropy`.
    reduction, denominator, base, backend
        As in `cross_entropy`.
    num_threads : int, optional
        The most threads for the cross entropy, as in `cross_entropy`. The matrix products use those of NumPy's BLAS.

    Returns
    -------
    float or ndarray
        As in `cross_entropy`: for "none" the loss of each row, float64 where an array is float64, else float32.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As in `cross_entropy`, and ValueError for shapes that do not fit one another.

    See Also
    --------
    linear_cross_entropy_with_grad : The loss and its gradients.

    Notes
    -----
    **Memory.** Beyond inputs and results at most 64 MiB, as long as 64 rows of logits fit: tiles have at least so many.
    (Where NumPy's BLAS cannot read an array, as with every second column, and for float16 and bfloat16, parts of it are
    converted on the way, within that.)

    **Accuracy.** The products are computed in float64 where any of the arrays is float64, else in float32, and are as
    good as NumPy's; what follows has the accuracy of `cross_entropy`. Their bits depend on the BLAS, its threads and
    the number of rows, and so do those of the loss.

    **Special values** are those of `cross_entropy`, of logits: a NaN in a row of ``input`` makes that row's loss NaN,
    one in ``linear_weight`` all of them. Rows that are ignored are not read and take no part in the products.

    The names are those of ``torch.nn.functional.linear_cross_entropy``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> hidden = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    >>> vocabulary = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]], np.float32)
    >>> round(fastce.linear_cross_entropy(hidden, vocabulary, [0, 1]), 4)
    0.4076
    >>> round(fastce.cross_entropy(hidden @ vocabulary.T, [0, 1]), 4)
    0.4076
    """
    linear = _inputs.linear_request(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        temperature=temperature,
        softcap=softcap,
        spread_missing=spread_missing,
        reduction=reduction,
        denominator=denominator,
        base=base,
    )
    return _run(linear, backend, num_threads)


def linear_cross_entropy_with_grad(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float | None = None,
    softcap: float | None = None,
    spread_missing: bool = False,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
    out: tuple[Array, ...] | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> LinearLossAndGrad:
    r"""Cross entropy of a linear layer's outputs, and its gradients by the layer's input, weight and bias.

    With :math:`g` the gradient by the logits, as `cross_entropy_with_grad` has it,

    .. math::
        \frac{\partial\,\mathrm{loss}}{\partial\,\mathrm{input}} = g\;\mathrm{linear\_weight},\qquad
        \frac{\partial\,\mathrm{loss}}{\partial\,\mathrm{linear\_weight}} = g^\top\,\mathrm{input},\qquad
        \frac{\partial\,\mathrm{loss}}{\partial\,\mathrm{linear\_bias}} = \sum_{\mathrm{rows}} g

    Neither the logits nor :math:`g` are stored as a whole; each of the three products is done once.

    Parameters
    ----------
    input, linear_weight, target, linear_bias
        As in `linear_cross_entropy`.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap, spread_missing
        As in `cross_entropy`.
    reduction, denominator, base
        As in `cross_entropy`.
    grad_output : array_like, optional
        Multiplies the gradients: a number for "mean" and "sum"; for "none" one for each row.
    out : tuple of ndarray, optional
        Writable floating arrays that receive the gradients by ``input``, ``linear_weight`` and, where there is one,
        ``linear_bias``, of their shapes. They may overlap neither one another nor any input. By default new arrays,
        each of the dtype of what it is the gradient by.
    backend, num_threads
        As in `linear_cross_entropy`.

    Returns
    -------
    LinearLossAndGrad
        The loss and the gradients.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As in `linear_cross_entropy`. Nothing is written then.

    Notes
    -----
    Memory, accuracy and special values as in `linear_cross_entropy`. Sums over rows, within ``grad_linear_weight`` and
    ``grad_linear_bias``, are those of the BLAS and of tiles, in the dtype of the products; where ``linear_weight`` is
    float16 or bfloat16 and there is more than one tile, they take a float32 array of its shape. A row whose loss is NaN
    makes all of ``grad_linear_weight`` NaN. Rows that are ignored, NaN or not, add nothing.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> hidden = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    >>> vocabulary = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]], np.float32)
    >>> result = fastce.linear_cross_entropy_with_grad(hidden, vocabulary, [0, 1])
    >>> round(result.loss, 4)
    0.4076
    >>> np.round(result.grad_linear_weight, 3)
    array([[-0.167,  0.045],
           [ 0.045, -0.167],
           [ 0.122,  0.122]], dtype=float32)
    """
    linear = _inputs.linear_request(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        temperature=temperature,
        softcap=softcap,
        spread_missing=spread_missing,
        reduction=reduction,
        denominator=denominator,
        base=base,
        gradient=True,
        grad_output=grad_output,
        out=out,
    )
    loss = _run(linear, backend, num_threads)
    return LinearLossAndGrad(loss, *(linear.grads or ()))


def _run(linear: _inputs.LinearRequest, backend: str, num_threads: int | None) -> float | Array:
    """Return the loss, and fill the gradients where there are any: not before every row has been checked."""
    request = linear.request
    chosen = _pipeline.choose(request.problem, backend, num_threads)
    checked = _pipeline.check(request, chosen)
    # The threads of a BLAS spin for a while after a product: to share all cores with them is slower than half of them.
    chosen = chosen._replace(num_threads=max(1, chosen.num_threads // 2))
    with np.errstate(all="ignore"):
        loss = _Tiles(linear, _pipeline.grad_scale(request, checked.weight)).visit(chosen)
    return _pipeline.reduce(request, Totals(-1, loss, checked.weight))


class _Tiles:
    """The tiles of a call, done one after the other in the same memory."""

    def __init__(self, linear: _inputs.LinearRequest, grad_scale: float) -> None:
        self.request, self.input, self.weight, self.bias, self.grads = linear
        self.real = self.request.problem.real
        output = Output.LOSS if self.grads is None else Output.GRAD
        self.problem = _flattened(replace(self.request.problem, output=output, grad_scale=grad_scale))
        self.kept = _kept(self.problem)
        n_rows = len(self.input) if self.kept is None else len(self.kept)
        n_classes, n_features = self.weight.shape
        row_bytes = (n_classes + 2 * n_features) * self.real.itemsize
        if self.kept is not None and self.problem.dense is not None:
            row_bytes += n_classes * self.problem.dense.itemsize
        n_tiles = -(-n_rows // max(LEAST_ROWS, TILE_BYTES // row_bytes))
        self.ends = [n_rows * i // n_tiles for i in range(n_tiles + 1)] if n_tiles else []
        longest = -(-n_rows // n_tiles) if n_tiles else 0
        self.logits = np.empty((longest, n_classes), self.real)
        if self.grads is not None:
            # Products are added where the gradient goes if that is possible, else apart.
            into = self.grads.linear_weight
            self.by_weight = into if _is_ready(into, self.real) else np.empty(into.shape, self.real)
            self.by_input = np.empty((n_features, longest), self.real)
            self.by_bias = np.zeros(n_classes)
            self.input_grad = self.grads.input.reshape(self.input.shape)  # a copy where that cannot be a view

    def visit(self, chosen: _pipeline.Chosen) -> float:
        """Do all of them, and return the sum of the losses."""
        values = self.problem.row_values
        if values is not None and self.kept is not None:
            values[...] = 0
        if self.grads is not None and self.kept is not None:
            self.input_grad[...] = 0
        losses = []
        for begin, end in itertools.pairwise(self.ends):
            rows = slice(begin, end) if self.kept is None else self.kept[begin:end]
            x = self.input[rows]
            x = x if _is_ready(x, self.real) else np.ascontiguousarray(x, self.real)
            logits = self.logits[: end - begin]
            for classes, weight in self._weights():
                np.matmul(x, weight.T, out=logits[:, classes])
            if self.bias is not None:
                logits += self.bias
            problem = replace(
                self.problem.at((rows,)),
                logits=logits,
                row_values=None if values is None else np.empty(len(x), self.real),
                out=None if self.grads is None else logits,
            )
            losses.append(_pipeline.run(self.request._replace(problem=problem), chosen).loss)
            if values is not None:
                values[rows] = problem.row_values
            if self.grads is not None:
                self._add_gradients(x, logits, first=begin == 0)
                self.input_grad[rows] = self.by_input[:, : end - begin].T
        if self.grads is not None:
            self._finish_gradients()
        return math.fsum(losses) if all(map(math.isfinite, losses)) else sum(losses)

    def _weights(self) -> Iterator[tuple[slice, Array]]:
        """Give linear_weight as a BLAS reads it: whole where it is that already, else converted runs of classes."""
        if _is_ready(self.weight, self.real):
            yield slice(None), self.weight
            return
        for classes in self._runs_of_classes():
            yield classes, np.ascontiguousarray(self.weight[classes], self.real)

    def _runs_of_classes(self) -> Iterator[slice]:
        n_classes, n_features = self.weight.shape
        step = max(1, CHUNK_BYTES // max(1, n_features * self.real.itemsize))
        return (slice(begin, begin + step) for begin in range(0, n_classes, step))

    def _add_gradients(self, x: Array, grad: Array, *, first: bool) -> None:
        """Do the products of a tile of gradients by the logits: by input transposed, which a BLAS does faster."""
        by_input = self.by_input[:, : len(x)]
        for n, (classes, weight) in enumerate(self._weights()):
            if n == 0:
                np.matmul(weight.T, grad[:, classes].T, out=by_input)
            else:
                by_input += weight.T @ grad[:, classes].T
        if first:
            np.matmul(grad.T, x, out=self.by_weight)
        else:
            for classes in self._runs_of_classes():
                self.by_weight[classes] += grad[:, classes].T @ x
        if self.bias is not None:
            self.by_bias += np.ones(len(x), self.real) @ grad

    def _finish_gradients(self) -> None:
        grads = self.grads
        if grads is None:
            return
        if len(self.ends) < 2:
            self.by_weight[...] = 0
        if not np.may_share_memory(self.input_grad, grads.input):
            grads.input[...] = self.input_grad.reshape(grads.input.shape)
        if self.by_weight is not grads.linear_weight:
            grads.linear_weight[...] = self.by_weight
        if grads.linear_bias is not None:
            grads.linear_bias[...] = self.by_bias


def _is_ready(array: Array, real: np.dtype[Any]) -> bool:
    """Tell whether a BLAS can read and write it."""
    layout = array.flags
    return array.dtype == real and layout.aligned and (layout.c_contiguous or layout.f_contiguous)


def _flattened(problem: Problem) -> Problem:
    """Return the problem with one axis of positions; its logits are a stand-in."""
    n_axes = len(problem.positions)
    parts: dict[str, Any] = {
        name: array.reshape(problem.n_rows, *array.shape[n_axes:])
        for name, array in problem.per_position()
        if name != "logits"
    }
    logits = np.broadcast_to(np.zeros((), problem.real), (problem.n_rows, problem.n_classes))
    return replace(problem, **parts, logits=logits)


def _kept(problem: Problem) -> Array | None:
    """Return the numbers of the rows that are not ignored, None for all."""
    kept = np.ones(problem.n_rows, bool)
    if problem.labels is not None and problem.ignore_index is not None:
        kept &= problem.labels != problem.ignore_index
    if problem.sample_weight is not None:
        kept &= problem.sample_weight != 0
    return None if kept.all() else np.flatnonzero(kept)
