"""Cross entropy of dask arrays, lazily: chunks along rows, along classes, or both.

Where a block has all classes it is one call of the library, which leaves two sums. Where classes are in several blocks
each leaves a partial result, a few numbers a row (`fastce.partial_cross_entropy`); those of a row of blocks are merged
as a tree, and so are the sums of all. A gradient takes the logits once more where classes are in several blocks, and
else no further visit; a mean's denominator is found from labels and weights alone, beforehand.

A task computes on one thread unless told otherwise: it is the scheduler that shares out cores. Everything is validated
when the graph is made, but for what only a visit of the rows can tell.
"""

from __future__ import annotations

import copy
import itertools
import math
import operator
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.sizeof import sizeof

import fastce
from fastce import _inputs, _pipeline
from fastce._accumulator import CrossEntropyAccumulator
from fastce._functions import LossAndGrad
from fastce._partial import CrossEntropyPartial
from fastce._problem import Array

__all__ = ["accumulate", "cross_entropy", "cross_entropy_with_grad"]


def _size_of_partial(part: CrossEntropyPartial) -> int:
    arrays = (part.maximum, part.rest, part.mass, part.distance, part.row_weight)
    return sum(array.nbytes for array in arrays if array is not None)


sizeof.register(CrossEntropyPartial, _size_of_partial)  # workers keep account of what they hold


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
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
    num_threads: int = 1,
    split_every: int = 8,
) -> Any:
    r"""`fastce.cross_entropy` of dask arrays: the same value, computed block by block when it is asked for.

    Parameters
    ----------
    logits : dask.array.Array
        Of any chunks. Those along rows may be of unknown sizes, those along the class axis may not.
    target : dask.array.Array or array_like
        Labels, a dense target, or a tuple of two for a sparse one, as for `fastce.cross_entropy`. A dask array of other
        chunks is rechunked; where sizes are unknown, it must have as many blocks. An array that is not dask's is cut,
        where sizes are known.
    axis, ignore_index, label_smoothing, z_loss
        As for `fastce.cross_entropy`.
    weight : array_like or dask.array.Array, optional
        A weight for each class.
    sample_weight : dask.array.Array or array_like, optional
        A weight for each row, in blocks like labels.
    temperature, softcap, spread_missing
        As for `fastce.cross_entropy`, where all classes are in one block.
    reduction, denominator, base, backend
        As for `fastce.cross_entropy`.
    num_threads : int, default 1
        The most threads of each task. A scheduler runs as many tasks at once as it has threads.
    split_every : int, default 8
        How many results are merged at a time.

    Returns
    -------
    dask.array.Array
        Of no dimensions for "mean" and "sum"; for "none" of the shape of labels, in the chunks of the rows.

    Raises
    ------
    TypeError, ValueError
        At once, for arguments that are not accepted.
    IndexError, ValueError
        When it is computed: for the first bad row of some block, with its index in the whole; where sizes are unknown
        with its index in the block, and which block that is.

    Notes
    -----
    Accuracy and special values are those of `fastce.cross_entropy`. Sums of blocks are added in a fixed order: the same
    chunks give the same bits, on however many workers.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastce.dask
    >>> logits = da.from_array(np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]), chunks=(1, 2))
    >>> loss = fastce.dask.cross_entropy(logits, np.array([1, 2]))
    >>> round(float(loss.compute()), 4)
    0.6365
    """
    options = _Options(
        axis=axis,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        temperature=temperature,
        softcap=softcap,
        spread_missing=spread_missing,
        backend=backend,
        num_threads=num_threads,
    )
    scales = _Scales(reduction, denominator, base)
    job = _prepare(logits, target, weight, sample_weight, options, scales, split_every)
    values: dict[Row, Any]
    if job.sharded:
        values = {row: (_value_of_part, whole, scales) for row, whole in job.merged(job.parts()).items()}
    else:
        values = {row: (_value, job.block(row), scales) for row in job.rows()}
    job.reduce(values, None)
    return job.loss()


