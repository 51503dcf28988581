"""Run as `python child_score_memory.py LOGITS LABELS [OPTION...]`: scores files and prints, as JSON, what that took.

Of memory that is the process's own (RssAnon), which pages of files that are mapped do not count in, and of page tables
(VmPTE), the most that was seen beyond what there was before, in MiB. Not a test file: see test_score_memory.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
from pathlib import Path

import numpy as np

import fastce
from fastce._cli import main


def status(*names: str) -> int:
    """The sum of some lines of /proc/self/status, in KiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in names)


def measure(arguments: list[str]) -> dict[str, float]:
    fastce.cross_entropy(np.zeros((2, 2), np.float32), [0, 1], num_threads=1)
    if any(name.endswith((".parquet", ".arrow")) for name in arguments):
        import pyarrow.parquet  # noqa: F401
    if any(name.endswith(".zarr") for name in arguments):
        import zarr

        zarr.zeros(4)[:]  # starts its threads
    before = status("RssAnon", "VmPTE")
    most, done = before, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, status("RssAnon", "VmPTE"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            code = main(["score", *arguments, "--json"])
    finally:
        done.set()
        watcher.join()
    if code:
        sys.exit(code)
    return {"mib": (most - before) / 1024, **json.loads(printed.getvalue())}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1:])))
