"""Writes the table into the documents, between their markers: README.md in short, docs/accuracy.md in full."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from accuracy.table import Cell, Table, cells

ROOT = Path(__file__).resolve().parent.parent
README, FULL = ROOT / "README.md", ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- accuracy: written by `make accuracy` -->", "<!-- /accuracy -->"
DIGITS = {"float32": 23, "float64": 52}


def write(table: Table) -> None:
    for path, text in contents(table).items():
        path.write_text(text, encoding="utf-8")


def contents(table: Table) -> dict[Path, str]:
    """Return each document as it is with the blocks of this table."""
    blocks = {README: "\n".join(_short(table)), FULL: "\n".join(_full(table))}
    pattern = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    return {
        path: pattern.sub(lambda _, block=block: f"\n{block}\n\n", path.read_text(encoding="utf-8"))  # type: ignore[misc]
        for path, block in blocks.items()
    }


def _short(table: Table) -> Iterator[str]:
    """A row of the table a line: its limit, the worst of all that is ours, and of each other system."""
    found = list(cells(table))
    others = list(dict.fromkeys(cell.system for cell in found if not cell.ours))
    yield _line(["result", "limit", "of", "fastce", *others])
    yield _line(["---"] * (4 + len(others)))
    for group in ("results", "functions"):
        for name, row in table[group].items():
            mine = [cell for cell in found if (cell.group, cell.row) == (group, name)]
            columns = [[c for c in mine if c.ours], *([c for c in mine if c.system == other] for other in others)]
            yield _line([name, f"{row['limit']:g}", row["of"], *(_worst(column) for column in columns)])
    yield ""
    for row in table["allowed"].values():
        yield f"Allowed beside these: {row['limit']:g} ULP of {row['of']}."
    yield ""
    yield _where(table)


def _full(table: Table) -> Iterator[str]:
    """Every figure, a table a group and dtype, then where the worst of each row was seen."""
    titles = {
        "results": "Losses, gradients and functions of logits",
        "functions": "Functions of the C core and of Numba",
    }
    found = list(cells(table))
    yield _where(table)
    for row in table["allowed"].values():
        yield f"Allowed on top: {row['limit']:g} ULP of {row['of']}."
    for group, title in titles.items():
        for dtype in DIGITS:
            here = [cell for cell in found if (cell.group, cell.dtype) == (group, dtype)]
            names = list(dict.fromkeys(cell.system for cell in here))
            yield f"\n## {title}, {dtype}\n"
            yield _line(["", "limit", *names])
            yield _line(["---"] * (2 + len(names)))
            for row in table[group]:
                mine = [cell for cell in here if cell.row == row]
                if mine:
                    columns = ([cell for cell in mine if cell.system == name] for name in names)
                    yield _line([row, f"{table[group][row]['limit']:g}", *(_worst(column) for column in columns)])
            yield ""
            for cell in here:
                if cell.ours:
                    yield f"- {cell.row}, {cell.system}: {_number(cell)} at {cell.figure.at}"


def _where(table: Table) -> str:
    on = table["measured_on"]
    return f"Measured on {on['date']}, {on['cpu']}: {on['versions']}." if on else "Not measured yet."


def _worst(column: Iterable[Cell]) -> str:
    """The largest figure; of infinite ones, that it was no number."""
    worst = max(column, key=lambda cell: cell.figure.ulp, default=None)
    return "" if worst is None else _number(worst)


def _number(cell: Cell) -> str:
    ulp = cell.figure.ulp
    if math.isinf(ulp):
        return "no number"
    if ulp >= 2 ** DIGITS[cell.dtype]:
        return "all digits"
    return f"{ulp:.2f}" if ulp < 100 else f"{ulp:.1e}"


def _line(parts: Iterable[str]) -> str:
    return "| " + " | ".join(parts) + " |"