def cross_entropy_with_grad(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
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
    backend: str = "auto",
    num_threads: int = 1,
    split_every: int = 8,
) -> LossAndGrad:
    r"""`fastce.cross_entropy_with_grad` of dask arrays: the same, computed block by block when it is asked for.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap
        As for `cross_entropy`.
    spread_missing, reduction, denominator, base
        As for `cross_entropy`.
    grad_output : float or array, optional
        As for `fastce.cross_entropy_with_grad`; one for each row in blocks like labels.
    backend, num_threads, split_every
        As for `cross_entropy`.

    Returns
    -------
    LossAndGrad
        Two dask arrays: the loss as of `cross_entropy`, and the gradient in the dtype and chunks of ``logits``.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`.

    Notes
    -----
    Compute both at once, ``dask.compute(loss, grad)``, or store the gradient block by block: they share their tasks.
    The denominator of a mean is found from labels and weights first, without the logits.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastce.dask
    >>> logits = da.from_array(np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]), chunks=(1, 2))
    >>> loss, grad = dask.compute(*fastce.dask.cross_entropy_with_grad(logits, np.array([1, 2])))
    >>> grad.round(3)
    array([[ 0.1 , -0.15,  0.05],
           [ 0.15,  0.15, -0.3 ]])
    """
    options = _Options(
        axis=axis,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        temperature=temperature,
        softcap=softcap,
        spread_missing=spread_missing,
        backend=backend,
        num_threads=num_threads,
    )
    scales = _Scales(reduction, denominator, base)
    job = _prepare(logits, target, weight, sample_weight, options, scales, split_every, grad_output)
    graph = job.graph
    total = job.total_weight()
    scale = graph.add(_gradient_scale, job.grad_output, scales, total)
    grad = graph.named("grad")
    values: dict[Row, Any] = {}
    if job.sharded:
        parts = job.parts()
        for row, whole in job.merged(parts).items():
            values[row] = (_value_of_part, whole, scales)
            for shard in job.shards():
                key = (grad, *job.place(row, shard))
                graph.add(_gradient_of_part, job.block(row, shard), parts[row, shard], whole, scale, scales, key=key)
    else:
        for row in job.rows():
            both = graph.add(_value_and_gradient, job.block(row), scale, scales)
            values[row] = (operator.getitem, both, 0)
            graph.add(operator.getitem, both, 1, key=(grad, *job.place(row, 0)))
    job.reduce(values, total)
    dtype = job.logits.dtype.newbyteorder("=")
    return LossAndGrad(job.loss(), graph.array(grad, job.logits.chunks, dtype))


def accumulate(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float | None = None,
    softcap: float | None = None,
    spread_missing: bool = False,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int = 1,
    split_every: int = 8,
) -> Any:
    """An evaluation of dask arrays: loss, perplexity, accuracy and standard error, when it is asked for.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap
        As for `cross_entropy`, but that all classes of a row must be in one block.
    spread_missing, base, backend, num_threads, split_every
        As for `cross_entropy`.

    Returns
    -------
    dask.delayed.Delayed
        Of a `fastce.CrossEntropyAccumulator`, which has seen each block, and whose ``compute`` says what was found.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`; also where classes are in more than one block.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastce.dask
    >>> logits = da.from_array(np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]), chunks=(1, 3))
    >>> seen = fastce.dask.accumulate(logits, np.array([1, 2])).compute()
    >>> summary = seen.compute()
    >>> round(summary.loss, 4), summary.accuracy, summary.count
    (0.6365, 1.0, 2)
    """
    options = _Options(
        axis=axis,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        temperature=temperature,
        softcap=softcap,
        spread_missing=spread_missing,
        backend=backend,
        num_threads=num_threads,
    )
    job = _prepare(logits, target, weight, sample_weight, options, _Scales("mean", None, base), split_every)
    if job.sharded:
        where = {job.options.axis: -1}
        raise ValueError(f"logits: all classes must be in one block; rechunk({where}) does that")
    seen = job.tree(_seen_together, [job.graph.add(_seen, job.block(row), base) for row in job.rows()])
    return job.graph.delayed(seen)


