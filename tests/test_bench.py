"""`fastce bench`: what is measured, what is refused, what a file holds, and how two runs are compared."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastce import _cli
from fastce._bench import compare, measure, reference, results
from fastce._bench.cases import CASES, Case, inputs, thread_counts
from fastce._bench.memory_limit import limit_call
from fastce._bench.system import Call, System
from fastce._cli import _bench

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: status, standard output, standard error."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        status = _cli.main(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def measured(tmp_path: Path, run: Run) -> Path:
    """Results of the smallest run there is."""
    path = tmp_path / "results.json"
    status, _, _ = run("--shapes", "4x3", "--backend", "numpy", "--json", path)
    assert status == 0
    return path


def faked(seconds: dict[str, list[float]], system: str = "fastce cython") -> results.Results:
    """A run of cases of these names, that is, shapes."""
    cases = [Case("asked for", tuple(map(int, name.split("x"))), threads=1) for name in seconds]
    pairs = zip(cases, seconds.values(), strict=True)
    return results.Results({}, "fake", "2026", True, [measure.Measurement(case, system, list(s)) for case, s in pairs])


# --- measuring --------------------------------------------------------------------------------------------------------


def test_table_and_file(tmp_path: Path, run: Run) -> None:
    """Every backend beside plain NumPy; rounds, errors and the machine are in the file."""
    path = tmp_path / "r.json"
    status, out, err = run("--shapes", "32x10,8x40", "--threads", "1", "--json", path)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert "plain NumPy" in lines[3]
    assert all(name in lines[3] for name in ("cython", "numba", "numpy"))
    assert [line.split(",")[0] for line in lines[4:8]] == ["32x10", "8x40"] * 2
    assert "×" in lines[4]
    found = results.read(path)
    assert found.complete
    assert found.command == f"fastce bench --shapes 32x10,8x40 --threads 1 --json {path}"
    assert {m.system for m in found.measurements} >= {"fastce cython", "fastce numba", "fastce numpy", "plain NumPy"}
    assert {"processor", "instruction set", "fastce", "numpy", "Python"} <= found.machine.keys()
    for m in found.measurements:
        if m.system != measure.LIMIT:
            assert len(m.seconds) >= 5
            assert m.loss_error is not None
            assert m.loss_error < 1e-5


def test_default_cases_are_of_the_list() -> None:
    """The grid, every dtype, threads and a fresh gradient; one list, without doubles."""
    default = [case for case in CASES if case.default]
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.dtype for case in default} == {"float16", "bfloat16", "float32", "float64"}
    assert {case.output for case in default} == {"forward", "grad", "grad fresh"}
    assert {case.n_classes for case in default} >= {2, 10, 100, 1000, 32000}
    assert {case.n_rows for case in default} >= {1, 32, 1024, 16384}
    assert {case.threads for case in default} == set(thread_counts())


def options(**given: Any) -> Any:
    names = [
        "full",
        "peers",
        "shapes",
        "dtype",
        "backend",
        "threads",
        "json",
        "html",
        "results",
        "compare",
        "fail_above",
    ]
    return type("Options", (), dict.fromkeys((*names, "fail_above")) | given)()


def test_choice_of_cases() -> None:
    shapes = _bench.choose_cases(options(shapes=[(4, 3)], dtype=["float16", "float64"], threads=[1]))
    assert [(c.shape, c.dtype, c.output, c.threads) for c in shapes] == [
        ((4, 3), dtype, output, 1) for dtype, output in itertools.product(["float16", "float64"], ["forward", "grad"])
    ]
    assert {c.name for c in _bench.choose_cases(options(full=True))} == {c.name for c in CASES}
    every = _bench.choose_cases(options(dtype=["float64"]))
    assert {c.dtype for c in every} == {"float64"}
    assert len({c.name for c in every}) == len(every)


def test_a_wrong_answer_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run) -> None:
    """It is named, the status is 1, and the file has no times of it."""

    def prepare(case: Case, arrays: Any) -> Call:
        right = reference.answer(case)
        return Call(lambda: right._replace(loss=right.loss * 1.01), lambda answer: answer)

    monkeypatch.setattr(_bench, "BACKENDS", (System("fastce numpy", ("numpy",), prepare),))
    path = tmp_path / "r.json"
    status, out, _ = run("--shapes", "4x3", "--backend", "numpy", "--json", path)
    assert status == 1
    assert "wrong" in out
    assert [m.seconds for m in results.read(path).measurements if m.system == "fastce numpy"] == [[], []]


def test_rounds_are_interleaved() -> None:
    order: list[str] = []

    def system(name: str) -> System:
        def prepare(case: Case, arrays: Any) -> Call:
            return Call(lambda: order.append(name), lambda result: reference.answer(case))

        return System(name, (), prepare)

    measured = measure.measure(Case("asked for", (4, 3)), [system("a"), system("b")], budget=0.0)
    assert [len(m.seconds) for m in measured] == [5, 5, 0]
    rounds = [name for name, _ in itertools.groupby(order)]
    assert rounds[-10:] == ["a", "b"] * 5


def test_interrupt_keeps_what_was_measured(tmp_path: Path) -> None:
    """Ctrl-C in a long run: status 130, and the complete cases are in the file."""
    path = tmp_path / "r.json"
    command = [sys.executable, "-m", "fastce", "bench", "--backend", "numpy", "--json", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("1x10,"):
                process.send_signal(signal.SIGINT)
                break
        rest, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == "fastce: interrupted\n"
    assert str(path) in rest
    found = results.read(path)
    assert not found.complete
    assert {m.case.shape for m in found.measurements} >= {(1, 2), (1, 10)}
    assert len({m.case.shape for m in found.measurements}) < 5


def test_memory_limit_moves_everything() -> None:
    """The limit's loop copies what it is given, and is a limit: not far below any kernel's rate."""
    case = Case("asked for", (2048, 1000), "grad")
    call = limit_call(case, inputs(case))
    assert call is not None
    call()
    from fastce import _core

    data, out = np.arange(4096, dtype=np.uint8), np.zeros(4096 + 64, np.uint8)
    out = out[-out.ctypes.data % 64 :][:4096]
    for streaming in (False, True):
        out[...] = 0
        _core.copy_memory(data, out, 0, streaming, 2)
        assert (out == data).all()
    with pytest.raises(ValueError, match="out: expected as many bytes"):
        _core.copy_memory(data, out[:100], 0, False, 1)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "12"], "--shapes: expected rows x classes such as 2048x32000,32x10, got '12'"),
        (["--shapes", "0x5"], "--shapes: expected rows x classes"),
        (["--shapes", "axb,1x2"], "--shapes: expected rows x classes such as 2048x32000,32x10, got 'axb'"),
        (["--dtype", "float8"], "--dtype: expected a list of float16, bfloat16, float32, float64; got 'float8'"),
        (["--backend", "cuda"], "--backend: expected a list of cython, numba, numpy; got 'cuda'"),
        (["--threads", "0"], "--threads: expected numbers from 1 to "),
        (["--threads", "100000"], "--threads: expected numbers from 1 to "),
        (["--threads", "two"], "got 'two'"),
        (["--json", "/nowhere/r.json"], "--json: there is no folder /nowhere"),
        (["--html", "/"], "--html: / is a folder"),
        (["--fail-above", "10%"], "--fail-above: only beside --compare"),
        (
            ["--compare", "a", "b", "--fail-above", "ten"],
            "--fail-above: expected a share such as 10% or 0.1, got 'ten'",
        ),
        (["--compare", "a", "b", "--shapes", "1x2"], "--compare measures nothing: --shapes has no place beside it"),
        (["--from", "a", "--full"], "--from measures nothing: --full has no place beside it"),
        (["--from", "a", "--compare", "a", "b"], "--compare and --from: expected one of them"),
        (["--from", "nothing.json"], "nothing.json: No such file or directory"),
    ],
)
def test_refused_before_anything_is_measured(run: Run, arguments: list[str], message: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_without_plotly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run) -> None:
    """A page needs plotly, which is said before the measuring; the table and the file do not."""
    monkeypatch.setattr(_bench, "find_spec", lambda name: None)
    status, out, err = run("--shapes", "4x3", "--html", tmp_path / "r.html")
    assert (status, out) == (2, "")
    assert 'pip install "fastce[report]"' in err
    assert list(tmp_path.iterdir()) == []


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(measured: Path, tmp_path: Path) -> None:
    found = results.read(measured)
    again = tmp_path / "again.json"
    results.write(again, found)
    assert again.read_text() == measured.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "results.json"]


def test_from_shows_the_same_table(measured: Path, run: Run) -> None:
    status, out, _ = run("--from", measured)
    assert status == 0
    assert "4x3, float32, forward" in out
    assert "plain NumPy" in out


def spoiled() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Ways to damage a file, and one word of what is said."""

    def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], Any]:
        def change(content: Any) -> None:
            for key in path[:-1]:
                content = content[key]
            content[path[-1]] = value

        return change

    first = "measurements", 0
    return {
        "version": put(2, "version"),
        "this fastce reads version 1": put("x", "version"),
        "neither": put("other", "format"),
        "measurements": put({}, "measurements"),
        "a measurement": put([3], "measurements"),
        "machine": put([], "machine"),
        "no field": put(1, *first, "colour"),
        "shape": put([2, "x"], *first, "case", "shape"),
        "a case of shape": put([0, 3], *first, "case", "shape"),
        "axis": put(7, *first, "case", "axis"),
        "dtype": put(7, *first, "case", "dtype"),
        "floatx": put("floatx", *first, "case", "dtype"),
        "output": put("backward", *first, "case", "output"),
        "nothing_known": put("nothing_known", *first, "case", "function"),
        "positive numbers": put([1.0, -1.0], *first, "seconds"),
        "seconds": put([1.0, "2"], *first, "seconds"),
        "damaged": put([math.inf], *first, "seconds"),
    }


