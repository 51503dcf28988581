"""``fastce score``: the loss of arrays on disk, in bounded memory.

The whole arrays are validated at once, by the library's own front end, through stand-ins of their shape and dtype
that take no memory. Then blocks of rows go through the backend that it chose, one after the other in C order, each
visited while it is in cache: the objective, the plain loss where the options make the two differ, the accuracy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastce import _dtypes, _inputs, _pipeline
from fastce._cli._console import CommandError, progress, si, table, threads
from fastce._cli._files import Index, Source, open_array
from fastce._problem import Array, Problem

BLOCK_BYTES = 4 << 20
"""Logits and dense target that are visited at a time: they fit a last-level cache, and make a call's cost vanish."""

SURE = 0.69
"""A row of smaller loss has more than half of its probability on the label: no other class comes near."""


def score(options: argparse.Namespace) -> int:
    """Run the command."""
    logits = open_array(options.logits, options.dtype == "bfloat16")
    target = open_array(options.target)
    weight = None if options.weight is None else open_array(options.weight)
    job = _prepare(options, logits, target, weight)
    if options.output is None:
        result = _run(job, None)
    else:
        output = _output_path(options.output, [source.path for source in (logits, target, weight) if source])
        with replacing(output) as file:
            header = {"descr": job.problem.real.str, "fortran_order": False, "shape": job.problem.positions}
            np.lib.format.write_array_header_1_0(file, header)
            result = _run(job, file)
    report = _report(options, job, result)
    if options.json:
        finite = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in report.items()}
        print(json.dumps(finite, allow_nan=False))
    else:
        print(_text(report))
    return 0


@dataclass(frozen=True, eq=False)
class _Job:
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

    def block(self, where: tuple[slice, ...]) -> Problem:
        """Return the problem of some rows."""
        axis = self.request.axis
        index: Index = (*where[:axis], slice(None), *where[axis:])
        logits = np.moveaxis(self.logits.read(index), axis, -1)
        values = np.empty(math.prod(logits.shape[:-1]), self.problem.real)
        if self.problem.labels is not None:
            return replace(self.problem, logits=logits, labels=self.target.read(where), row_values=values)
        dense = np.moveaxis(self.target.read(index), axis, -1)
        return replace(self.problem, logits=logits, dense=dense, row_values=values)

    def run(self, problem: Problem, first_row: int) -> tuple[float, float]:
        """Do a block: fill its row_values and return the sum of the losses and the weight of the rows."""
        totals = self.chosen.module.run(problem, self.chosen.num_threads)
        if totals.bad_row >= 0:
            raise self.bad_row(problem, totals.bad_row, first_row + totals.bad_row)
        return totals.loss, totals.weight

    def bad_row(self, problem: Problem, row: int, global_row: int) -> CommandError:
        """Return the library's own message for a row of a block, with its place in the whole."""
        at = tuple(np.unravel_index(row, problem.positions))
        whole = self.problem
        if problem.labels is not None:
            whole = replace(whole, labels=np.broadcast_to(problem.labels[at], whole.positions))
        elif problem.dense is not None:
            whole = replace(whole, dense=np.broadcast_to(problem.dense[at], whole.logits.shape))
        return CommandError(str(_inputs.bad_row(self.request._replace(problem=whole), global_row)))


def _prepare(options: argparse.Namespace, logits: Source, target: Source, weight: Source | None) -> _Job:
    try:
        request = _inputs.loss_request(
            _stand_in(logits),
            _stand_in(target),
            axis=options.axis,
            weight=None if weight is None else _class_weight(weight),
            sample_weight=None,
            ignore_index=options.ignore_index,
            label_smoothing=options.label_smoothing,
            z_loss=0.0,
            reduction="mean",
            denominator=None,
            base=options.base,
        )
        chosen = _pipeline.choose(request.problem, options.backend, options.threads)
        variant = chosen.module.describe(request.problem, chosen.num_threads).variant
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        hint = ""
        if logits.dtype.kind in "iu" and logits.itemsize == 2:
            hint = "; if they are the bits of bfloat16, say --dtype bfloat16"
        raise CommandError(f"{error}{hint}") from None
    return _Job(request, chosen, variant, logits, target)


def _stand_in(source: Source) -> Array:
    return np.broadcast_to(np.zeros((), source.dtype), source.shape)


def _class_weight(source: Source) -> Array:
    """Return what is small enough to be read; what is not a vector cannot be right and is not read."""
    return source.read((...,)) if len(source.shape) == 1 else _stand_in(source)


@dataclass
class _Sum:
    """A compensated sum (Neumaier's): exact to float64's rounding for any number of blocks."""

    total: float = 0.0
    lost: float = 0.0

    def add(self, x: float) -> None:
        total = self.total + x
        large, small = (self.total, x) if abs(self.total) >= abs(x) else (x, self.total)
        self.lost += (large - total) + small if math.isfinite(total) else 0.0
        self.total = total

    @property
    def value(self) -> float:
        return self.total + self.lost


@dataclass
class _Result:
    """What has been found so far."""

    loss: _Sum = field(default_factory=_Sum)
    weight: _Sum = field(default_factory=_Sum)
    plain_loss: _Sum = field(default_factory=_Sum)
    right: int = 0
    ignored: int = 0
    seconds: float = 0.0