# --- what is to be done -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    """What the functions of the library are called with in each task."""

    axis: int
    ignore_index: int
    label_smoothing: float
    z_loss: float
    temperature: float | None
    softcap: float | None
    spread_missing: bool
    backend: str
    num_threads: int


@dataclass(frozen=True)
class _Scales:
    """What makes the value of the losses of rows, and the gradient that of this value."""

    reduction: str
    denominator: float | None
    base: float | None


@dataclass(frozen=True)
class _Place:
    """Which block of the logits it is, and what all blocks have in common."""

    options: _Options
    class_start: int
    n_classes: int
    origin: tuple[int, ...] | None
    """Where the block begins in the logits; None where a size is unknown."""
    where: tuple[int, ...]
    """Which block it is, along each axis."""
    labelled: bool


Row = tuple[int, ...]
"""Which block along each axis but that of the classes."""

Key = tuple[Any, ...]
"""The name of a task's result."""


class _Graph:
    """Tasks, and the arrays whose blocks they read: one dictionary, since graphs of graphs take quadratic time.

    A task is a tuple of a function and arguments, some of which are keys, lists of keys, or tasks. Whatever else is an
    argument is no tuple, which dask would look into.
    """

    def __init__(self) -> None:
        self._token = uuid.uuid4().hex
        self.name = self.named("")
        self._tasks: dict[str, dict[Key, Any]] = {self.name: {}}
        self._arrays: dict[str, Any] = {}

    def named(self, what: str) -> str:
        """Return a name of this graph; dask shows it without what is different in each."""
        return "-".join(filter(None, ("fastce", what.strip("_"), self._token)))

    def add(self, function: Callable[..., Any], *arguments: Any, key: Key | None = None) -> Key:
        """Add a task, by a key whose first part is the name of an array if the result is a block of one."""
        layer = self.name if key is None else key[0]
        tasks = self._tasks.setdefault(layer, {})
        if key is None:
            key = self.named(function.__name__), len(tasks)
        tasks[key] = (function, *arguments)
        return key

    def read(self, array: Any) -> Any:
        """Let tasks read the blocks of an array, whose keys are its name and their place."""
        self._arrays[array.name] = array
        return array

    def _layers(self) -> HighLevelGraph:
        layers: dict[str, Any] = {}
        needs: dict[str, Any] = {}
        for array in self._arrays.values():
            layers.update(array.dask.layers)
            needs.update(array.dask.dependencies)
        for name, tasks in self._tasks.items():
            layers[name] = MaterializedLayer(tasks)
            needs[name] = set(self._arrays) | ({self.name} if name != self.name else set())
        return HighLevelGraph(layers, needs)

    def array(self, name: str, chunks: Any, dtype: Any) -> Any:
        """Return the array whose blocks were added under a name."""
        return da.Array(self._layers(), name, chunks, meta=np.empty((0,) * len(chunks), dtype))

    def delayed(self, key: Key) -> Any:
        """Return a single result."""
        return Delayed(key, self._layers(), layer=self.name)