@pytest.mark.parametrize("word", spoiled())
def test_a_damaged_file(measured: Path, run: Run, word: str) -> None:
    """One line that names the file; status 2."""
    content = json.loads(measured.read_text())
    spoiled()[word](content)
    measured.write_text(json.dumps(content))
    status, _, err = run("--from", measured)
    assert status == 2
    assert err.startswith(f"fastce: error: {measured}: ")
    assert err.count("\n") == 1
    assert word.rpartition(" ")[2] in err


@pytest.mark.parametrize(
    "text", [b"", b"   \n", b"{", b"[1]", b"3", b"\xff\xfe\x00", b"[" * 100_000, b'{"benchmarks": []}']
)
def test_no_file_of_results(tmp_path: Path, run: Run, text: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text)
    for arguments in (["--from", path], ["--compare", path, path]):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert str(path) in err
        assert err.count("\n") == 1


def test_a_file_of_pytest_benchmark(measured: Path, tmp_path: Path, run: Run) -> None:
    """What bench/ leaves under pytest-benchmark is read too; a foreign one is refused."""
    m = results.read(measured).measurements[0]
    extra = {"case": dataclasses.asdict(m.case), "system": m.system, "loss_error": 1e-9, "grad_error": None}
    content = {
        "machine_info": {"cpu": {"brand_raw": "A Processor"}, "python_version": "3.12"},
        "datetime": "2026-01-01",
        "benchmarks": [{"extra_info": extra, "stats": {"data": [1e-3, 2e-3, 3e-3]}}, {"extra_info": {}, "stats": {}}],
    }
    path = tmp_path / "pytest.json"
    path.write_text(json.dumps(content))
    found = results.read(path)
    assert found.machine["processor"] == "A Processor"
    assert [(x.case, x.system, x.median) for x in found.measurements] == [(m.case, m.system, 2e-3)]
    assert run("--compare", path, path)[0] == 0
    content["benchmarks"] = content["benchmarks"][1:]
    path.write_text(json.dumps(content))
    assert "none of its benchmarks is of fastce's bench/" in run("--from", path)[2]


