"""`python -m bench`: fastce beside the other systems, as a table of ratios.

The short form takes the shapes of the README against every system that is installed; `--full` takes every case.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import warnings
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from fastce._bench.cases import CASES, Case, available_threads
from fastce._bench.measure import LIMIT, SYSTEMS, Measurement, measure
from fastce._bench.ours import OURS
from fastce._bench.system import System

NOT_OTHERS = ("fastce cython", "fastce auto", "fastce numba", LIMIT)
"""What a comparison with "the best of the others" leaves out; the naive baseline is one of the others."""


def main() -> None:
    options = _options()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore")  # those of the other systems
    cases = [case for case in CASES if options.full or options.cases or case.short]
    if options.cases:
        cases = [case for case in cases if options.cases in f"{case.regime}: {case.name}"]
    chosen = [s for s in SYSTEMS if not options.systems or s.name in options.systems.split(",")]
    print(_machine(chosen))
    for system in chosen:
        if missing := system.missing():
            print(f"{system.name} is skipped: {' and '.join(missing)} not installed")
    chosen = [system for system in chosen if not system.missing()]
    columns = [system.name for system in chosen if system.name != OURS[0].name]
    width = max([len(_label(case)) for case in cases], default=0)
    print(_header(columns, width))
    results: list[Measurement] = []
    for case in cases:
        measured = measure(case, chosen, options.seconds)
        results += measured
        print(_row(measured, columns, width), flush=True)
    print(_footer(results))
    if options.json:
        Path(options.json).write_text(json.dumps([_record(m) for m in results], indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every case, not the short form")
    parser.add_argument("--cases", metavar="TEXT", help="cases whose regime or name holds this text")
    parser.add_argument("--systems", metavar="A,B", help="these systems only, by name")
    parser.add_argument("--seconds", type=float, default=6.0, help="of rounds a case (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write every single run")
    return parser.parse_args()


def _machine(chosen: Iterable[System]) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    modules = dict.fromkeys(["fastce", "numpy", *(module for system in chosen for module in system.needs)])
    distributions = metadata.packages_distributions()
    versions = [f"{m} {metadata.version(distributions[m][0])}" for m in modules if m in distributions]
    return f"{cpu}, {available_threads()} threads, Python {platform.python_version()}, {', '.join(versions)}"


def _label(case: Case) -> str:
    return case.name.replace("float32, ", "")


def _header(columns: list[str], width: int) -> str:
    cells = [column.removeprefix("fastce ") for column in columns]
    return (
        "\nTime of each system over that of fastce cython: 3.0 is three times slower. The limit is what it takes to\n"
        "read (and write) the same arrays once; G/s are billion logits a second. Medians of interleaved rounds.\n\n"
        f"{'case':{width}}{'µs':>10} {'±':>4}{'G/s':>7}{'GB/s':>7}{'of limit':>9}  "
        + " ".join(f"{cell:>{max(6, len(cell))}}" for cell in cells)
        + "  best of the others"
    )


def _row(measured: list[Measurement], columns: list[str], width: int) -> str:
    by_name = {m.system: m for m in measured}
    case = measured[0].case
    base, limit = by_name.get(OURS[0].name), by_name[LIMIT]
    text = f"{_label(case):{width}}"
    if base is None or not base.seconds:
        return text + f" fastce cython: {base.why_not if base else 'not asked for'}"
    share = f"{base.bytes_per_second / limit.bytes_per_second:9.0%}" if limit.seconds else f"{'':9}"
    text += f"{base.median * 1e6:10.1f} {base.spread:4.0%}{case.n_logits / base.median / 1e9:7.2f}"
    text += f"{base.bytes_per_second / 1e9:7.1f}{share}  "
    cells = []
    for column in columns:
        width = max(6, len(column.removeprefix("fastce ")))
        m = by_name.get(column)
        ratio = f"{m.median / base.median:.2f}" if m and m.seconds else "-"
        cells.append(f"{'wrong' if m and m.why_not.startswith('wrong') else ratio:>{width}}")
    others = [m for m in measured if m.seconds and m.system not in NOT_OTHERS]
    best = min(others, key=lambda m: m.median, default=None)
    return text + " ".join(cells) + (f"  {best.median / base.median:.2f} ({best.system})" if best else "")


def _footer(results: list[Measurement]) -> str:
    notes = [f"{m.system}, {m.case.name}: {m.why_not}" for m in results if m.why_not.startswith(("wrong", "failed"))]
    limits = [m for m in results if m.system == LIMIT and m.seconds]
    for gradient, what in ((False, "read"), (True, "read and written")):
        if rates := sorted(m.bytes_per_second for m in limits if m.case.gradient is gradient):
            notes.append(f"memory limit, {what}: {rates[0] / 1e9:.1f} (memory) to {rates[-1] / 1e9:.1f} GB/s (cache)")
    slowest = max((m for m in results if m.system == "fastce numba"), key=lambda m: m.first_call, default=None)
    if slowest:
        notes.append(f"fastce numba, slowest first call: {slowest.first_call:.2f} s ({slowest.case.name})")
    return "\n" + "\n".join(notes)


def _record(m: Measurement) -> dict[str, object]:
    return {
        "case": dataclasses.asdict(m.case),
        "name": m.case.name,
        **{k: v for k, v in vars(m).items() if k != "case"},
    }


if __name__ == "__main__":
    main()
