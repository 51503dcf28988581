"""The results of a run as a file: what is in it, how it is written, what is accepted when it is read.

A file is one JSON object: "format" (a name), "version", "machine", "command", "date", "complete", "measurements" (one
for each case and system: the case, every single time in seconds) and "memory". A file of pytest-benchmark, made of the
suites of bench/, is read as well. Whatever else is in a file, reading it either gives results or raises ResultsError.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from fastce._bench.cases import Case
from fastce._bench.measure import Measurement

FORMAT = "fastce benchmark"
VERSION = 1


class ResultsError(ValueError):
    """What is wrong with a file, in a line that names it."""


@dataclasses.dataclass
class PeakMemory:
    """What a call took beyond its arrays, in MiB."""

    system: str
    what: str
    mib: float


@dataclasses.dataclass
class Results:
    """Everything about one run."""

    machine: dict[str, str]
    command: str
    date: str
    """Of the start: ISO 8601, with the offset of the time zone."""
    complete: bool = True
    """Whether all that was asked for was measured; an interrupted run keeps what it has."""
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    memory: list[PeakMemory] = dataclasses.field(default_factory=list)


def write(path: Path, results: Results) -> None:
    """Write the file whole or not at all."""
    content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(results)}
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place, then move it there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path) -> Results:
    """Read a file of `write`, or of pytest-benchmark."""
    text = path.read_bytes()
    if not text.strip():
        raise ResultsError(f"{path}: the file is empty; expected results of `fastce bench --json`")
    try:
        return _read(json.loads(text, parse_constant=lambda name: math.nan))
    except ResultsError as error:
        raise ResultsError(f"{path}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ResultsError(f"{path}: damaged: {type(error).__name__}: {error}") from None


def _read(content: Any) -> Results:
    if isinstance(content, dict) and content.get("format") == FORMAT:
        if content.get("version") != VERSION:
            version = content.get("version")
            raise ResultsError(f"version {version!r:.20} of the format; this fastce reads version {VERSION}")
        return _results({key: value for key, value in content.items() if key not in ("format", "version")})
    if isinstance(content, dict) and {"benchmarks", "machine_info"} <= content.keys():
        return _pytest_benchmark(content)
    raise ResultsError("neither of `fastce bench --json` nor of pytest-benchmark")


def _results(content: dict[str, Any]) -> Results:
    measurements = [_measurement(item) for item in _list(content.pop("measurements", None), "measurements")]
    memory = [_record(PeakMemory, item) for item in _list(content.pop("memory", None), "memory")]
    results: Results = _record(Results, content)
    results.measurements, results.memory = measurements, memory
    return results


def _measurement(item: Any) -> Measurement:
    fields = dict(_object(item, "a measurement"))
    case = dict(_object(fields.pop("case", None), "case"))
    for name in ("shape", "options"):
        if name in case:
            case[name] = tuple(_list(case[name], name))
    fields["case"] = _case(_record(Case, case))
    measurement: Measurement = _record(Measurement, fields)
    if not all(0 < s < math.inf for s in measurement.seconds):
        raise ValueError(f"seconds of {measurement.system}: expected positive numbers")
    return measurement


def _case(case: Case) -> Case:
    if not case.shape or not all(n > 0 for n in case.shape) or case.threads < 1:
        raise ValueError(f"a case of shape {case.shape} with {case.threads} threads")
    if not -len(case.shape) <= case.axis < len(case.shape):
        raise ValueError(f"axis {case.axis} of shape {case.shape}")
    _ = case.bytes_moved  # knows its function and its dtype
    return case


def _record(kind: Any, content: Any) -> Any:
    """Make a dataclass of an object, each field of the type it is declared with."""
    hints = get_type_hints(kind)
    fields = _object(content, kind.__name__)
    for name, value in fields.items():
        if name not in hints:
            raise ValueError(f"{kind.__name__} has no field {name!r}")
        if not _fits(value, hints[name]):
            raise ValueError(f"{name}: did not expect {value!r:.60}")
    return kind(**fields)


def _fits(value: Any, hint: Any) -> bool:
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    origin = get_origin(hint)
    if origin in (list, tuple, dict):
        if not isinstance(value, origin):
            return False
        inner = [kind for kind in get_args(hint) if kind is not ...]
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return all(any(_fits(item, kind) for kind in inner) for item in items)
    if choices := get_args(hint):  # Literal or a union
        return any(_fits(value, choice) if isinstance(choice, type) else value == choice for choice in choices)
    return type(value) is hint


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what}: expected an object, got {value!r:.60}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what}: expected a list, got {value!r:.60}")
    return value


def _pytest_benchmark(content: dict[str, Any]) -> Results:
    """Take the benchmarks that carry a case: those of bench/."""
    machine = _object(content["machine_info"], "machine_info")
    cpu = machine.get("cpu")
    known = {
        "processor": str(cpu.get("brand_raw", "unknown")) if isinstance(cpu, dict) else "unknown",
        "system": " ".join(str(machine.get(key, "")) for key in ("system", "release", "machine")),
        "Python": str(machine.get("python_version", "unknown")),
    }
    measurements = []
    for item in _list(content["benchmarks"], "benchmarks"):
        extra = _object(item, "a benchmark").get("extra_info")
        if not isinstance(extra, dict) or "case" not in extra:
            continue
        fields = {key: extra.get(key) for key in ("case", "system", "loss_error", "grad_error")}
        measurements.append(_measurement({**fields, "seconds": item["stats"]["data"]}))
    if not measurements:
        raise ValueError("none of its benchmarks is of fastce's bench/")
    return Results(known, "pytest bench", str(content.get("datetime", "")), True, measurements)
