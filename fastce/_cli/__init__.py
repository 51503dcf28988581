"""The command line: ``fastce score``, ``fastce bench``, ``fastce info`` and ``fastce demo``.

This module owns the options and how a command ends; each command is a module that is imported when it runs. Status 0
is success, 1 answers that disagree or a comparison that found what it was to fail on, 2 anything a person can put right
(one line on standard error), 130 an interrupt, 143 a request to end. An error that is none of these is a defect and
keeps its traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import fastce
from fastce import _backends
from fastce._cli._console import CommandError, Terminated, one_line

INTERRUPTED = 130
TERMINATED = 143
BROKEN_PIPE = 141

SCORE_HELP = """\
LOGITS and TARGET are .npy, .safetensors, Zarr, Parquet or Arrow files, FILE:TENSOR where a file holds several arrays,
or a quoted pattern of many files whose rows follow one another. They are read in blocks of rows, so they may be larger
than memory. TARGET holds integer labels (the shape of the logits without the class axis) or probabilities (the shape of
the logits).

examples:
  fastce score logits.npy labels.npy --ignore-index 0 --base 2
  fastce score model.safetensors:logits labels.npy --output losses.npy --json
  fastce score 'logits-*.npy' data.parquet:label --resume run.state
"""

SCORE_OUTPUT = """
it prints:
  mean loss    of the objective: with weights and smoothing, in units of --base (nats without it)
  perplexity   exp of the mean plain loss in nats, whatever the weights, the smoothing and the base
  accuracy     share of rows whose largest logit (the first of equals) is the label's, or that of the largest target
  ignored rows count in none of the three
  GB/s         bytes of logits and target in a second
A number that is not finite is null in JSON. The progress bar needs the extra: pip install "fastce[cli]".
"""

DEMO_HELP = """\
Scores a real data set that comes with the package, the logits of a classifier of handwritten digits, on every
backend, then compares their speed with plain NumPy on a large random batch. Takes about half a minute.
"""


BENCH_HELP = """\
Measures the backends on this machine against plain NumPy, the formula one writes without a library: batch sizes by
class sizes, forward and with the gradient, threads, dtypes, memory. Answers are checked before they are timed, rounds
are interleaved. Takes under two minutes; Ctrl-C keeps what was measured.

examples:
  fastce bench --json mine.json --html mine.html
  fastce bench --shapes 2048x32000,32x10 --threads 1,2 --peers
  fastce bench --compare old.json new.json --fail-above 10%
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        try:
            options = _parser().parse_args(argv)
            options.argv = sys.argv[1:] if argv is None else list(argv)
            status: int = options.run(options)
            return status
        finally:
            sys.stdout.flush()
    except Terminated:
        return _end("terminated", TERMINATED)
    except KeyboardInterrupt:
        return _end("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except CommandError as error:
        return _end(f"error: {error}", 2)
    except OSError as error:
        name = "" if error.filename is None else f"{error.filename}: "
        return _end(f"error: {name}{error.strerror or error}", 2)
    except MemoryError:
        return _end("error: not enough memory", 2)


def _end(message: str, status: int) -> int:
    print(f"fastce: {one_line(message)}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastce", description="Fast, exact cross entropy on the CPU.")
    parser.add_argument("--version", action="version", version=f"fastce {fastce.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_score(commands)
    info = commands.add_parser("info", help="show versions, CPU, threads and backends")
    info.set_defaults(run=_run_info)
    _add_demo(commands)
    _add_bench(commands)
    return parser


def _add_score(commands: Any) -> None:
    command = commands.add_parser(
        "score", help="compute the loss of arrays on disk", description=SCORE_HELP, epilog=SCORE_OUTPUT
    )
    add = command.add_argument
    add("logits", metavar="LOGITS", help="float16, bfloat16, float32 or float64")
    add("target", metavar="TARGET", help="labels or probabilities")
    add("--axis", type=int, default=-1, help="the class axis (default: the last)")
    add("--weight", metavar="FILE", help="a weight for each class")
    add("--ignore-index", type=int, default=-100, metavar="LABEL", help="rows to leave out (default: %(default)s)")
    add("--label-smoothing", type=float, default=0.0, metavar="X", help="from 0 to 1 (default: 0)")
    add("--base", type=float, metavar="B", help="unit of the loss: 2 for bits (default: nats)")
    add("--dtype", choices=["bfloat16"], help="what the two-byte elements of a .npy file of logits are")
    add("--output", metavar="FILE", help="write the loss of each row to a .npy file")
    add("--resume", metavar="STATE", help="keep what is done in this file, and go on from there after an interrupt")
    add("--json", action="store_true", help="print one JSON object")
    add("--dask", metavar="SCHEDULER", help="compute on the Dask cluster at this address, which sees the same files")
    _add_engine(command)
    command.set_defaults(run=_run_score)


def _add_demo(commands: Any) -> None:
    command = commands.add_parser("demo", help="see it work on real data, and how fast", description=DEMO_HELP)
    command.add_argument("--rows", type=int, default=2048, help="rows of the large batch (default: %(default)s)")
    command.add_argument("--classes", type=int, default=32000, help="classes of it (default: %(default)s)")
    command.add_argument("--threads", type=int, metavar="N", help="at most so many threads")
    command.set_defaults(run=_run_demo)


def _add_bench(commands: Any) -> None:
    command = commands.add_parser("bench", help="measure this machine, or compare two runs", description=BENCH_HELP)
    add = command.add_argument
    add("--full", action="store_true", help="every case there is, each measured for longer")
    add("--peers", action="store_true", help='the other systems too (pip install "fastce[peers]")')
    add("--shapes", metavar="NxC,...", help="these shapes only: rows x classes")
    add("--dtype", metavar="D,...", help="float16, bfloat16, float32, float64")
    add("--backend", metavar="B,...", help=", ".join(_backends.NAMES))
    add("--threads", metavar="N,...", help="each case with each of these numbers of threads")
    add("--json", metavar="FILE", help="write every single time")
    add("--html", metavar="FILE", help='write a page to look at (pip install "fastce[report]")')
    add("--from", dest="results", metavar="FILE", help="measure nothing: show these results")
    add("--compare", nargs=2, metavar=("OLD", "NEW"), help="measure nothing: two files of results beside each other")
    add("--fail-above", metavar="P", help="with --compare: status 1 if a case is slower by more than 10%% beyond doubt")
    command.set_defaults(run=_run_bench)


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--backend",
        choices=["auto", *_backends.NAMES],
        default="auto",
        help="what computes (default: the best that can run)",
    )
    command.add_argument("--threads", type=int, metavar="N", help="at most so many threads (default: all cores)")


def _run_score(options: argparse.Namespace) -> int:
    from fastce._cli._score import score

    return score(options)


def _run_info(options: argparse.Namespace) -> int:
    try:
        fastce.show_config()
    except ValueError as error:  # an environment variable
        raise CommandError(str(error)) from None
    return 0


def _run_bench(options: argparse.Namespace) -> int:
    from fastce._cli._bench import bench

    return bench(options)


def _run_demo(options: argparse.Namespace) -> int:
    from fastce._cli._demo import demo

    return demo(options)
