"""Files that are not what they say: one clear line, status 2, and nothing allocated from a claim."""

from __future__ import annotations

import contextlib
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bad_inputs import BAD_INPUTS, FILES, Bad, good
from fastce._cli import main
from fastce._files import FileError, open_array
from files import BAD_NPY, BAD_SAFETENSORS, npy, npy_header, write_safetensors
from matrix import VARIANTS


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command and return the message of its one line."""
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastce: error: ")
    assert err.count("\n") == 1
    return err[len("fastce: error: ") : -1]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    np.save(tmp_path / "labels.npy", np.array([0, 2]))
    return tmp_path / "labels.npy"


@pytest.mark.parametrize("name", BAD_NPY)
def test_bad_npy(name: str, tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = BAD_NPY[name]
    path = tmp_path / "logits.npy"
    path.write_bytes(content)
    assert re.search(message, refused(capsys, "score", path, labels))


@pytest.mark.parametrize("name", BAD_SAFETENSORS)
def test_bad_safetensors(name: str, tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = BAD_SAFETENSORS[name]
    path = tmp_path / "logits.safetensors"
    path.write_bytes(content)
    assert re.search(message, refused(capsys, "score", path, labels))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_nothing_is_allocated_from_a_claim(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"logits{suffix}"
    for content, _ in (BAD_NPY if suffix == ".npy" else BAD_SAFETENSORS).values():
        path.write_bytes(content)
        tracemalloc.start()
        try:
            with contextlib.suppress(FileError):
                open_array(str(path))
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("backend", VARIANTS)
@pytest.mark.parametrize("bad", [bad for bad in BAD_INPUTS if bad.where == FILES], ids=lambda bad: bad.name)
def test_table_of_bad_inputs(bad: Bad, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = good() | bad.arguments()
    files = {name: tmp_path / f"{name}.npy" for name in arrays}
    for name, array in arrays.items():
        np.save(files[name], array)
    weight = ["--weight", files["weight"]] if "weight" in files else []
    message = refused(capsys, "score", files["logits"], files["target"], *weight, "--backend", backend)
    assert re.search(bad.message, message)


OPTIONS: dict[str, tuple[list[str], str]] = {
    "base 1": (["--base", "1"], "base: .*> 1"),
    "base nan": (["--base", "nan"], "base: .*> 1"),
    "base of letters": (["--base", "two"], "--base: invalid float value: 'two'"),
    "smoothing": (["--label-smoothing", "1.5"], r"label_smoothing: .*\[0, 1\]"),
    "axis": (["--axis", "2"], "axis.* 2 is out of bounds"),
    "threads 0": (["--threads", "0"], "num_threads: .*>= 1"),
    "backend": (["--backend", "fortran"], "--backend: invalid choice: 'fortran'"),
    "dtype": (["--dtype", "float8"], "--dtype: invalid choice: 'float8'"),
    "dtype of four bytes": (["--dtype", "bfloat16"], "needs elements of two bytes.*float32"),
    "ignored label": (["--ignore-index", "1.5"], "--ignore-index: invalid int value"),
    "unknown option": (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    "abbreviation": (["--ignore", "0"], "unrecognized arguments"),
    "no weights": (["--weight", "nowhere.npy"], "nowhere.npy: No such file or directory"),
    "output in no folder": (["--output", "no/where.npy"], "No such file or directory"),
    "output is a folder": (["--output", "."], "not a regular file"),
    "output is a device": (["--output", os.devnull], "not a regular file"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options(
    name: str, tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, message = OPTIONS[name]
    monkeypatch.chdir(tmp_path)
    np.save("logits.npy", good()["logits"])
    assert re.search(message, refused(capsys, "score", "logits.npy", labels, *options))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.npy", "logits.npy"]


def test_output_does_not_replace_an_input(tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logits = tmp_path / "logits.npy"
    np.save(logits, good()["logits"])
    os.link(logits, tmp_path / "same.npy")
    for name in ("logits.npy", "same.npy"):
        assert "is one of the inputs" in refused(capsys, "score", logits, labels, "--output", tmp_path / name)


def test_two_byte_logits_get_a_hint(tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "logits.npy", np.zeros((2, 3), np.uint16))
    message = refused(capsys, "score", tmp_path / "logits.npy", labels)
    assert re.search("uint16; if they are the bits of bfloat16, say --dtype bfloat16", message)


def test_names(tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that are missing, of no known kind, or no files at all."""
    write_safetensors(tmp_path / "x.safetensors", a=("F32", np.zeros((2, 3), np.float32)))
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    cases: dict[str, str] = {
        "none.npy": "none.npy: No such file or directory",
        "none.safetensors:x": "none.safetensors: No such file or directory",
        "data.csv": r"data.csv: expected a file named \*.*\*.safetensors or \*.npy or",
        "folder.npy": "folder.npy: not a regular file",
        "pipe.npy": "pipe.npy: not a regular file",
        "labels.npy:x": "holds one array and no tensor 'x'",
        "x.safetensors:b": "no tensor 'b'; it has 'a'",
        "x.safetensors:": "no tensor ''; it has 'a'",
    }
    for name, message in cases.items():
        assert re.search(message, refused(capsys, "score", tmp_path / name, labels))
    evil = "\x1b]0;\x07\n.npy"
    assert refused(capsys, "score", tmp_path / evil, labels).isprintable()


def test_global_index(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of a bad label or target is the place in the file, whatever the block."""
    monkeypatch.setattr("fastce._cli._work.BLOCK_BYTES", 64)
    logits = np.zeros((5, 4, 6), np.float32)
    np.save(tmp_path / "x.npy", logits)
    y = np.zeros((5, 6), np.int16)
    y[3, 5] = 4
    y[4, 0] = -3
    np.save(tmp_path / "y.npy", y)
    message = refused(capsys, "score", tmp_path / "x.npy", tmp_path / "y.npy", "--axis", 1)
    assert "label 4 at index (3, 5) is out of range for 4 classes" in message
    dense = np.zeros((5, 4, 6))
    dense[4, 2, 3] = -1
    np.save(tmp_path / "d.npy", dense)
    assert "got -1.0 at index (4, 2, 3)" in refused(
        capsys, "score", tmp_path / "x.npy", tmp_path / "d.npy", "--axis", 1
    )


def test_random_damage(tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str], rng: Any) -> None:
    """Bytes of the header changed at random: the result is a number or one line, never anything else."""
    write_safetensors(tmp_path / "good.safetensors", x=("F32", np.zeros((2, 3), np.float32)))
    files = {
        "x.npy": npy(npy_header("(2, 3)"), bytes(24)),
        "x.safetensors": (tmp_path / "good.safetensors").read_bytes(),
    }
    for name, content in files.items():
        for _ in range(300):
            damaged = bytearray(content)
            for at in rng.integers(0, len(content) - 24, rng.integers(1, 4)):
                damaged[at] = rng.integers(0, 256)
            (tmp_path / name).write_bytes(damaged)
            status = main(["score", str(tmp_path / name), str(labels)])
            out, err = capsys.readouterr()
            assert (status, err) == (0, "") or (status == 2 and out == "" and err.count("\n") == 1)