@dataclass(frozen=True)
class _Job:
    """Arrays whose blocks fit one another, and what is asked of them."""

    logits: Any
    starts: list[list[float]]
    """Where blocks begin along each axis; NaN where that is unknown."""
    target: list[Any]
    """Cut like the logits, with a class axis or without; so are the next."""
    weight: Key | None
    sample_weight: Any
    row_output: Any
    grad_output: Any
    """The scalar one."""
    labelled: bool
    options: _Options
    scales: _Scales
    split_every: int
    graph: _Graph

    @property
    def sharded(self) -> bool:
        """Tell whether classes are in more than one block."""
        return len(self.shards()) > 1

    @property
    def row_chunks(self) -> tuple[tuple[float, ...], ...]:
        axis, chunks = self.options.axis, self.logits.chunks
        return tuple(chunks[:axis] + chunks[axis + 1 :])

    def rows(self) -> Iterator[Row]:
        yield from itertools.product(*(range(len(sizes)) for sizes in self.row_chunks))

    def shards(self) -> range:
        return range(self.logits.numblocks[self.options.axis])

    def place(self, row: Row, shard: int) -> tuple[int, ...]:
        """Return which block of the logits this is."""
        axis = self.options.axis
        return (*row[:axis], shard, *row[axis:])

    def block(self, row: Row, shard: int = 0, *, reads_logits: bool = True) -> Any:
        """Return what makes a _Block, as part of a task."""
        where = self.place(row, shard)
        starts = [places[i] for places, i in zip(self.starts, where, strict=True)]
        unknown = any(math.isnan(places[-1]) for places in self.starts)

        def key(array: Any) -> Key | None:
            if array is None:
                return None
            index = where if array.ndim == len(where) else row
            return (array.name, *(min(i, n - 1) for i, n in zip(index, array.numblocks, strict=True)))

        place = _Place(
            options=self.options,
            class_start=int(starts[self.options.axis]),
            n_classes=int(self.logits.shape[self.options.axis]),
            origin=None if unknown else tuple(map(int, starts)),
            where=where,
            labelled=self.labelled,
        )
        logits = key(self.logits) if reads_logits else None
        target = [key(array) for array in self.target]
        return _Block, logits, target, self.weight, key(self.sample_weight), key(self.row_output), place

    def parts(self) -> dict[tuple[Row, int], Key]:
        """Return the partial result of each block."""
        add = self.graph.add
        return {(row, shard): add(_part, self.block(row, shard)) for row in self.rows() for shard in self.shards()}

    def merged(self, parts: dict[tuple[Row, int], Key]) -> dict[Row, Key]:
        """Return those of all classes, for each block of rows."""
        return {row: self.tree(_merged, [parts[row, shard] for shard in self.shards()]) for row in self.rows()}

    def tree(self, function: Callable[[list[Any]], Any], results: list[Key]) -> Key:
        """Combine results, a few at a time."""
        step = self.split_every
        while len(results) > 1:
            results = [self.graph.add(function, results[i : i + step]) for i in range(0, len(results), step)]
        return results[0]

    def total_weight(self) -> Key | None:
        """Return what a mean divides by, found without the logits; None where that is not asked for."""
        if self.scales.reduction != "mean" or self.scales.denominator is not None:
            return None
        blocks = (self.block(row, reads_logits=False) for row in self.rows())
        return self.tree(_added, [self.graph.add(_weight_of, block) for block in blocks])

    def reduce(self, values: dict[Row, Any], total_weight: Key | None) -> None:
        """Make the value of a call from tasks for the blocks of rows: their losses, or sum and weight."""
        name = self.graph.named("loss")
        if self.scales.reduction == "none":
            for row, task in values.items():
                self.graph.add(*task, key=(name, *row))
            return
        total = self.tree(_added, [self.graph.add(*task) for task in values.values()])
        self.graph.add(_finished, total, self.scales, total_weight, key=(name,))

    def loss(self) -> Any:
        """Return that value, as an array."""
        name = self.graph.named("loss")
        if self.scales.reduction != "none":
            return self.graph.array(name, (), np.float64)
        wide = self.logits.dtype.newbyteorder("=") == np.float64
        return self.graph.array(name, self.row_chunks, np.float64 if wide else np.float32)


