"""``fastce bench``: how fast fastce is on this machine, beside plain NumPy, in a table, a file and a page.

What is measured and how is fastce/_bench's; this module turns options into a list of cases, shows results as they
come in, and writes them. Every path is tried before the first case, so that no measuring is lost to a typing error, and
an interrupt keeps the cases that were complete.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from fastce import _settings
from fastce._bench import compare, machine, peak_memory
from fastce._bench.baseline import BASELINE
from fastce._bench.cases import CASES, DTYPES, OUTPUTS, Case, available_threads, thread_counts
from fastce._bench.measure import LIMIT, Measurement, measure
from fastce._bench.ours import OURS
from fastce._bench.peers import PEERS
from fastce._bench.results import Results, ResultsError, read, write, write_text
from fastce._bench.system import System, short_name
from fastce._cli._console import CommandError, Progress, one_line, progress, table

BUDGET = 0.4
"""Seconds of rounds a case; a case whose systems take longer has the least number of rounds."""

FULL_BUDGET = 2.0

COPIES = 8
"""Arrays of the size of the logits that plain NumPy has at once, ours and the reference's among them."""

BACKENDS = tuple(system for system in OURS if system.name != "fastce auto")


def bench(options: argparse.Namespace) -> int:
    """Run the command."""
    _check_combination(options)
    for name, read_value in (
        ("shapes", shapes), ("dtype", dtypes), ("backend", backends), ("threads", counts), ("fail_above", percent)
    ):  # fmt: skip
        if (text := getattr(options, name)) is not None:
            setattr(options, name, read_value(text, f"--{name.replace('_', '-')}"))
    html = _place(options.html, "--html")
    if html is not None and find_spec("plotly") is None:
        raise CommandError('--html needs plotly: pip install "fastce[report]"')
    if options.compare:
        return _compare(Path(options.compare[0]), Path(options.compare[1]), html, options.fail_above)
    if options.results:
        results = _read(Path(options.results))
        print("\n".join(_lines(results)))
        _write_page(html, results)
        return 0
    return _measure(options, html)


def _check_combination(options: argparse.Namespace) -> None:
    """Refuse what would be ignored."""
    asked = [
        name for name in ("full", "peers", "shapes", "dtype", "backend", "threads", "json") if getattr(options, name)
    ]
    instead = "--compare" if options.compare else "--from" if options.results else None
    if options.compare and options.results:
        raise CommandError("--compare and --from: expected one of them")
    if instead and asked:
        raise CommandError(f"{instead} measures nothing: --{asked[0]} has no place beside it")
    if options.fail_above is not None and not options.compare:
        raise CommandError("--fail-above: only beside --compare")


