"""``fastce score``: the loss of arrays in files, in bounded memory.

The whole arrays are validated at once, by the library's own front end, through stand-ins of their shape and dtype
that take no memory. Then blocks of rows go through the backend that it chose (fastce/_cli/_work.py), and their results
are added up here, written to the output, and saved from time to time where the run is to be resumable.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

import fastce
from fastce import _inputs, _pipeline
from fastce._cli._console import CommandError, Terminated, progress, si, table, threads
from fastce._cli._output import output_path, replacing
from fastce._cli._resume import Saved, State, identity, partial_name
from fastce._cli._work import BadRow, Found, Job, Result
from fastce._files import FileError, Source, open_array
from fastce._problem import Array

if TYPE_CHECKING:
    from fastce._cli._cluster import Cluster

Finder = Callable[[int], Generator[Found, None, None]]
"""What does all blocks from a row on."""


def score(options: argparse.Namespace) -> int:
    """Run the command."""
    with _terminable(), ExitStack() as stack:
        workers = None if options.dask is None else stack.enter_context(_cluster(options.dask))
        job, weight = prepare(options)
        if workers is not None:
            job = replace(job, chosen=job.chosen._replace(num_threads=workers.num_threads * (options.threads or 1)))
        elif job.logits.in_order or job.target.in_order:
            _keep_less_memory()
        inputs = [path for source in (job.logits, job.target, weight) if source for path in source.files]
        output = None if options.output is None else output_path("--output", options.output, inputs)

        def found(first_row: int) -> Generator[Found, None, None]:
            if workers is None:
                return job.found(first_row)
            return workers.found(options, job, first_row, output is not None)

        try:
            if options.resume is not None:
                result, seconds = _resumed(options, job, found, weight, output, inputs)
            else:
                result, seconds = _at_once(job, found, output)
        except FileError as error:
            raise CommandError(str(error)) from None
    report = _report(options, job, result, seconds)
    if options.json:
        finite = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in report.items()}
        print(json.dumps(finite, allow_nan=False))
    else:
        print(_text(report))
    return 0


def _opened(spec: str, bfloat16: bool = False) -> Source:
    try:
        return open_array(spec, bfloat16)
    except (FileError, ImportError) as error:
        raise CommandError(str(error)) from None


def _keep_less_memory() -> None:
    """Have threads use again what another has freed: else glibc keeps tens of MiB of decoded chunks for each."""
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # of malloc.h
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(arena_max, 1)
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 8 << 20)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the work as an interrupt does, so that nothing is left behind and the state is saved."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(*arguments: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _cluster(address: str) -> AbstractContextManager[Cluster]:
    from fastce._cli._cluster import cluster

    return cluster(address)


def _at_once(job: Job, found: Finder, output: Path | None) -> tuple[Result, float]:
    run = _Run(job, found, Saved())
    if output is None:
        run.go()
    else:
        with replacing(output) as file:
            run.start_output(file)
            run.go()
    return run.saved.result, run.saved.seconds


def _resumed(
    options: argparse.Namespace,
    job: Job,
    finder: Finder,
    weight: Source | None,
    output: Path | None,
    inputs: list[Path],
) -> tuple[Result, float]:
    """Go on where another run has ended, or begin; whatever ends this one, the next may go on."""
    path = output_path("--resume", options.resume, inputs)
    if path == output:
        raise CommandError(f"--resume {options.resume}: is the output")
    state = State(path, options.resume, _made_of(options, job, weight, output))
    found = state.load()
    if found is None:
        partial = None if output is None else partial_name()
        run = _Run(job, finder, Saved(partial=partial), state)
    else:
        if not job.begins_block(found.result.rows):
            raise CommandError(f"--resume {options.resume}: damaged: {found.result.rows} rows are no number of blocks")
        run = _Run(job, finder, found, state)
    if output is None:
        _go_or_discard(run, [path])
        return run.saved.result, run.saved.seconds
    unfinished = output.with_name(str(run.saved.partial))
    is_done = found is not None and found.result.rows == job.problem.n_rows
    if is_done and not unfinished.exists() and output.is_file() and output.stat().st_size == run.saved.written:
        return run.saved.result, run.saved.seconds
    if found is not None and not (unfinished.is_file() and unfinished.stat().st_size >= found.written):
        raise CommandError(
            f"--resume {options.resume}: {unfinished} is not there as it was left; delete the state to begin again"
        )
    with unfinished.open("xb" if found is None else "r+b") as file:
        if found is None:
            run.start_output(file)
        else:
            file.truncate(found.written)
            file.seek(found.written)
            run.output = file
        _go_or_discard(run, [path, unfinished])
    unfinished.replace(output)
    return run.saved.result, run.saved.seconds


def _go_or_discard(run: _Run, leftovers: list[Path]) -> None:
    """Do the work; where the input is to blame, a state of it is of no use to anybody."""
    try:
        run.go()
    except BadRow:
        for path in leftovers:
            path.unlink(missing_ok=True)
        raise


def _made_of(options: argparse.Namespace, job: Job, weight: Source | None, output: Path | None) -> dict[str, Any]:
    """Return what a result depends on, and what its output is called."""
    return {
        "LOGITS": identity(job.logits),
        "TARGET": identity(job.target),
        "--weight": identity(weight),
        "--axis": job.request.axis,
        "--ignore-index": options.ignore_index,
        "--label-smoothing": options.label_smoothing,
        "--base": options.base,
        "--dtype": options.dtype,
        "--output": None if output is None else str(output),
        "backend": f"{job.chosen.name} ({job.variant})",
        "version": f"fastce {fastce.__version__}, blocks of {job.block_bytes}",
    }


class _Run:
    """The work: what has been found so far, and where it goes."""

    def __init__(self, job: Job, found: Finder, saved: Saved, state: State | None = None) -> None:
        self.job = job
        self.found = found
        self.saved = saved
        self.state = state
        self.output: BinaryIO | None = None

    def start_output(self, file: BinaryIO) -> None:
        """Begin an output in an empty file."""
        problem = self.job.problem
        header = {"descr": problem.real.str, "fortran_order": False, "shape": problem.positions}
        np.lib.format.write_array_header_1_0(file, header)
        self.output = file
        self.saved = self.saved._replace(written=file.tell())

    def go(self) -> None:
        """Do what is left to do."""
        if self.state is not None:
            self.state.save(self.saved, self.output)
        try:
            self._add_all()
        finally:
            if self.state is not None:
                self.state.save(self.saved, self.output)

    def _add_all(self) -> None:
        before, start = self.saved.seconds, time.perf_counter()
        with (
            progress(self.job.problem.n_rows, "rows") as bar,
            closing(self.found(self.saved.result.rows)) as found_blocks,
        ):
            bar.update(self.saved.result.rows)
            for found in found_blocks:
                written = self.saved.written
                if self.output is not None:
                    self.output.write(found.values.data)
                    written += found.values.nbytes
                # One step, so that an interrupt finds a block in it or not.
                self.saved = self.saved._replace(
                    result=self.saved.result.plus(found), seconds=before + time.perf_counter() - start, written=written
                )
                bar.update(found.rows)
                if self.state is not None and self.state.due():
                    self.state.save(self.saved, self.output)
        self.saved = self.saved._replace(seconds=before + time.perf_counter() - start)


def prepare(options: argparse.Namespace) -> tuple[Job, Source | None]:
    """Open the files and check everything but the rows; return the job, and the class weights."""
    logits = _opened(options.logits, options.dtype == "bfloat16")
    target = _opened(options.target)
    weight = None if options.weight is None else _opened(options.weight)
    for source in (logits, target):
        if source.by_rows and len(source.shape) > 1 and options.axis in (0, -len(source.shape)):
            raise CommandError(f"{source.name}: is read by rows, so the class axis cannot be the first")
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
    return Job(request, chosen, variant, logits, target), weight


def _stand_in(source: Source) -> Array:
    return np.broadcast_to(np.zeros((), source.dtype), source.shape)


def _class_weight(source: Source) -> Array:
    """Return what is small enough to be read; what is not a vector cannot be right and is not read."""
    return source.read((...,)) if len(source.shape) == 1 else _stand_in(source)


def _report(options: argparse.Namespace, job: Job, result: Result, seconds: float) -> dict[str, Any]:
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
        "seconds": seconds,
        "logits_per_second": job.problem.logits.size / seconds,
        "gb_per_second": read / seconds / 1e9,
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
