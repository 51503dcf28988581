"""How the command behaves: help, info, demo, pipes, terminals, interrupts, memory; mostly as a real process."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastce
from fastce._cli import _demo, main
from files import write_safetensors, write_sparse
from matrix import VARIANTS

SHOW_AT_ONCE = "import fastce._cli._console as c; c.PROGRESS_AFTER = 0"
NO_EXTRAS = "for name in ('tqdm', 'ml_dtypes', 'safetensors', 'numba'): sys.modules[name] = None"


def command(*arguments: object, first: str = "") -> list[str]:
    """The command line of a process that runs fastce; `first` is Python to run before."""
    if not first:
        return [sys.executable, "-m", "fastce", *map(str, arguments)]
    code = f"import sys\n{first}\nfrom fastce._cli import main\nsys.exit(main())"
    return [sys.executable, "-c", code, *map(str, arguments)]


def run(*arguments: object, first: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, first=first), capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def files(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    """Logits and labels, small."""
    np.save(tmp_path / "x.npy", rng.standard_normal((50, 20)).astype(np.float32))
    np.save(tmp_path / "y.npy", rng.integers(0, 20, 50))
    return [tmp_path / "x.npy", tmp_path / "y.npy"]


@pytest.fixture
def long_work(tmp_path: Path) -> list[Path]:
    """4 GiB of logits that take no space on the disk."""
    write_sparse(tmp_path / "x.npy", (2**20, 1024), np.float32)
    write_sparse(tmp_path / "y.npy", (2**20,), np.int32)
    return [tmp_path / "x.npy", tmp_path / "y.npy"]


def test_process(files: list[Path]) -> None:
    """A pipe gets the result and not a word more, with the extras of the command line and without."""
    for first in ("", NO_EXTRAS):
        done = run("score", *files, "--json", first=first)
        assert (done.returncode, done.stderr) == (0, "")
        expected = fastce.cross_entropy(np.load(files[0]), np.load(files[1]))
        assert json.loads(done.stdout)["mean_loss"] == pytest.approx(expected, rel=1e-12)


def test_base_install(files: list[Path], tmp_path: Path) -> None:
    """Without any extra: bfloat16 in both formats, info, and a named backend that says what it needs."""
    x = np.load(files[0]).astype(ml_dtypes.bfloat16)
    write_safetensors(tmp_path / "x.safetensors", x=("BF16", x))
    np.save(tmp_path / "bits.npy", x.view(np.uint16))
    expected = fastce.cross_entropy(x, np.load(files[1]))
    for logits in (["x.safetensors:x"], ["bits.npy", "--dtype", "bfloat16"]):
        done = run("score", tmp_path / logits[0], *logits[1:], files[1], "--json", first=NO_EXTRAS)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["mean_loss"] == pytest.approx(expected, rel=1e-6)
    done = run("info", first=NO_EXTRAS)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("score", *files, "--backend", "numba", first=NO_EXTRAS)
    assert done.returncode == 2
    assert re.fullmatch(r"fastce: error: backend 'numba' cannot run: .*pip install \"fastce\[numba\]\"\n", done.stderr)


def test_help_version_info(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["--help"], "score .*info .*demo"),
        (["score", "--help"], "examples:.*fastce score logits.npy labels.npy"),
        (["demo", "--help"], "half a minute"),
        (["--version"], rf"fastce {re.escape(fastce.__version__)}\n"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        out, err = capsys.readouterr()
        assert re.search(expected, out, re.DOTALL)
        assert err == ""
        assert max(map(len, out.splitlines())) <= 120
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert fastce.__version__ in out
    assert all(name in out for name in VARIANTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND (see fastce --help)"),
        (["scores"], "invalid choice: 'scores'"),
        (["score"], "required: LOGITS, TARGET (see fastce score --help)"),
        (["score", "x.npy"], "required: TARGET"),
        (["info", "more"], "unrecognized arguments: more"),
        (["demo", "--rows", "0"], "--rows and --classes: expected integers >= 1"),
        (["demo", "--threads", "0"], "num_threads: expected an integer >= 1, got 0"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastce: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_environment(files: list[Path]) -> None:
    """A variable that is not accepted is one line too."""
    for variable in ("FASTCE_BACKEND", "FASTCE_NUM_THREADS", "FASTCE_ISA"):
        for arguments in (["score", *files, "--backend", "cython"], ["info"]):
            done = run(*arguments, env=os.environ | {variable: "nonsense"})
            assert done.returncode == 2, (variable, arguments, done)
            assert re.fullmatch(f"fastce: error: {variable}: .*'nonsense'.*\n", done.stderr), (variable, arguments)


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--rows", "20", "--classes", "300", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for backend in VARIANTS:
        assert re.search(rf"^  {backend} +0\.112652\d+ +1\.119243 +96\.77%$", out, re.MULTILINE), backend
        assert re.search(rf"^  fastce {backend} +1 thread, \w+ +[\d.e-]+ ms .* ×$", out, re.MULTILINE), backend
    assert re.search(r"largest disagreement .*: \d\.\de-0[6789]", out)
    assert "cannot run" not in out
    assert max(map(len, out.splitlines())) <= 120


def test_demo_without_a_backend(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that cannot run is named with the reason and what to do."""
    monkeypatch.setattr("fastce._backends._loaded", {"numba": "No module named 'numba'", "cython": "not built"})
    assert main(["demo", "--rows", "2", "--classes", "3"]) == 0
    out = capsys.readouterr().out
    assert "numba cannot run: No module named 'numba'\n  to install it: pip install" in out
    assert "cython cannot run: not built" in out
    assert "fastce numpy" in out


