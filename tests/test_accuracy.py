"""The one table of accuracy: figures within limits, documents and C tests that say the same, and a short sweep."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

import tolerances
from matrix import expected_isas

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from accuracy import document, functions, table  # noqa: E402

EVERY = 4099
"""Of the float32: their neighbours at every decision of the algorithms come on top."""


def test_measured_figures_are_within_their_limits() -> None:
    known = table.read()
    found = list(table.cells(known))
    assert {cell.row for cell in found} == {*known["functions"], *known["results"]}
    assert [str(cell) for cell in found if cell.too_far] == []


def test_documents_show_the_table() -> None:
    for path, text in document.contents(table.read()).items():
        assert text.count(document.BEGIN) == text.count(document.END) == 1
        assert text == path.read_text(encoding="utf-8"), f"{path.name}: `python -m accuracy --documents`"


def test_the_goals_are_the_limits() -> None:
    """What was promised; a limit is never raised above it."""
    promised = {"loss": 4, "label gradient": 8, "gradient": 8, "probability": 8, "log probability": 4, "lse": 4}
    assert promised.items() <= tolerances.ULPS.items()


def test_the_c_tests_have_the_same_limits() -> None:
    [line] = re.findall(r"enum \{ (LOSS_ULPS.*?) \};", (ROOT / "tests" / "c" / "oracle.h").read_text())
    found = {name: float(ulps) for name, ulps in re.findall(r"(\w+)_ULPS = (\d+)", line)}
    limits = {name: tolerances.ULPS[name.lower().replace("_", " ")] for name in found}
    assert len(found) == 5
    assert found == limits
    [line] = re.findall(r"enum \{ (SOFTCAP_ULPS.*?) \};", (ROOT / "tests" / "c" / "oracle.h").read_text())
    allowed = [float(ulps) for ulps in re.findall(r"= (\d+)", line)]
    assert allowed == [tolerances.SOFTCAP_ULPS, tolerances.SOFTCAP_SLOPE_ULPS]


def check(found: list[functions.Found], names: tuple[str, ...] = functions.NAMES) -> None:
    limits = {name: row["limit"] for name, row in table.read()["functions"].items()}
    assert set(functions.NAMES) == set(limits)
    assert {f.function for f in found} == set(names)
    assert [f for f in found if not f.figure.ulp <= limits[f.function]] == []


@pytest.mark.skipif(shutil.which("make") is None or shutil.which("cc") is None, reason="needs make and a C compiler")
def test_exponential_and_logarithm() -> None:
    """On every instruction set of the C core that runs here."""
    found = functions.native_every(EVERY)
    check(found)
    assert [f.isa for f in found] == expected_isas() * 2 * len(functions.NAMES)


@pytest.mark.skipif(not functions.has_numba(), reason="needs Numba")
def test_exponential_and_logarithm_of_numba() -> None:
    check(functions.numba_every(EVERY), functions.OF_NUMBA)


@pytest.mark.skipif(not functions.can_emulate_neon(), reason="needs a compiler for 64-bit ARM and its emulator")
def test_exponential_and_logarithm_of_neon() -> None:
    check(functions.neon_every(EVERY))