def test_the_suites_of_bench_write_it(tmp_path: Path) -> None:
    """pytest-benchmark itself, on the smallest case."""
    root = Path(__file__).resolve().parent.parent
    path = tmp_path / "b.json"
    test = "bench/test_cross_entropy.py::test_cross_entropy[32x10, float32, forward-fastce numpy]"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test, f"--benchmark-json={path}"]
    command += ["--benchmark-max-time=0.05", "--benchmark-min-rounds=3"]
    # In a worker of pytest-xdist, which the environment tells of, pytest-benchmark measures nothing.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {m.case.shape for m in results.read(path).measurements} == {(32, 10)}


# --- comparing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), [(5, 5), (6, 4), (8, 3), (4, 12)])
def test_rejected_pairs_by_counting(m: int, n: int) -> None:
    """Against every arrangement of m and n ranks: P(U < k) is at most half of what the confidence leaves."""
    counts: dict[int, int] = {}
    for chosen in itertools.combinations(range(m + n), n):
        u = sum(rank - i for i, rank in enumerate(chosen))
        counts[u] = counts.get(u, 0) + 1
    total = math.comb(m + n, n)
    for confidence in (0.9, 0.95, 0.99):
        tail, k = 0, 0
        while (tail + counts.get(k, 0)) / total <= (1 - confidence) / 2:
            tail += counts.get(k, 0)
            k += 1
        assert compare._rejected(m, n, confidence) == k


