"""The functions of the C core and of Numba: runs the sweeps, and has mpmath look at what they found."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import mpmath

from accuracy.table import Figure

OF_C = ("log1p_of_fraction", "log_of_many", "log1p_of_many", "log1m_of_many")
"""What the C core alone has."""
NAMES = ("exp", "log1p", OF_C[0], "log", *OF_C[1:], "tanh", "sech_squared", "power")
OF_NUMBA = tuple(name for name in NAMES if name not in OF_C)
ROOT = Path(__file__).resolve().parent.parent
SWEPT_EXPONENT = 2.3
"""Of power, as in sweep.h and sweep_numba.py."""
EMULATED_EVERY = 499
"""An emulator takes too long for every number."""


class Found(NamedTuple):
    """A line of the sweep's output."""

    function: str
    dtype: str
    isa: str
    figure: Figure


def native_every(every: int, names: Sequence[str] = NAMES) -> list[Found]:
    """Sweep every so manieth number with each instruction set that this processor runs."""
    _make("build/c/native/sweep")
    return _run([str(ROOT / "build/c/native/sweep")], every, names)


def can_emulate_neon() -> bool:
    return shutil.which("aarch64-linux-gnu-gcc") is not None and shutil.which("qemu-aarch64") is not None


def neon_every(every: int, names: Sequence[str] = NAMES) -> list[Found]:
    """Sweep with NEON, compiled for it and run by an emulator."""
    _make("build/c/neon/sweep")
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", str(ROOT / "build/c/neon/sweep")]
    return [found for found in _run(emulator, every, names) if found.isa == "neon"]


def has_numba() -> bool:
    return find_spec("numba") is not None


def numba_every(every: int, names: Sequence[str] = NAMES) -> list[Found]:
    """Sweep the functions of the Numba backend."""
    from accuracy import sweep_numba

    found = []
    for name in (name for name in OF_NUMBA if name in names):
        for dtype in sweep_numba.dtypes(name):
            worst, tried = sweep_numba.sweep(name, dtype, every)
            found.append(_found(name, dtype, "numba", *worst, tried, every))
    return found


def measure(names: Sequence[str] = NAMES) -> dict[str, dict[str, dict[str, Figure]]]:
    """Measure every float32, and the rest as far as it goes: row -> dtype -> ISA -> figure."""
    found = native_every(1, names)
    if can_emulate_neon() and not any(f.isa == "neon" for f in found):
        found += neon_every(EMULATED_EVERY, names)
    if has_numba():
        found += numba_every(1, names)
    measured: dict[str, dict[str, dict[str, Figure]]] = {}
    for function, dtype, isa, figure in found:
        measured.setdefault(function, {}).setdefault(dtype, {})[isa] = figure
    return measured


def _make(target: str) -> None:
    subprocess.run(["make", "--no-print-directory", target], cwd=ROOT, check=True)


def _run(command: list[str], every: int, names: Sequence[str]) -> list[Found]:
    found = []
    for line in [line for name in names for line in _lines([*command, str(every), name])]:
        function, dtype, isa, error, argument, value, tried = line.split()
        numbers = float(error), float.fromhex(argument), float.fromhex(value)
        found.append(_found(function, dtype, isa, *numbers, int(tried), every))
    return found


def _found(
    function: str, dtype: str, isa: str, error: float, argument: float, value: float, tried: int, every: int
) -> Found:
    """Tell of the worst of a sweep, with mpmath's word on it."""
    if dtype == "float64" or error == float("inf"):
        tell = f"largest of {tried:,} numbers"
    else:
        tell = "every float32" if every == 1 else f"every {every}th float32"
    if error not in (0.0, float("inf")):
        error = error_in_ulp(function, dtype, argument, value)
    return Found(function, dtype, isa, Figure(error, f"x = {_hex(argument)}, {tell}"))


def _hex(x: float) -> str:
    """As C writes it."""
    digits, _, exponent = x.hex().partition("p")
    return f"{digits.rstrip('0').rstrip('.')}p{exponent}"


def _lines(command: list[str]) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def _exact(function: str, x: Any) -> Any:
    if function == "power":
        return x ** mpmath.mpf(SWEPT_EXPONENT)
    if function == "sech_squared":
        return mpmath.sech(x) ** 2
    if function == "log1m_of_many":
        return mpmath.log1p(-x)
    return getattr(mpmath, function.removesuffix("_of_fraction").removesuffix("_of_many"))(x)


def error_in_ulp(function: str, dtype: str, argument: float, value: float) -> float:
    """Return the distance of a value from the function's, in units in the last place of the latter, by mpmath."""
    bits, lowest = (23, -126) if dtype == "float32" else (52, -1022)
    with mpmath.workdps(60):
        exact = _exact(function, mpmath.mpf(argument))
        if exact == 0:
            return 0.0 if value == 0 else float("inf")
        exponent = max(mpmath.mag(exact) - 1, lowest)
        return float(abs(mpmath.mpf(value) - exact) / mpmath.ldexp(1, int(exponent) - bits))
