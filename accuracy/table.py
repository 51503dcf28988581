"""Reads and writes the table, and finds what lies above a limit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PATH = Path(__file__).with_name("table.json")

OURS = ("cython", "numba", "numpy")
"""What a system of ours begins with; the limits hold for these and for every instruction set."""

Table = dict[str, Any]
"""As it lies in the file: "measured_on", the two groups of rows "functions" and "results", and "allowed".

A row has "limit" (ULP), "of" (of what), and "measured": dtype of the arithmetic -> system -> {"ulp", "at"}. What is
"allowed" has a limit and is part of the bounds of other rows; it comes out of no call, and nothing is measured.
"""


class Figure(NamedTuple):
    """A largest error in ULP, and where it was seen; infinite where a number was due and none came."""

    ulp: float
    at: str


class Cell(NamedTuple):
    """One figure of the table and where it stands."""

    group: str
    row: str
    dtype: str
    system: str
    figure: Figure
    limit: float

    @property
    def ours(self) -> bool:
        return self.group == "functions" or self.system.split()[0] in OURS

    @property
    def too_far(self) -> bool:
        return self.ours and not self.figure.ulp <= self.limit

    def __str__(self) -> str:
        return (
            f"{self.row}, {self.dtype}, {self.system}: {self.figure.ulp:.3g} ULP, limit {self.limit} ({self.figure.at})"
        )


def read() -> Table:
    table: Table = json.loads(PATH.read_text(encoding="utf-8"))
    return table


def write(table: Table) -> None:
    PATH.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def record(
    table: Table, group: str, measured: dict[str, dict[str, dict[str, Figure]]], rows: Sequence[str] | None = None
) -> None:
    """Replace the figures of a group, or of some rows: row -> dtype -> system -> figure. Limits stay as they are."""
    unknown = measured.keys() - table[group].keys()
    if unknown:
        raise KeyError(f"no row of the table for {', '.join(sorted(unknown))}")
    for name, row in table[group].items():
        if rows is not None and name not in rows:
            continue
        row["measured"] = {
            dtype: {
                system: {"ulp": "inf" if figure.ulp == float("inf") else round(figure.ulp, 3), "at": figure.at}
                for system, figure in figures.items()
            }
            for dtype, figures in measured.get(name, {}).items()
        }


def cells(table: Table) -> Iterator[Cell]:
    for group in ("functions", "results"):
        for name, row in table[group].items():
            for dtype, figures in row["measured"].items():
                for system, found in figures.items():
                    figure = Figure(float(found["ulp"]), found["at"])
                    yield Cell(group, name, dtype, system, figure, row["limit"])