def test_interval_covers() -> None:
    """Of many pairs of runs with one true ratio, the interval holds it about as often as it says."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(2000):
        old, new = np.exp(rng.exponential(0.1, 8)), 1.3 * np.exp(rng.exponential(0.1, 8))
        _, low, high = compare.interval(old, new, 0.95)
        held += low <= 1.3 <= high
    assert 0.93 < held / 2000 <= 1


def test_verdicts() -> None:
    noise = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0]
    old = faked({"1x2": noise, "3x4": noise, "5x6": noise, "7x8": noise[:3], "9x9": noise})
    new = faked({"1x2": [2 * s for s in noise], "3x4": noise[::-1], "5x6": [s / 2 for s in noise], "7x8": noise[:3]})
    changes = compare.compare(old, new)
    assert [(c.new.case.shape, c.verdict) for c in changes] == [
        ((1, 2), "slower"), ((3, 4), "noise"), ((7, 8), "too few runs"), ((5, 6), "faster")
    ]  # fmt: skip
    assert changes[0].ratio == pytest.approx(2, rel=0.02)
    assert compare.only_in_one(old, new) == 1
    assert [c.new.case.shape for c in compare.above(changes, 0.5)] == [(1, 2)]
    assert compare.above(changes, 1.2) == []
    assert compare.sentence(changes, 0.5).endswith("Slower by more than 50% beyond doubt: 1.")


@pytest.mark.parametrize(("limit", "status"), [("10%", 1), ("0.5", 1), ("150%", 0), (None, 0)])
def test_fail_above(tmp_path: Path, run: Run, limit: str | None, status: int) -> None:
    """The status is 1 where a case is slower by more than that beyond doubt."""
    noise = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0]
    paths = tmp_path / "old.json", tmp_path / "new.json"
    results.write(paths[0], faked({"1x2": noise}))
    results.write(paths[1], faked({"1x2": [2 * s for s in noise]}))
    got, out, _ = run("--compare", *paths, *(["--fail-above", limit] if limit else []))
    assert got == status
    assert "2.000" in out
    assert "slower" in out


def test_nothing_in_common(tmp_path: Path, run: Run) -> None:
    paths = tmp_path / "old.json", tmp_path / "new.json"
    results.write(paths[0], faked({"1x2": [1.0]}))
    results.write(paths[1], faked({"1x3": [1.0]}))
    status, _, err = run("--compare", *paths)
    assert status == 2
    assert "have no case in common" in err