def _place(name: str | None, option: str) -> Path | None:
    """Return where a file is to be written, after a look at whether it can be."""
    if name is None:
        return None
    path = Path(name)
    if path.is_dir():
        raise CommandError(f"{option}: {name} is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise CommandError(f"{option}: there is no folder {path.parent}")
    try:
        beside = path.with_name(f".{path.name}.try")
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise CommandError(f"{option}: {name}: {error.strerror or error}") from None
    return path


# --- measuring --------------------------------------------------------------------------------------------------------


def _measure(options: argparse.Namespace, html: Path | None) -> int:
    json = _place(options.json, "--json")
    cases, systems = choose_cases(options), _systems(options)
    warnings.simplefilter("ignore")  # those of the other systems
    results = Results(
        machine=machine.describe(systems),
        command=shlex.join(["fastce", *options.argv]),
        date=dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        complete=False,
    )
    names, width = [system.name for system in systems], max(len(case.name) for case in cases)
    print(f"{_machine_line(results)}\n{NOTE}\n\n{_head(names, width)}", flush=True)
    budget = FULL_BUDGET if options.full else BUDGET
    with contextlib.suppress(KeyboardInterrupt):
        with progress(len(cases) + 1, "cases") as bar:
            _run(cases, systems, budget, results, bar, width)
            if peak_memory.available() and not options.shapes:
                results.memory = peak_memory.measure(systems)
            bar.update(1)
        results.complete = True
    print("\n".join(_closing(results)))
    if json is not None:
        write(json, results)
        print(f"results: {json}")
    _write_page(html, results)
    if not results.complete:
        raise KeyboardInterrupt
    return 1 if any(m.why_not.startswith("wrong") for m in results.measurements) else 0


def _run(
    cases: Sequence[Case], systems: Sequence[System], budget: float, results: Results, bar: Progress, width: int
) -> None:
    most = machine.memory_available()
    for case in cases:
        if case.n_logits * case.itemsize * COPIES > most:
            bar.write(f"{case.name:{width}}  left out: it needs more memory than there is")
        else:
            measured = measure(case, systems, budget)
            results.measurements += measured
            bar.write(_row(measured, [system.name for system in systems], width))
        bar.update(1)


def choose_cases(options: argparse.Namespace) -> list[Case]:
    """Return the cases that the options ask for, each once."""
    if options.shapes:
        chosen = [Case("asked for", shape, output) for output in OUTPUTS for shape in options.shapes]
    else:
        chosen = [case for case in CASES if options.full or case.default]
    if options.dtype:
        chosen = [dataclasses.replace(case, dtype=dtype) for dtype in options.dtype for case in chosen]
    if options.threads:
        chosen = [dataclasses.replace(case, threads=count) for count in options.threads for case in chosen]
    return list({case.name: case for case in chosen}.values())


def _systems(options: argparse.Namespace) -> list[System]:
    wanted = options.backend or [short_name(system.name) for system in BACKENDS]
    ours = [system for system in BACKENDS if short_name(system.name) in wanted]
    for system in [*ours, *(PEERS if options.peers else ())]:
        if missing := system.missing():
            print(f"{system.name} is left out: {' and '.join(missing)} not installed", file=sys.stderr)
    return [system for system in (*ours, BASELINE, *(PEERS if options.peers else ())) if not system.missing()]


# --- what is shown ----------------------------------------------------------------------------------------------------

NOTE = "Medians of interleaved rounds, answers checked; × is how many times faster than plain NumPy."
CELL = 9


def _machine_line(results: Results) -> str:
    facts = results.machine
    parts = [facts.get("processor", "unknown processor"), f"{facts.get('threads used', 'unknown number of')} threads"]
    parts += [facts[name] for name in ("instruction set",) if name in facts]
    parts += [f"{name} {facts[name]}" for name in ("fastce", "numpy", "Python") if name in facts]
    return ", ".join(parts)


def _head(systems: Sequence[str], width: int) -> str:
    cells = [f"{'case':{width}}", f"{BASELINE.name:>12}"]
    cells += [f"{short_name(name):>{max(CELL, len(short_name(name)))}}" for name in systems if name != BASELINE.name]
    return "  ".join([*cells, f"{'best':>10}", f"{'±':>4}", f"{'GB/s':>6}", "of limit"])


def _row(measured: Sequence[Measurement], systems: Sequence[str], width: int) -> str:
    by_name = {m.system: m for m in measured}
    base = by_name.get(BASELINE.name)
    text = f"{measured[0].case.name:{width}}  {_seconds(base.median) if base and base.seconds else '-':>12}"
    for system in systems:
        if system == BASELINE.name:
            continue
        m, space = by_name[system], max(CELL, len(short_name(system)))
        cell = "wrong" if m.why_not.startswith("wrong") else "-"
        if m.seconds:
            cell = f"{base.median / m.median:.1f}×" if base and base.seconds else _seconds(m.median)
        text += f"  {cell:>{space}}"
    ours = [m for m in measured if m.system.startswith("fastce") and m.seconds]
    if ours:
        best, limit = min(ours, key=lambda m: m.median), by_name[LIMIT]
        text += f"  {_seconds(best.median):>10}  {best.spread:4.0%}  {best.bytes_per_second / 1e9:6.1f}"
        if limit.seconds:
            text += f"  {best.bytes_per_second / limit.bytes_per_second:8.0%}"
    return text


def _lines(results: Results) -> list[str]:
    """Return the table of results that were read."""
    by_case: dict[Case, list[Measurement]] = {}
    for m in results.measurements:
        by_case.setdefault(m.case, []).append(m)
    names = list(dict.fromkeys(m.system for m in results.measurements if m.system not in (LIMIT, BASELINE.name)))
    width = max((len(case.name) for case in by_case), default=0)
    lines = [f"{results.command}, {results.date}", _machine_line(results), NOTE, "", _head(names, width)]
    for case, measured in by_case.items():
        found = {m.system for m in measured}
        absent = [Measurement(case, name) for name in (*names, LIMIT) if name not in found]
        lines.append(_row([*measured, *absent], names, width))
    return lines + _closing(results)


def _closing(results: Results) -> list[str]:
    failed = [m for m in results.measurements if m.why_not.startswith(("wrong", "failed"))]
    lines = ["", *(one_line(f"{m.system}, {m.case.name}: {m.why_not}") for m in failed)]
    numba = [m for m in results.measurements if m.system == "fastce numba" and m.first_call]
    if numba:
        first = max(numba, key=lambda m: m.first_call)
        lines.append(f"numba: slowest first call {first.first_call:.2f} s ({first.case.name}), compilation included")
    rates = {
        gradient: [m for m in results.measurements if m.system == LIMIT and m.seconds and m.case.gradient is gradient]
        for gradient in (False, True)
    }
    for gradient, limits in rates.items():
        if limits:
            largest = max(limits, key=lambda m: m.case.bytes_held)
            kind = "read and written" if gradient else "read"
            lines.append(f"memory limit, {kind}: {largest.bytes_per_second / 1e9:.1f} GB/s ({largest.case.name})")
    by_system: dict[str, list[str]] = {}
    for peak in results.memory:
        by_system.setdefault(short_name(peak.system), []).append(f"{peak.what} {peak.mib:.1f}")
    if by_system:
        listed = "; ".join(f"{name}: {', '.join(parts)}" for name, parts in by_system.items())
        lines.append(f"memory beyond the arrays at 1,024 × 32,000, MiB: {listed}")
    return lines


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1.0 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}" if seconds * factor < 1000 else f"{seconds * factor:.0f} {unit}"
    raise AssertionError(seconds)


