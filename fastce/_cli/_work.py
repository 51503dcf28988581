"""What `fastce score` does to blocks of rows: loss, plain loss, accuracy; on several threads, added up in order.

A block goes through one thread from reading to counting, while it is in that thread's cache; another thread waits for
the storage meanwhile, or computes. Blocks are cut by the shape alone and added in their order, so that a result has the
same bits whatever the number of threads, in whatever files the rows lie, and wherever the work was taken up again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from fastce import _dtypes, _inputs, _pipeline
from fastce._blocks import BLOCK_BYTES, boxes
from fastce._cli._console import CommandError
from fastce._files import Index, Source
from fastce._problem import Array, Output, Problem, Statistics
from fastce._sums import Sum

MOST_BLOCKS = 4
"""Blocks that are computed at the same time; more threads than that share blocks."""

SURE = 0.69
"""A row of smaller loss has more than half of its probability on the label: no other class comes near."""


RUN_BYTES = 100_000
"""What NumPy reads of a block in the time that one more call takes: a run of rows is passed over where it is longer."""

PROBE_CLASSES = 1024
"""Where one of these has a larger logit, the others of the row need not be looked at."""

FEW_CLASSES = 64

TASK_BYTES = 32 << 20
"""What a thread does before it hands over what it has found, of files that are read in any order."""


class Block(NamedTuple):
    """Where a block is."""

    row: int
    where: tuple[slice, ...]


class Found(NamedTuple):
    """What a block comes to."""

    rows: int
    loss: float
    weight: float
    plain_loss: float
    right: int
    ignored: int
    values: Array
    """The loss of each row, in the unit asked for."""


class Result(NamedTuple):
    """What all blocks come to, up to a row."""

    rows: int = 0
    loss: Sum = Sum()
    weight: Sum = Sum()
    plain_loss: Sum = Sum()
    right: int = 0
    ignored: int = 0

    def plus(self, found: Found) -> Result:
        """Return the result with the next block."""
        return Result(
            self.rows + found.rows,
            self.loss.plus(found.loss),
            self.weight.plus(found.weight),
            self.plain_loss.plus(found.plain_loss),
            self.right + found.right,
            self.ignored + found.ignored,
        )


class BadRow(CommandError):
    """A label or a probability that is not acceptable: the input has to be another."""


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be done: a problem over stand-ins, and where their elements come from."""

    request: _inputs.Request
    chosen: _pipeline.Chosen
    variant: str
    logits: Source
    target: Source

    @property
    def problem(self) -> Problem:
        return self.request.problem

    @property
    def is_plain(self) -> bool:
        """Tell whether the objective is the plain loss."""
        return self.problem.class_weight is None and self.problem.class_vector is None

    @property
    def block_bytes(self) -> int:
        """What is read for a block."""
        return BLOCK_BYTES

    def found(self, first_row: int = 0) -> Generator[Found, None, None]:
        """Do block after block, from a row on which one begins; the next ones while the caller uses this one."""
        workers = min(self.chosen.num_threads, MOST_BLOCKS)
        threads = self.chosen.num_threads // workers
        waiting: deque[Future[list[Found]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="fastce-score") as pool:
            try:
                for task in self._tasks(first_row):
                    waiting.append(pool.submit(self.do_all, task, threads))
                    if len(waiting) > workers:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    @property
    def _in_order(self) -> bool:
        """Tell whether blocks are best read one after the other: each is a task of its own then."""
        return self.logits.in_order or self.target.in_order

    def _tasks(self, first_row: int) -> Iterator[list[Block]]:
        """Cut the work into what a thread does at a time: some blocks, or one of files that are read in their order."""
        blocks = (block for block in self.blocks() if block.row >= first_row)
        count = 1 if self._in_order else max(1, TASK_BYTES // BLOCK_BYTES)
        while task := list(islice(blocks, count)):
            yield task

    def blocks(self) -> Iterator[Block]:
        """Cut the rows into blocks."""
        problem, row = self.problem, 0
        read = (self.logits,) if problem.dense is None else (self.logits, self.target)
        row_bytes = problem.n_classes * sum(source.dtype.itemsize for source in read)
        for where in boxes(problem.positions, max(1, BLOCK_BYTES // max(1, row_bytes))):
            yield Block(row, where)
            row += math.prod(part.stop - part.start for part in where)

    def begins_block(self, row: int) -> bool:
        """Tell whether a row is the first of a block, or the one after the last."""
        return row == self.problem.n_rows or any(block.row == row for block in self.blocks())

    def do_all(self, task: list[Block], threads: int) -> list[Found]:
        """Do some blocks."""
        return [self._do(self._read(block), block.row, threads) for block in task]

    def _do(self, block: Problem, first_row: int, threads: int) -> Found:
        losses = np.empty(block.n_rows, self.problem.real)
        block = replace(block, row_values=losses)
        loss, weight = self._run(block, first_row, threads)
        values = losses / self.problem.real.type(self.request.unit)
        plain_loss = loss
        if not self.is_plain:
            block = replace(block, target_scale=1.0, class_weight=None, class_vector=None)
            plain_loss, _ = self._run(block, first_row, threads)
        right, ignored = self._count(block, threads)
        return Found(block.n_rows, loss, weight, plain_loss, right, ignored, values)

    def _count(self, block: Problem, threads: int) -> tuple[int, int]:
        """Do what `count` does; for few classes by the C core, since NumPy takes long for each of many short rows."""
        if self.chosen.name != "cython" or block.labels is None or block.n_classes > FEW_CLASSES:
            return count(block)
        right = np.empty(block.n_rows, bool)
        asked = replace(block, output=Output.STATISTICS, row_values=None, statistics=Statistics(correct=right))
        self.chosen.module.run(asked, threads)
        if block.row_values is not None:
            right &= ~np.isnan(block.row_values)
        ignored = 0 if block.ignore_index is None else np.count_nonzero(block.labels == block.ignore_index)
        return int(np.count_nonzero(right)), int(ignored)

    def _read(self, block: Block) -> Problem:
        """Return the problem of some rows."""
        axis, where = self.request.axis, block.where
        index: Index = (*where[:axis], slice(None), *where[axis:])
        labels, dense = None, None
        if self.problem.labels is not None:
            labels = self.target.read(where)
        else:
            dense = np.moveaxis(self.target.read(index), axis, -1)
        logits = np.moveaxis(self.logits.read(index), axis, -1)
        return replace(self.problem, logits=logits, labels=labels, dense=dense)

    def _run(self, problem: Problem, first_row: int, threads: int) -> tuple[float, float]:
        """Do a block: fill its row_values and return the sum of the losses and the weight of the rows."""
        totals = self.chosen.module.run(problem, threads)
        if totals.bad_row >= 0:
            raise self._bad_row(problem, totals.bad_row, first_row + totals.bad_row)
        return totals.loss, totals.weight

    def _bad_row(self, problem: Problem, row: int, global_row: int) -> BadRow:
        """Return the library's own message for a row of a block, with its place in the whole."""
        at = tuple(np.unravel_index(row, problem.positions))
        whole = self.problem
        if problem.labels is not None:
            whole = replace(whole, labels=np.broadcast_to(problem.labels[at], whole.positions))
        elif problem.dense is not None:
            whole = replace(whole, dense=np.broadcast_to(problem.dense[at], whole.logits.shape))
        return BadRow(str(_inputs.bad_row(self.request._replace(problem=whole), global_row)))


def count(block: Problem) -> tuple[int, int]:
    """Count the rows whose first largest logit is the label's (of a dense target, the largest's), and ignored rows.

    The loss decides for most rows, since it says how much of the probability the label has: more than half, or less
    than a class has in the mean. Of the others the maximum is looked at, as a rule of the first classes only, and only
    where the label reaches it is there a tie to look for. A row whose loss is NaN is not right.
    """
    if block.row_values is None or block.n_rows == 0:
        return 0, 0
    loss = block.row_values.reshape(block.positions)
    ignored = np.zeros(block.positions, dtype=bool)
    if block.labels is not None:
        if block.ignore_index is not None:
            ignored = block.labels == block.ignore_index
        with np.errstate(invalid="ignore"):
            right = np.asarray((loss < SURE) & ~ignored)
            unsure = ~(right | ignored) & (loss <= math.log(block.n_classes) * (1 + 1e-4) + 1e-4)
    else:
        right, unsure = np.zeros(block.positions, dtype=bool), ~np.isnan(loss)
    if np.any(unsure):
        if block.labels is not None:
            labels = np.where(unsure, block.labels, 0).astype(np.intp)
        elif block.dense is not None:
            labels = _ordered(block.dense).argmax(axis=-1)
        at_label = _ordered(np.take_along_axis(block.logits, labels[..., None], axis=-1)[..., 0])
        if block.n_classes > 2 * PROBE_CLASSES:
            with np.errstate(invalid="ignore"):
                unsure &= ~(_ordered(block.logits[..., :PROBE_CLASSES]).max(axis=-1) > at_label)
        parts = _parts_with(unsure, block.logits.nbytes)
        top = np.zeros_like(at_label)
        with np.errstate(all="ignore"):
            for part in parts:
                _ordered(block.logits[part]).max(axis=-1, out=top[part])
        maybe = np.asarray(unsure & (at_label == top))
        right[maybe] = _ordered(block.logits[maybe]).argmax(axis=-1) == labels[maybe]
    return int(np.count_nonzero(right)), int(np.count_nonzero(ignored))


def _parts_with(wanted: Array, n_bytes: int) -> list[Any]:
    """Return where to look along the first axis: runs that are wanted, or everything where runs are short."""
    if not np.any(wanted):
        return []
    if np.ndim(wanted) == 0:
        return [...]
    first = wanted.reshape(wanted.shape[0], -1).any(axis=1)
    edges = np.flatnonzero(np.diff(first, prepend=False, append=False)).reshape(-1, 2)
    passed_over = 1 - np.count_nonzero(first) / first.size
    if len(edges) * RUN_BYTES > passed_over * n_bytes:
        return [...]
    return [slice(a, b) for a, b in edges.tolist()]


def _ordered(x: Array) -> Array:
    """Return numbers in the order of x, NaN apart, that NumPy compares fast: of 16-bit floats their bits."""
    if x.dtype.itemsize != 2 or _dtypes.name_of(x.dtype) is None:
        return x
    bits = x.astype(x.dtype.newbyteorder("="), copy=False).view(np.int16)
    sign = bits >> 15
    key: Array = bits & 0x7FFF
    key ^= sign
    key -= sign  # sign and magnitude to two's complement: -0 is 0
    return key