def _run(job: _Job, output: BinaryIO | None) -> _Result:
    problem = job.problem
    result = _Result()
    row_bytes = problem.n_classes * (job.logits.itemsize + (0 if problem.dense is None else job.target.itemsize))
    first_row = 0
    start = time.perf_counter()
    with progress(problem.n_rows, "rows") as bar:
        for where in blocks(problem.positions, row_bytes):
            block = job.block(where)
            loss, weight = job.run(block, first_row)
            result.loss.add(loss)
            result.weight.add(weight)
            if output is not None:
                output.write((block.row_values / problem.real.type(job.request.unit)).data)
            if not job.is_plain:
                block = replace(block, target_scale=1.0, class_weight=None, class_vector=None)
                loss, _ = job.run(block, first_row)
            result.plain_loss.add(loss)
            _count(block, result)
            first_row += block.n_rows
            bar.update(block.n_rows)
    result.seconds = time.perf_counter() - start
    return result


def blocks(positions: tuple[int, ...], row_bytes: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array of positions into boxes of about BLOCK_BYTES, each a run of rows in C order."""
    if 0 in positions:
        return
    rows = max(1, BLOCK_BYTES // row_bytes)
    yield from _boxes(positions, rows)


def _boxes(shape: tuple[int, ...], rows: int) -> Iterator[tuple[slice, ...]]:
    if not shape:
        yield ()
        return
    inside = math.prod(shape[1:])
    step = max(1, rows // inside)
    for i in range(0, shape[0], step):
        part = slice(i, min(i + step, shape[0]))
        for rest in _boxes(shape[1:], rows) if inside > rows else [tuple(slice(0, n) for n in shape[1:])]:
            yield (part, *rest)


def _count(block: Problem, result: _Result) -> None:
    """Count ignored rows, and those whose first largest logit is the label's (of a dense target, the largest's).

    The loss decides for most rows, the maximum for most others; only where the label reaches it is there a tie to
    look for. A row whose loss is NaN is not right.
    """
    if block.row_values is None or block.n_rows == 0:
        return
    loss = block.row_values.reshape(block.positions)
    ignored = np.zeros(block.positions, dtype=bool)
    if block.labels is not None:
        if block.ignore_index is not None:
            ignored = block.labels == block.ignore_index
        labels = np.where(ignored, 0, block.labels).astype(np.intp)
    elif block.dense is not None:
        labels = _ordered(block.dense).argmax(axis=-1)
    right = np.asarray(loss < SURE) if block.dense is None else np.zeros(block.positions, dtype=bool)
    logits = _ordered(block.logits)
    with np.errstate(all="ignore"):
        top = logits.max(axis=-1)
    at_label = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    maybe = (at_label == top) & ~(right | ignored | np.isnan(loss))
    right[maybe] = logits[maybe].argmax(axis=-1) == labels[maybe]
    result.ignored += int(ignored.sum())
    result.right += int((right & ~ignored).sum())


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


def _report(options: argparse.Namespace, job: _Job, result: _Result) -> dict[str, Any]:
    """Return the findings by name, in the order in which they are printed."""
    rows = job.problem.n_rows
    counted = rows - result.ignored
    weight = result.weight.value
    read = job.problem.logits.size * job.logits.itemsize + math.prod(job.target.shape) * job.target.itemsize
    report = {
        "logits": options.logits,
        "shape": list(job.logits.shape),
        "dtype": job.logits.stored,
        "backend": job.chosen.name,
        "variant": job.variant,
        "threads": job.chosen.num_threads,
        "mean_loss": result.loss.value / weight / job.request.unit if weight else math.nan,
        "base": math.e if options.base is None else options.base,
        "perplexity": _exp(result.plain_loss.value / counted) if counted else math.nan,
        "accuracy": result.right / counted if counted else math.nan,
        "rows": rows,
        "ignored_rows": result.ignored,
        "seconds": result.seconds,
        "logits_per_second": job.problem.logits.size / result.seconds,
        "gb_per_second": read / result.seconds / 1e9,
    }
    return report if options.output is None else report | {"output": options.output}


def _text(report: dict[str, Any]) -> str:
    unit = {math.e: "nats", 2.0: "bits"}.get(report["base"], f"(base {report['base']:g})")
    shape = " × ".join(f"{n:,}" for n in report["shape"])
    shown = {
        "logits": f"{report['logits']}, {shape} {report['dtype']}",
        "backend": f"{report['backend']} ({report['variant']}), {threads(report['threads'])}",
        "mean loss": f"{report['mean_loss']:.9g} {unit}",
        "perplexity": f"{report['perplexity']:.7g}",
        "accuracy": f"{100 * report['accuracy']:.2f} %",
        "rows": f"{report['rows']:,}",
        "ignored rows": f"{report['ignored_rows']:,}",
        "seconds": f"{report['seconds']:.3g}",
        "logits/s": si(report["logits_per_second"]).rstrip(),
        "GB/s": f"{report['gb_per_second']:.3g}",
    }
    if "output" in report:
        shown["losses in"] = report["output"]
    return table(list(shown.items()), "<<")


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _output_path(name: str, inputs: list[Path]) -> Path:
    """Return where a link leads; refuse what must not be replaced by a file."""
    path = Path(name).resolve()
    if path.exists():
        if not path.is_file():
            raise CommandError(f"--output {name}: exists and is not a regular file")
        if any(path.samefile(other) for other in inputs):
            raise CommandError(f"--output {name}: is one of the inputs")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside the path, and put it in its place when it is complete; else leave nothing."""
    temporary = path.with_name(f".fastce-{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
