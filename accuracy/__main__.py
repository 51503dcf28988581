"""`python -m accuracy`: measures, rewrites the measured figures and the documents, and fails above a limit."""

from __future__ import annotations

import argparse
import datetime as dt
import platform
import sys
from importlib import metadata
from pathlib import Path

from accuracy import document, functions, results, table

PACKAGES = ("fastce", "numpy", "numba", "scipy", "torch", "jax", "mpmath")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m accuracy", description=__doc__)
    parser.add_argument("--check", action="store_true", help="measure and compare with the limits, but write nothing")
    parser.add_argument("--only", choices=("functions", "results"), help="measure one half; the other stays as it is")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="measure these rows; the others stay as they are")
    parser.add_argument("--documents", action="store_true", help="write the documents from the table, measure nothing")
    options = parser.parse_args()

    if options.documents:
        document.write(table.read())
        return 0
    known = table.read()
    if unknown := set(options.rows or ()) - {*known["functions"], *known["results"]}:
        parser.error(f"no row of the table is called {', '.join(sorted(unknown))}")
    measured = {}
    for group in ("functions", "results"):
        rows = None if options.rows is None else [row for row in options.rows if row in known[group]]
        if options.only in (None, group) and rows != []:
            print(f"measuring {group}", flush=True)
            measured[group] = _measure(group, rows)
            table.record(known, group, measured[group], rows)
    known["measured_on"] = _here()
    too_far = [cell for cell in table.cells(known) if cell.too_far]
    for cell in table.cells(known):
        if cell.ours and cell.group in measured:
            print(cell)
    for cell in too_far:
        print(f"above its limit: {cell}", file=sys.stderr)
    if not options.check:
        table.write(known)
        document.write(known)
    return 1 if too_far else 0


def _measure(group: str, rows: list[str] | None) -> dict[str, dict[str, dict[str, table.Figure]]]:
    if group == "functions":
        return functions.measure(functions.NAMES if rows is None else rows)
    return {row: found for row, found in results.measure(rows).items() if rows is None or row in rows}


def _here() -> dict[str, str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    installed = {d.metadata["Name"].lower() for d in metadata.distributions()}
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES if name in installed)
    return {"date": dt.datetime.now(dt.timezone.utc).date().isoformat(), "cpu": cpu, "versions": versions}


if __name__ == "__main__":
    sys.exit(main())
