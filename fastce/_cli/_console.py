"""What the commands share in talking to a person: the one error, numbers, aligned tables, the progress bar.

Only the progress bar is somebody else's (tqdm, of the extra ``cli``). A table is a few lines of text, the same on a
terminal and in a pipe, which is not worth a dependency.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

PROGRESS_AFTER = 1.0
"""Seconds of work after which it is worth a progress bar."""


class CommandError(Exception):
    """What a person did wrong or cannot have, in a line; the command ends with status 2."""


class Terminated(KeyboardInterrupt):
    """The signal by which a system asks a process to end."""


class Progress(Protocol):
    """What a progress bar is told."""

    def update(self, n: int) -> object:
        """Count so many more rows."""

    def write(self, text: str) -> object:
        """Print a line to standard output, above the bar."""


class _Silence:
    def update(self, n: int) -> None:
        """Do nothing."""

    def write(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)


@contextmanager
def progress(total: int, unit: str) -> Iterator[Progress]:
    """Show a progress bar if this is a terminal, the work is long and tqdm is installed; else do nothing."""
    bar = None
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            tqdm.monitor_interval = 0  # no thread that watches over bars which stand still
            bar = tqdm(total=total, unit=f" {unit}", unit_scale=True, delay=PROGRESS_AFTER, leave=False)
    if bar is None:
        yield _Silence()
    else:
        with bar:
            yield bar


def one_line(text: object) -> str:
    """Return a message as a single printable line."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def table(rows: Sequence[Sequence[str]], align: str, indent: str = "") -> str:
    """Return rows of cells as aligned text; `align` has "<" or ">" for each column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def si(value: float) -> str:
    """Return a positive number with three digits and a prefix: 1.23 G."""
    for prefix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= unit:
            return f"{value / unit:.3g} {prefix}"
    return f"{value:.3g} "


def threads(count: int) -> str:
    """Return "1 thread" or "2 threads"."""
    return "1 thread" if count == 1 else f"{count} threads"