def _prepare(
    logits: Any,
    target: Any,
    weight: Any,
    sample_weight: Any,
    options: _Options,
    scales: _Scales,
    split_every: Any,
    grad_output: Any = None,
) -> _Job:
    """Validate all there is to know, by the front end of the library, and cut all arrays as the logits are."""
    if not isinstance(logits, da.Array):
        raise TypeError(
            f"logits: expected a dask array, got {type(logits).__name__}; dask.array.from_array makes one, and "
            "fastce.cross_entropy takes arrays"
        )
    _inputs.thread_count("num_threads", options.num_threads)
    if _inputs.thread_count("split_every", split_every) < 2:
        raise ValueError(f"split_every: expected an integer >= 2, got {split_every!r}")
    sparse = type(target) is tuple and len(target) == 2 and all(np.ndim(part) >= logits.ndim for part in target)
    given = list(target) if sparse else [target]
    given = [part if isinstance(part, da.Array) else np.asarray(part) for part in given]
    by_row = scales.reduction == "none" and grad_output is not None
    stand_ins = [_stand_in("target", part, logits, options.axis) for part in given]
    request = _inputs.loss_request(
        _like(logits),
        tuple(stand_ins) if sparse else stand_ins[0],
        weight=_like(weight) if isinstance(weight, da.Array) else weight,
        sample_weight=_stand_in("sample_weight", sample_weight, logits, options.axis),
        reduction="sum",  # the others might be worth an array of the whole's size
        denominator=None,
        base=None,
        **{name: getattr(options, name) for name in _OF_LOSSES},
    )
    _inputs.scales(scales.reduction, scales.denominator, scales.base)
    row_output = _stand_in("grad_output", grad_output, logits, options.axis) if by_row else grad_output
    _inputs.upstream(row_output, scales.reduction, request.problem.positions)
    axis = request.axis
    options = replace(options, axis=axis)
    if any(math.isnan(size) for size in logits.chunks[axis]):
        raise ValueError("logits: the sizes of blocks along the class axis are unknown; see compute_chunk_sizes")
    if logits.numblocks[axis] > 1:
        for name, usual in (("temperature", None), ("softcap", None), ("spread_missing", False)):
            if getattr(options, name) != usual:
                raise ValueError(f"{name}: all classes must be in one block for it; rechunk({{{axis}: -1}}) does that")
    row_chunks = logits.chunks[:axis] + logits.chunks[axis + 1 :]

    graph = _Graph()

    def cut(name: str, array: Any) -> Any:
        chunks = row_chunks
        if np.ndim(array) == logits.ndim:
            listed = (array.shape[axis],) if sparse else logits.chunks[axis]
            chunks = (*logits.chunks[:axis], listed, *logits.chunks[axis + 1 :])
        return graph.read(_cut(name, array, chunks))

    return _Job(
        logits=graph.read(logits),
        starts=[list(itertools.accumulate(sizes, initial=0)) for sizes in logits.chunks],
        target=[cut("target", part) for part in given],
        weight=None if weight is None else _whole(weight, graph),
        sample_weight=None if sample_weight is None else cut("sample_weight", sample_weight),
        row_output=cut("grad_output", grad_output) if by_row else None,
        grad_output=None if by_row else grad_output,
        labelled=request.problem.labels is not None,
        options=options,
        scales=scales,
        split_every=split_every,
        graph=graph,
    )


def _is_unknown(array: Any) -> bool:
    return any(math.isnan(size) for sizes in array.chunks for size in sizes)


def _like(array: Any, expected: Sequence[float] = ()) -> Array:
    """Return what is like an array, without memory; lengths that are unknown here or there are as expected, or 1."""
    shape = list(array.shape)
    for axis, length in enumerate(expected[: len(shape)]):
        if math.isnan(length) or math.isnan(shape[axis]):
            shape[axis] = length
    return np.broadcast_to(np.zeros((), array.dtype), [1 if math.isnan(n) else int(n) for n in shape])


