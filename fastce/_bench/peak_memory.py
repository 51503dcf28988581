"""The most memory a call takes beyond its arrays: each system in a process of its own, `python -m` this module.

The kernel's mark of the largest resident size is reset before a call whose code is compiled and whose arrays are
touched, and read after it. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastce._bench.cases import Case, inputs
from fastce._bench.results import PeakMemory
from fastce._bench.system import System

SHAPE = (1_024, 32_000)
"""125 MiB of float32."""

SECONDS = 120.0
"""After which a system is given up."""


def available() -> bool:
    return Path("/proc/self/clear_refs").exists()


def measure(systems: Sequence[System]) -> list[PeakMemory]:
    """Measure what each system takes for a forward, and with a gradient; one that fails is left out."""
    found = []
    for system in systems:
        command = [sys.executable, "-m", __name__, system.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        for line in done.stdout.splitlines():
            what, _, mib = line.partition(":")
            found.append(PeakMemory(system.name, what, float(mib)))
    return found


def _extra_mib(call: Callable[[], Any]) -> float:
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024.0


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def _main(name: str) -> None:
    from fastce._bench.measure import SYSTEMS

    [system] = [system for system in SYSTEMS if system.name == name]
    for output in ("forward", "grad"):
        small = Case("peak memory", (32, SHAPE[1]), output, dtype="float32")
        if (warm := system.prepare(small, inputs(small))) is None:
            continue
        warm.run()
        case = Case("peak memory", SHAPE, output, dtype="float32")
        call = system.prepare(case, inputs(case))
        if call is not None:
            sys.stdout.write(f"{output}: {max(0.0, _extra_mib(call.run)):.1f}\n")


if __name__ == "__main__":
    _main(sys.argv[1])