def test_demo_notices_wrong_answers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = _demo.plain_numpy_with_grad
    monkeypatch.setattr(_demo, "plain_numpy_with_grad", lambda x, y: (right(x, y)[0] * 1.001, right(x, y)[1]))
    assert main(["demo", "--rows", "20", "--classes", "30"]) == 1
    assert "differ from plain NumPy's: " in capsys.readouterr().out


def test_demo_fits_into_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_demo, "memory_available", lambda: 8 * 4 * 100 * 7)
    assert main(["demo", "--rows", "20", "--classes", "100"]) == 0
    assert "7 × 100 float32, fewer than 20 as memory is short" in capsys.readouterr().out


def test_broken_pipe(files: list[Path]) -> None:
    """Whoever reads may go away at any time."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for arguments in (["score", *files], ["--help"], ["info"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command(*arguments), stdout=writer, stderr=subprocess.PIPE, timeout=60, env=environment)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("terminal", [False, True])
def test_interrupt(terminal: bool, long_work: list[Path], tmp_path: Path) -> None:
    """Ctrl-C: status 130, one line, and neither the output nor what was written of it."""
    arguments = ("score", *long_work, "--backend", "numpy", "--output", tmp_path / "losses.npy")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    # A shell lets its background jobs ignore Ctrl-C, and so would the command, started by one of them.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command(*arguments, first=SHOW_AT_ONCE),
        stdout=subprocess.PIPE,
        stderr=slave if terminal else subprocess.PIPE,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    os.close(slave)
    try:
        deadline = time.monotonic() + 60
        while not any(path.suffix == ".tmp" and path.stat().st_size > 2**15 for path in tmp_path.iterdir()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        if terminal:
            err = os.read(master, 1 << 16)
            assert b" rows" in err, "the progress bar"
            err = err[err.index(b"fastce: ") :].replace(b"\r\n", b"\n")
        assert (process.returncode, out, err) == (130, b"", b"fastce: interrupted\n")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy"]
    finally:
        process.kill()
        process.wait()
        os.close(master)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress(files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar on a terminal for long work; nothing for short work, nothing without tqdm, and the result in any case."""

    def shown() -> str:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(["score", *map(str, files)]) == 0
        assert "mean loss" in capsys.readouterr().out
        return terminal.getvalue()

    assert shown() == ""
    monkeypatch.setattr("fastce._cli._console.PROGRESS_AFTER", 0)
    monkeypatch.setattr("fastce._cli._work.BLOCK_BYTES", 100)
    assert re.search(r"\d+%.* rows", shown())
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert shown() == ""


def test_bounded_memory(tmp_path: Path) -> None:
    """A file of twice the memory that the process may have for its data, with the class axis last and first."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (256 << 20, 256 << 20))"
    shape = (2**13, 2**14)
    write_sparse(tmp_path / "x.npy", shape, np.float32)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "FASTCE_NUM_THREADS": "2"}
    for axis in (0, 1):
        write_sparse(tmp_path / "y.npy", (shape[1 - axis],), np.int32)
        done = run(
            "score", tmp_path / "x.npy", tmp_path / "y.npy", "--axis", axis, "--json", first=limit, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["perplexity"] == pytest.approx(shape[axis], rel=1e-5)