def _stand_in(name: str, array: Any, logits: Any, axis: Any) -> Any:
    """Return the same for an array that has the rows of the logits, and classes, or not."""
    if isinstance(array, da.Array):
        expected = list(logits.shape)
        if array.ndim == logits.ndim - 1 and isinstance(axis, int) and -logits.ndim <= axis < logits.ndim:
            del expected[axis]
        return _like(array, expected)
    if array is not None and _is_unknown(logits):
        raise ValueError(
            f"{name}: the sizes of the blocks of logits are unknown, so that only a dask array of as many blocks goes "
            f"with them, got {type(array).__name__}"
        )
    return array


def _whole(weight: Any, graph: _Graph) -> Key:
    """Return the key of class weights."""
    if isinstance(weight, da.Array):
        return graph.read(weight.rechunk(-1)).name, 0
    return graph.add(np.asarray, np.asarray(weight))


def _cut(name: str, array: Any, chunks: tuple[tuple[float, ...], ...]) -> Any:
    """Return an array that is cut like this."""
    unknown = any(math.isnan(size) for sizes in chunks for size in sizes)
    if not isinstance(array, da.Array):
        array = da.from_array(np.asarray(array), chunks=chunks)
    elif unknown or _is_unknown(array):
        counts = tuple(len(sizes) for sizes in chunks)
        if array.numblocks != counts:
            raise ValueError(
                f"{name}: where sizes of blocks are unknown their numbers must be those of the logits, {counts}, "
                f"got {array.numblocks}"
            )
    elif array.chunks != chunks:
        array = array.rechunk(chunks)
    return array


# --- what a task does -------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """A block of logits with all that its tasks need, as these see it."""

    logits: Any
    """None for what does not look at them."""
    targets: list[Any]
    """One, or two for a sparse target."""
    weight: Any
    sample_weight: Any
    grad_output: Any
    """One number a row, where the reduction leaves one loss a row."""
    place: _Place

    @property
    def options(self) -> _Options:
        return self.place.options

    @property
    def target(self) -> Any:
        return tuple(self.targets) if len(self.targets) == 2 else self.targets[0]


class _Sums(NamedTuple):
    """What some rows add to the value of a call."""

    loss: float
    weight: float


@contextmanager
def _placed(block: _Block) -> Iterator[None]:
    """Let errors say where in the whole a row is, or else in which block."""
    try:
        with _inputs.origin(block.place.origin):
            yield
    except (IndexError, ValueError) as error:
        if block.place.origin is not None:
            raise
        raise type(error)(f"{error}, in block {block.place.where} of the logits") from None


def _arguments(block: _Block, *names: str) -> dict[str, Any]:
    options = {name: getattr(block.options, name) for name in names}
    return {"weight": block.weight, "sample_weight": block.sample_weight} | options


_OF_PARTS = ("axis", "ignore_index", "label_smoothing", "z_loss")
_OF_LOSSES = (*_OF_PARTS, "temperature", "softcap", "spread_missing")
_OF_CALLS = ("backend", "num_threads")


def _part(block: _Block) -> CrossEntropyPartial:
    with _placed(block):
        return fastce.partial_cross_entropy(
            block.logits,
            block.target,
            block.place.class_start,
            block.place.n_classes,
            **_arguments(block, *_OF_PARTS, *_OF_CALLS),
        )


def _merged(parts: list[CrossEntropyPartial]) -> CrossEntropyPartial:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return whole


def _value_of_part(whole: CrossEntropyPartial, scales: _Scales) -> _Sums | Array:
    if scales.reduction == "none":
        return np.asarray(whole.compute("none", base=scales.base))
    return _Sums(float(whole.compute("sum", base=scales.base)), whole.weight)


