"""The C core's exponential and logarithms: compiles and runs the sweep, and has mpmath look at what it found."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import mpmath

from accuracy.table import Figure

NAMES = ("exp", "log1p", "log")
ROOT = Path(__file__).resolve().parent.parent
EMULATED_EVERY = 499
"""An emulator takes too long for every number."""


class Found(NamedTuple):
    """A line of the sweep's output."""

    function: str
    dtype: str
    isa: str
    figure: Figure


def native_every(every: int) -> list[Found]:
    """Sweep every so manieth number with each instruction set that this processor runs."""
    _make("build/c/native/sweep")
    return _run([str(ROOT / "build/c/native/sweep")], every)


def can_emulate_neon() -> bool:
    return shutil.which("aarch64-linux-gnu-gcc") is not None and shutil.which("qemu-aarch64") is not None


def neon_every(every: int) -> list[Found]:
    """Sweep with NEON, compiled for it and run by an emulator."""
    _make("build/c/neon/sweep")
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", str(ROOT / "build/c/neon/sweep")]
    return [found for found in _run(emulator, every) if found.isa == "neon"]


def measure() -> dict[str, dict[str, dict[str, Figure]]]:
    """Measure every float32, and the rest as far as it goes: row -> dtype -> ISA -> figure."""
    found = native_every(1)
    if can_emulate_neon() and not any(f.isa == "neon" for f in found):
        found += neon_every(EMULATED_EVERY)
    measured: dict[str, dict[str, dict[str, Figure]]] = {}
    for function, dtype, isa, figure in found:
        measured.setdefault(function, {}).setdefault(dtype, {})[isa] = figure
    return measured


def _make(target: str) -> None:
    subprocess.run(["make", "--no-print-directory", target], cwd=ROOT, check=True)


def _run(command: list[str], every: int) -> list[Found]:
    found = []
    for line in [line for name in NAMES for line in _lines([*command, str(every), name])]:
        function, dtype, isa, error, argument, value, tried = line.split()
        ulp = error_in_ulp(function, dtype, float.fromhex(argument), float.fromhex(value))
        if dtype == "float64" or error == "inf":
            tell = f"largest of {int(tried):,} numbers"
        else:
            tell = "every float32" if every == 1 else f"every {every}th float32"
        figure = Figure(float(error) if float(error) in (0.0, float("inf")) else ulp, f"x = {argument}, {tell}")
        found.append(Found(function, dtype, isa, figure))
    return found


def _lines(command: list[str]) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def error_in_ulp(function: str, dtype: str, argument: float, value: float) -> float:
    """Return the distance of a value from the function's, in units in the last place of the latter, by mpmath."""
    bits, lowest = (23, -126) if dtype == "float32" else (52, -1022)
    with mpmath.workdps(60):
        exact = getattr(mpmath, function)(mpmath.mpf(argument))
        if exact == 0:
            return 0.0 if value == 0 else float("inf")
        exponent = max(mpmath.mag(exact) - 1, lowest)
        return float(abs(mpmath.mpf(value) - exact) / mpmath.ldexp(1, int(exponent) - bits))
