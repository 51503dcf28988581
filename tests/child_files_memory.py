"""Run as `python child_files_memory.py score LOGITS LABELS [OPTION...]` or `... gradient LOGITS LABELS GRAD`.

Prints what a call takes of memory that is the process's own (RssAnon), in which pages of files that are mapped do not
count, and of page tables (VmPTE): the most that was seen beyond what there was before, in MiB. Not a test file: see
test_files_memory.py.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fastce
from fastce._cli import main


def status(*names: str) -> int:
    """The sum of some lines of /proc/self/status, in KiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in names)


@contextlib.contextmanager
def printing_the_most() -> Iterator[None]:
    """Watch from another thread."""
    before = most = status("RssAnon", "VmPTE")
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, status("RssAnon", "VmPTE"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    print((most - before) / 1024)


def score(arguments: list[str]) -> int:
    if any(name.endswith(".parquet") for name in arguments):
        import pyarrow.parquet  # noqa: F401
    if any(name.endswith(".zarr") for name in arguments):
        import zarr

        zarr.zeros(4)[:]  # starts its threads
    said = io.StringIO()
    with printing_the_most(), contextlib.redirect_stdout(said):
        code = main(["score", *arguments, "--json"])
    print(said.getvalue())
    return code


def gradient(logits: str, labels: str, grad: str) -> int:
    """From a map into a map, which is the same one where the names are."""
    x = np.load(logits, mmap_mode="r+" if grad == logits else "r")
    out = x if grad == logits else np.load(grad, mmap_mode="r+")
    y = np.load(labels)
    with printing_the_most():
        loss = fastce.cross_entropy_with_grad(x, y, out=out).loss
        out.flush()
    print(loss)
    return 0


if __name__ == "__main__":
    fastce.cross_entropy_with_grad(np.zeros((2, 2), np.float32), [0, 1], num_threads=1)
    sys.exit(score(sys.argv[2:]) if sys.argv[1] == "score" else gradient(*sys.argv[2:]))