# --- files ------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Results:
    try:
        return read(path)
    except ResultsError as error:
        raise CommandError(str(error)) from None


def _write_page(html: Path | None, results: Results) -> None:
    if html is None:
        return
    from fastce._bench.report import report

    write_text(html, report(results))
    print(f"report: {html}")


def _compare(old: Path, new: Path, html: Path | None, fail_above: float | None) -> int:
    earlier, later = _read(old), _read(new)
    changes = compare.compare(earlier, later)
    if not changes:
        raise CommandError(f"{old} and {new} have no case in common")
    rows = [("case", "old", "new", "new / old", "interval", "")]
    for change in changes:
        ends = "-" if change.verdict == "too few runs" else f"{change.low:.3f} to {change.high:.3f}"
        rows.append(
            (
                change.name,
                _seconds(change.old.median),
                _seconds(change.new.median),
                f"{change.ratio:.3f}",
                ends,
                change.verdict,
            )
        )
    print(table(rows, "<>>>><"))
    print(f"\n{compare.sentence(changes, fail_above)}")
    if alone := compare.only_in_one(earlier, later):
        print(f"{alone} figures are in one of the two alone.")
    if html is not None:
        from fastce._bench.report import comparison

        write_text(html, comparison(earlier, later, changes, fail_above))
        print(f"report: {html}")
    return 1 if fail_above is not None and compare.above(changes, fail_above) else 0


# --- options ----------------------------------------------------------------------------------------------------------


def shapes(text: str, option: str) -> list[tuple[int, ...]]:
    """Read 2048x32000,32x10."""
    found: list[tuple[int, ...]] = []
    for part in text.split(","):
        numbers = part.lower().replace("×", "x").split("x")
        if len(numbers) != 2 or not all(n.strip().isdecimal() and int(n) > 0 for n in numbers):
            raise CommandError(f"{option}: expected rows x classes such as 2048x32000,32x10, got {part!r}")
        found.append((int(numbers[0]), int(numbers[1])))
    return found


def counts(text: str, option: str) -> list[int]:
    """Read 1,2."""
    try:
        found = [int(part) for part in text.split(",")]
        for count in found:
            _settings.thread_limit(count)
    except ValueError:
        found = []
    if not found or max(found) > available_threads():
        raise CommandError(
            f"{option}: expected numbers from 1 to {available_threads()}, the CPUs this process may use, as in"
            f" {','.join(map(str, thread_counts()))}; got {text!r}"
        )
    return found


def names_of(known: Sequence[str], text: str, option: str) -> list[str]:
    """Read a list of names."""
    found = text.split(",")
    for name in found:
        if name not in known:
            raise CommandError(f"{option}: expected a list of {', '.join(known)}; got {name!r}")
    return found


def dtypes(text: str, option: str) -> list[str]:
    """Read float32,float64."""
    return names_of(DTYPES, text, option)


def backends(text: str, option: str) -> list[str]:
    """Read cython,numba."""
    return names_of([short_name(system.name) for system in BACKENDS], text, option)


def percent(text: str, option: str) -> float:
    """Read 10% or 0.1."""
    try:
        value = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e6:
        raise CommandError(f"{option}: expected a share such as 10% or 0.1, got {text!r}")
    return value