def _gradient_of_part(
    block: _Block, part: CrossEntropyPartial, whole: CrossEntropyPartial, scale: float, scales: _Scales
) -> Array:
    with _placed(block):
        return fastce.partial_cross_entropy_grad(
            block.logits,
            block.target,
            part,
            whole,
            axis=block.options.axis,
            weight=block.weight,
            reduction="none" if scales.reduction == "none" else "sum",
            base=scales.base,
            grad_output=block.grad_output if scales.reduction == "none" else scale,
            backend=block.options.backend,
            num_threads=block.options.num_threads,
        )


def _value(block: _Block, scales: _Scales) -> _Sums | Array:
    reduction = "none" if scales.reduction == "none" else "sum"
    with _placed(block):
        request = _inputs.loss_request(
            block.logits,
            block.target,
            **_arguments(block, *_OF_LOSSES),
            reduction=reduction,
            denominator=None,
            base=scales.base,
        )
        value, weight = _pipeline.loss_and_weight(request, block.options.backend, block.options.num_threads)
    return value if isinstance(value, np.ndarray) else _Sums(value, weight)


def _value_and_gradient(block: _Block, scale: float, scales: _Scales) -> tuple[_Sums | Array, Array]:
    by_row = scales.reduction == "none"
    with _placed(block):
        loss, grad = fastce.cross_entropy_with_grad(
            block.logits,
            block.target,
            **_arguments(block, *_OF_LOSSES, *_OF_CALLS),
            reduction="none" if by_row else "sum",
            base=scales.base,
            grad_output=block.grad_output if by_row else scale,
        )
    return (loss if by_row else _Sums(loss, 0.0)), grad


def _weight_of(block: _Block) -> _Sums:
    """Return what rows weigh in a mean, from labels and weights alone."""
    target, axis = block.targets[0], block.options.axis
    positions = target.shape
    if not block.place.labelled:
        positions = positions[:axis] + positions[axis + 1 :]
        weight = math.prod(positions) if block.sample_weight is None else np.sum(block.sample_weight, dtype=np.float64)
        return _Sums(0.0, float(weight))
    shape = (*positions[:axis], block.place.n_classes, *positions[axis:])
    with _placed(block):
        request = _inputs.loss_request(
            np.broadcast_to(np.float32(0), shape),
            target,
            **_arguments(block, *_OF_PARTS),
            reduction="mean",
            denominator=None,
            base=None,
        )
        chosen = _pipeline.choose(request.problem, block.options.backend, block.options.num_threads)
        return _Sums(0.0, _pipeline.check(request, chosen).weight)


def _seen(block: _Block, base: float | None) -> CrossEntropyAccumulator:
    arguments = _arguments(block, *_OF_LOSSES, *_OF_CALLS)
    sample_weight = arguments.pop("sample_weight")
    seen = CrossEntropyAccumulator(base=base, **arguments)
    with _placed(block):
        return seen.update(block.logits, block.target, sample_weight=sample_weight)


def _seen_together(seen: list[CrossEntropyAccumulator]) -> CrossEntropyAccumulator:
    whole = copy.deepcopy(seen[0])  # what a task returned stays as it was, for others and for another try
    for other in seen[1:]:
        whole.merge(other)
    return whole


def _added(sums: list[_Sums]) -> _Sums:
    with np.errstate(all="ignore"):
        return _Sums(*(float(np.sum(terms, dtype=np.longdouble)) for terms in zip(*sums, strict=True)))


def _gradient_scale(grad_output: float | None, scales: _Scales, total: _Sums | None) -> float:
    """Return what the gradient of the sum is multiplied by, but for the base; 0 where there is nothing to average."""
    scale = 1.0 if grad_output is None else float(grad_output)
    if scales.reduction != "mean":
        return scale
    denominator = total.weight if total is not None else scales.denominator
    return scale / denominator if denominator else 0.0


def _finished(sums: _Sums, scales: _Scales, total: _Sums | None) -> Any:
    denominator = 1.0 if scales.reduction == "sum" else scales.denominator
    if denominator is None:
        denominator = (sums if total is None else total).weight
    return np.float64(sums.loss / denominator if denominator else math.nan)
