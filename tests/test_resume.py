"""`fastce score --resume`: ended at any moment it goes on to the same bits; what does not fit is refused and kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastce._cli import _resume, _work, main
from files import Array

N, C = 211, 13
CHILD = Path(__file__).with_name("child_score.py")
SUMS = ("mean_loss", "perplexity", "accuracy", "rows", "ignored_rows")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nineteen rows each, three of them a task; a state after every block."""
    monkeypatch.setattr(_work, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(_work, "TASK_BYTES", 3000)
    monkeypatch.setattr(_resume, "SAVE_SECONDS", 0.0)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Logits of sizes that a sum must add in one order, labels, weights; the working directory."""
    monkeypatch.chdir(tmp_path)
    x = rng.standard_normal((N, C)) * np.exp(rng.normal(0, 4, (N, 1)))
    y = rng.integers(0, C, N)
    y[::7] = -100
    np.save("x.npy", x.astype(np.float32))
    np.save("y.npy", y)
    np.save("w.npy", rng.random(C))
    return tmp_path


COMMAND = ["score", "x.npy", "y.npy", "--weight", "w.npy", "--label-smoothing", "0.1", "--base", "2", "--json"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """Run the command; return status, results, the line on standard error."""

    def call(*more: str, command: list[str] = COMMAND) -> tuple[int, Any, str]:
        status = main([*command, *more])
        out, err = capsys.readouterr()
        return status, {k: json.loads(out)[k] for k in SUMS} if out else None, err

    return call


class Interrupts:
    """Ends the work in the middle of adding a block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        plus = _work.Result.plus

        def interrupted(result: _work.Result, found: _work.Found) -> _work.Result:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            return plus(result, found)

        monkeypatch.setattr(_work.Result, "plus", interrupted)


@pytest.mark.parametrize("output", [False, True])
def test_interrupted_again_and_again(folder: Path, run: Any, output: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of blocks, in one thread or two: the same bits as in one go, and nothing left over."""
    status, expected, _ = run(*(["--output", "whole.npy"] if output else []))
    assert status == 0
    interrupts = Interrupts(monkeypatch)
    options = ["--resume", "state", *(["--output", "parts.npy"] if output else [])]
    for number, blocks in enumerate([0, 1, 3, 2]):
        interrupts.left = blocks
        status, _, err = run(*options, "--threads", str(1 + number % 2))
        assert (status, err) == (130, "fastce: interrupted\n")
        assert not Path("parts.npy").exists()
    interrupts.left = None
    rows = json.loads(Path("state").read_text())["result"]["counts"][0]
    assert 0 < rows < N
    for _ in range(2):  # a finished run says its result again
        assert run(*options) == (0, expected, "")
    if output:
        assert Path("parts.npy").read_bytes() == Path("whole.npy").read_bytes()
    left = {path.name for path in folder.iterdir()} - {"x.npy", "y.npy", "w.npy", "state", "whole.npy", "parts.npy"}
    assert left == set()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_killed_in_the_middle(folder: Path, run: Any, how: str) -> None:
    """A child process, ended by a signal; what it was told to write is not there, and the next run completes it."""
    _, expected, _ = run("--output", "whole.npy")
    arguments = [*COMMAND, "--resume", "state", "--output", "parts.npy"]
    child = subprocess.Popen(
        [sys.executable, str(CHILD), "0.02", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and child.poll() is None:
        if Path("state").exists() and json.loads(Path("state").read_text())["result"]["counts"][0] > 0:
            break
        time.sleep(0.005)
    child.send_signal(getattr(signal, how))
    out, err = child.communicate(timeout=60)
    status, says = {
        "SIGKILL": (-signal.SIGKILL, ""),
        "SIGTERM": (143, "fastce: terminated\n"),
        "SIGINT": (130, "fastce: interrupted\n"),
    }[how]
    assert (child.returncode, out, err) == (status, "", says)
    assert not Path("parts.npy").exists()
    assert 0 < json.loads(Path("state").read_text())["result"]["counts"][0] < N
    assert run("--resume", "state", "--output", "parts.npy") == (0, expected, "")
    assert Path("parts.npy").read_bytes() == Path("whole.npy").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_request_to_end_leaves_nothing(folder: Path) -> None:
    """Without --resume: no temporary file stays behind."""
    arguments = [*COMMAND, "--output", "parts.npy"]
    child = subprocess.Popen(
        [sys.executable, str(CHILD), "0.2", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and not list(folder.glob(".fastce-*")):
        time.sleep(0.005)
    child.terminate()
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (143, "fastce: terminated\n")
    assert sorted(path.name for path in folder.iterdir()) == ["w.npy", "x.npy", "y.npy"]


@pytest.fixture
def state(folder: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The state of a run that was interrupted, with an output."""
    interrupts = Interrupts(monkeypatch)
    interrupts.left = 4
    assert run("--resume", "state", "--output", "out.npy")[0] == 130
    interrupts.left = None
    return Path("state").read_bytes()


def refused(run: Any, *options: str, command: list[str] = COMMAND) -> str:
    """The one line for a state that cannot be used; nothing is written."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    status, result, err = run(*options, command=command)
    assert (status, result) == (2, None)
    assert err.startswith("fastce: error: --resume state: ")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return str(err)


def test_damaged(state: bytes, run: Any, rng: np.random.Generator) -> None:
    """Cut anywhere, a bit flipped anywhere, another file altogether."""
    damaged = [state[:n] for n in range(0, len(state) - 1, 97)] + [
        b"null",
        b"[]",
        b"{}",
        b"[" * 10**5,
        b"\xff",
        b"0" * 2**21,
    ]
    for at in rng.integers(0, len(state) - 1, 60):
        flipped = bytearray(state)
        flipped[at] ^= 1 << int(rng.integers(0, 7))
        if flipped.split() != state.split():
            damaged.append(bytes(flipped))
    damaged.append(Path("x.npy").read_bytes())
    for content in damaged:
        Path("state").write_bytes(content)
        assert "damaged" in refused(run, "--resume", "state", "--output", "out.npy")


def test_a_checksum_is_not_enough(state: bytes, run: Any) -> None:
    """Numbers that cannot be, under a checksum that fits."""
    good = json.loads(state)
    for changes in (
        {"result": {**good["result"], "counts": [7, 0, 0]}},
        {"result": {**good["result"], "counts": [10**9, 0, 0]}},
        {"result": {**good["result"], "counts": [-19, 0, 0]}},
        {"result": {**good["result"], "counts": [19, 20, 0]}},
        {"result": {**good["result"], "loss": ["0x1p0"] * 3}},
        {"result": {**good["result"], "loss": ["one", "two"]}},
        {"result": None},
        {"partial": "../x.npy"},
        {"written": -1},
        {"made_of": 3},
        {"seconds": "long"},
    ):
        bad = {**good, **changes}
        del bad["check"]
        bad["check"] = _resume.digest(bad)
        Path("state").write_text(json.dumps(bad))
        refused(run, "--resume", "state", "--output", "out.npy")


def test_another_run(state: bytes, run: Any, folder: Path) -> None:
    """Other inputs, another option, another backend: which of them is said."""
    output = ["--resume", "state", "--output", "out.npy"]
    for wrong, more in (
        ("--base", ["--base", "3"]),
        ("--label-smoothing", ["--label-smoothing", "0.2"]),
        ("--ignore-index", ["--ignore-index", "3"]),
        ("backend", ["--backend", "numpy"]),
    ):
        assert f"whose {wrong} differs" in refused(run, *output, *more)
    assert "whose --output differs" in refused(run, "--resume", "state", "--output", "other.npy")
    assert "whose --output differs" in refused(run, "--resume", "state")
    plain = [part for part in COMMAND if part not in ("--weight", "w.npy")]
    assert "whose --weight differs" in refused(run, *output, command=plain)
    os.utime("x.npy", ns=(1, 1))
    assert "whose LOGITS differs" in refused(run, *output)


def test_another_chunk(run: Any, folder: Path) -> None:
    """A Zarr array of which one chunk was changed is another."""
    zarr = pytest.importorskip("zarr")
    x = np.load("x.npy")
    zarr.create_array(store="x.zarr", shape=x.shape, chunks=(50, C), dtype=x.dtype)[...] = x
    command = ["score", "x.zarr", "y.npy", "--json", "--resume", "state"]
    assert run(command=command)[0] == 0
    assert run(command=command)[0] == 0
    os.utime("x.zarr/c/3/0", ns=(1, 1))
    assert "whose LOGITS differs" in refused(run, command=command)


def test_the_output_is_gone(state: bytes, run: Any, folder: Path) -> None:
    """Or is shorter than what the state speaks of."""
    [unfinished] = folder.glob(".fastce-*.partial")
    os.truncate(unfinished, json.loads(state)["written"] - 1)
    assert "not there as it was left" in refused(run, "--resume", "state", "--output", "out.npy")
    unfinished.unlink()
    assert "not there as it was left" in refused(run, "--resume", "state", "--output", "out.npy")


def test_a_bad_row_leaves_nothing(folder: Path, run: Any) -> None:
    """A state of labels that have to be changed is of no use."""
    y: Array = np.load("y.npy")
    y[150] = C
    np.save("y.npy", y)
    status, _, err = run("--resume", "state", "--output", "out.npy")
    assert status == 2
    assert f"label {C} at index (150,)" in err
    assert sorted(path.name for path in folder.iterdir()) == ["w.npy", "x.npy", "y.npy"]


def test_names(folder: Path, run: Any) -> None:
    """A state must be no input, not the output, and in a folder that is there."""
    for options, message in (
        (["--resume", "x.npy"], "--resume x.npy: is one of the inputs"),
        (["--resume", "a", "--output", "a"], "--resume a: is the output"),
        (["--resume", "."], r"--resume \.: exists and is not a regular file"),
        (["--resume", "no/state"], "no/.*: No such file or directory"),
    ):
        status, _, err = run(*options)
        assert status == 2
        assert re.search(message, err)
    assert sorted(path.name for path in folder.iterdir()) == ["w.npy", "x.npy", "y.npy"]
