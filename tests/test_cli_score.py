"""What `fastce score` computes: every option, every format, in blocks of any size."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import fastce
from fastce._cli import _work, main
from files import Array, npy, npy_header, write_safetensors
from matrix import VARIANTS

N, C = 41, 13


@pytest.fixture(params=[1, 1000, 4 << 20], ids="blocks of {}".format)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row at a time, some rows at a time, everything at once."""
    monkeypatch.setattr(_work, "BLOCK_BYTES", request.param)


@pytest.fixture
def x(rng: np.random.Generator) -> Array:
    return (rng.standard_normal((N, C)) * 2).astype(np.float32)


@pytest.fixture
def y(rng: np.random.Generator) -> Array:
    return rng.integers(0, C, N)


@pytest.fixture
def score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(logits: Any, target: Any, *options: object) -> dict[str, Any]:
        """Score arrays, or files, and return the JSON object."""
        paths = []
        for name, given in (("logits", logits), ("target", target)):
            if isinstance(given, np.ndarray):
                np.save(tmp_path / f"{name}.npy", given)
                given = tmp_path / f"{name}.npy"
            paths.append(str(given))
        assert main(["score", *paths, "--json", *map(str, options)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.count("\n") == 1
        result: dict[str, Any] = json.loads(out, parse_constant=pytest.fail)
        return result

    return run


def softmax64(x: Array) -> Array:
    e = np.exp(x.astype(np.float64) - x.astype(np.float64).max(axis=-1, keepdims=True))
    p: Array = e / e.sum(axis=-1, keepdims=True)
    return p


def near(value: float) -> Any:
    return pytest.approx(value, rel=3e-6)


@pytest.mark.parametrize("backend", VARIANTS)
def test_plain(backend: str, x: Array, y: Array, score: Any, blocks: None) -> None:
    found = score(x, y, "--backend", backend, "--threads", 1)
    nats = -np.log(softmax64(x)[np.arange(N), y]).mean()
    assert found["mean_loss"] == near(nats)
    assert found["perplexity"] == near(math.exp(nats))
    assert found["accuracy"] == (x.argmax(axis=1) == y).mean()
    assert (found["rows"], found["ignored_rows"]) == (N, 0)
    assert (found["backend"], found["threads"]) == (backend, 1)
    assert found["variant"] in VARIANTS[backend]
    assert found["shape"] == [N, C]
    assert found["dtype"] == "float32"
    assert found["base"] == math.e
    assert found["seconds"] > 0
    assert found["logits_per_second"] == pytest.approx(N * C / found["seconds"])
    assert found["gb_per_second"] == pytest.approx((x.nbytes + y.nbytes) / found["seconds"] / 1e9)
    assert "output" not in found


def test_worked_examples(score: Any) -> None:
    """True class probability 0.7 is 0.3567 nats, 0.775 is 0.3677 bits."""
    p = np.log(np.array([[0.7, 0.2, 0.1], [0.2, 0.1, 0.7]]))
    assert score(p, np.array([0, 2]))["mean_loss"] == pytest.approx(0.35667494393873245, rel=1e-15)
    q = np.log(np.array([[0.775, 0.225]]))
    found = score(q, np.array([0]), "--base", 2)
    assert found["mean_loss"] == pytest.approx(0.36773178, rel=1e-7)
    assert found["perplexity"] == pytest.approx(1 / 0.775, rel=1e-14)


def test_weights_smoothing_ignored_rows_and_base(x: Array, y: Array, score: Any, tmp_path: Path, blocks: None) -> None:
    """The objective has the options; perplexity and accuracy are plain."""
    w = np.arange(C, dtype=np.float32) / 4
    np.save(tmp_path / "w.npy", w)
    write_safetensors(tmp_path / "w.safetensors", w=("F32", w))
    kept = y != 3
    plain = -np.log(softmax64(x)[np.arange(N), y])[kept].mean()
    for weight in ("w.npy", "w.safetensors", "w.safetensors:w"):
        options = ("--weight", tmp_path / weight, "--label-smoothing", 0.25, "--ignore-index", 3, "--base", 10)
        found = score(x, y, *options)
        expected = fastce.cross_entropy(x, y, weight=w, label_smoothing=0.25, ignore_index=3, base=10)
        assert found["mean_loss"] == pytest.approx(expected, rel=1e-12)
        assert found["perplexity"] == near(math.exp(plain))
        assert found["accuracy"] == (x.argmax(axis=1) == y)[kept].mean()
        assert found["ignored_rows"] == N - kept.sum()
        assert found["base"] == 10
    for options, arguments in (
        (["--label-smoothing", 0.1], {"label_smoothing": 0.1}),
        (["--weight", tmp_path / "w.npy"], {"weight": w}),
        (["--base", 2], {"base": 2}),
    ):
        assert score(x, y, *options)["mean_loss"] == pytest.approx(fastce.cross_entropy(x, y, **arguments), rel=1e-12)


def test_dense_target(x: Array, rng: np.random.Generator, score: Any, tmp_path: Path, blocks: None) -> None:
    """Probabilities, not normalised; the largest counts as the label."""
    t = rng.random((N, C))
    w = rng.random(C)
    np.save(tmp_path / "w.npy", w)
    found = score(x, t, "--weight", tmp_path / "w.npy", "--label-smoothing", 0.1)
    assert found["mean_loss"] == pytest.approx(fastce.cross_entropy(x, t, weight=w, label_smoothing=0.1), rel=1e-12)
    assert found["perplexity"] == near(math.exp(fastce.cross_entropy(x, t)))
    assert found["accuracy"] == (x.argmax(axis=1) == t.argmax(axis=1)).mean()
    assert found["ignored_rows"] == 0


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_axis(
    axis: int, dense: bool, order: Any, rng: np.random.Generator, score: Any, tmp_path: Path, blocks: None
) -> None:
    """The class axis anywhere, in either order; the losses come out in the shape of the positions."""
    x = rng.standard_normal((5, 6, 7)).astype(np.float64, order=order)
    positions = np.delete(x.shape, axis)
    y = rng.random(x.shape) if dense else rng.integers(0, 5, positions).astype(np.int32, order=order)
    found = score(x, y, "--axis", axis, "--output", tmp_path / "losses.npy")
    expected = fastce.cross_entropy(x, y, axis=axis, reduction="none")
    losses = np.load(tmp_path / "losses.npy")
    assert losses.dtype == np.float64
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    assert losses.shape == expected.shape
    assert found["mean_loss"] == pytest.approx(expected.mean(), rel=1e-12)
    labels = y.argmax(axis=axis) if dense else y
    assert found["accuracy"] == (x.argmax(axis=axis) == labels).mean()
    assert found["output"] == str(tmp_path / "losses.npy")


@pytest.mark.parametrize("kind", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
def test_dtypes(kind: str, x: Array, y: Array, score: Any, blocks: None) -> None:
    x = x.astype(kind)
    for labels in (y.astype(np.uint8), y.astype(">i8"), y.astype("<u4")):
        found = score(x, labels)
        assert found["mean_loss"] == pytest.approx(fastce.cross_entropy(x, y), rel=1e-12)
        assert found["accuracy"] == (x.argmax(axis=1) == y).mean()
        assert found["dtype"] == np.dtype(kind).name


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("fortran_order", [False, True])
def test_npy_versions(version: Any, fortran_order: bool, x: Array, y: Array, score: Any, tmp_path: Path) -> None:
    data = x.tobytes("F" if fortran_order else "C") + b"and more"
    header = npy_header(f"({N}L, {C})" if version == (1, 0) else f"({N}, {C})", fortran_order=fortran_order)
    path = tmp_path / "versions.npy"
    path.write_bytes(npy(header, data, version))
    assert score(path, y)["mean_loss"] == near(fastce.cross_entropy(x, y))


@pytest.mark.parametrize("ml_dtypes_is_there", [True, False])
@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i2", "V2", "safetensors"])
def test_bfloat16(
    kind: str,
    ml_dtypes_is_there: bool,
    x: Array,
    y: Array,
    score: Any,
    tmp_path: Path,
    blocks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bits of bfloat16 in every guise; without ml_dtypes they are widened block by block, with the same result."""
    x = x.astype(ml_dtypes.bfloat16)
    expected = fastce.cross_entropy(x, y)
    if not ml_dtypes_is_there:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    if kind == "safetensors":
        write_safetensors(tmp_path / "x.safetensors", x=("BF16", x), other=("U8", y.astype(np.uint8)))
        found = score(tmp_path / "x.safetensors:x", y)
    else:
        bits = x if kind == "V2" else x.view(kind.replace(">", "<")).astype(kind)
        found = score(bits, y, "--dtype", "bfloat16")
    assert found["mean_loss"] == pytest.approx(expected, rel=1e-12)
    assert found["accuracy"] == (x.astype(np.float32).argmax(axis=1) == y).mean()
    assert found["dtype"] == "bfloat16"
    assert found["gb_per_second"] == pytest.approx((x.nbytes + y.nbytes) / found["seconds"] / 1e9)


@pytest.mark.parametrize("kind", ["F16", "F32", "F64"])
def test_safetensors(kind: str, x: Array, y: Array, score: Any, tmp_path: Path, blocks: None) -> None:
    """Tensors at any byte, by name, or without one where there is one only; labels and dense targets too."""
    x = x.astype(kind.replace("F", "f").replace("16", "2").replace("32", "4").replace("64", "8"))
    path = tmp_path / "a:b.safetensors"
    odd = ("U8", np.zeros(3, np.uint8))
    one_hot = np.eye(C, dtype=bool)[y]
    write_safetensors(
        path, odd=odd, **{"model.logits:0": (kind, x), "y": ("I16", y.astype("<i2")), "t": ("BOOL", one_hot)}
    )
    expected = fastce.cross_entropy(x, y)
    assert score(f"{path}:model.logits:0", f"{path}:y")["mean_loss"] == pytest.approx(expected, rel=1e-12)
    assert score(f"{path}:model.logits:0", f"{path}:t")["mean_loss"] == pytest.approx(expected, rel=1e-6)
    write_safetensors(tmp_path / "one.safetensors", x=(kind, x))
    assert score(tmp_path / "one.safetensors", y)["mean_loss"] == pytest.approx(expected, rel=1e-12)


def test_safetensors_of_its_own_library(x: Array, y: Array, score: Any, tmp_path: Path) -> None:
    """Our reader reads what the format's own package writes."""
    path = tmp_path / "x.safetensors"
    tensors = {"logits": x, "half": x.astype(np.float16), "labels": y, "empty": np.empty((0, 3), np.float32)}
    safetensors.numpy.save_file(tensors, path, {"format": "np"})
    for name in ("logits", "half"):
        expected = fastce.cross_entropy(tensors[name], y)
        assert score(f"{path}:{name}", f"{path}:labels")["mean_loss"] == pytest.approx(expected, rel=1e-12)


def test_accuracy(score: Any, blocks: None) -> None:
    """The first of equals; -0 equals 0; -inf everywhere, NaN and +inf are wrong; sure and unsure rows."""
    nan, inf = math.nan, math.inf
    rows = [
        ([0, 0, 0], 0, True),
        ([0, 0, 0], 1, False),
        ([-0.0, 0.0, -1], 0, True),
        ([-0.0, 0.0, -1], 1, False),
        ([5, -5, 0], 0, True),
        ([1, 1.5, 1], 1, True),
        ([1, 1.5, 1], 2, False),
        ([-inf, -1, -2], 1, True),
        ([-inf, -inf, -inf], 0, False),
        ([nan, 0, 0], 0, False),
        ([0, nan, 9], 2, False),
        ([0, inf, 0], 1, False),
        ([3, 2, 1], -100, None),
        ([nan, 2, 1], -100, None),
    ]
    y = np.array([label for _, label, _ in rows])
    for kind in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        for i, (row, label, right) in enumerate(rows):
            if right is not None:
                x = np.array([row], kind)
                bits = ["--dtype", "bfloat16"] if kind is ml_dtypes.bfloat16 else []
                assert score(x, np.array([label]), *bits)["accuracy"] == right, (kind, i)
    x = np.array([row for row, _, _ in rows], np.float32)
    found = score(x, y)
    assert found["accuracy"] == 5 / 12
    assert found["ignored_rows"] == 2


def test_accuracy_counted_either_way(x: Array, y: Array, score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the C core, or by loss and maximum, with and without weights that are not the plain loss."""
    y[::5] = x[::5].argmax(axis=1)
    y[::9] = -100
    expected = (x.argmax(axis=1) == y).sum() / (y >= 0).sum()
    for few in (C, C - 1):
        monkeypatch.setattr(_work, "FEW_CLASSES", few)
        for options in ((), ("--label-smoothing", 0.1), ("--backend", "numpy")):
            assert score(x, y, *options)["accuracy"] == expected


def test_not_finite_is_null(score: Any) -> None:
    x = np.zeros((2, 3), np.float32)
    found = score(np.full((2, 3), np.nan, np.float32), np.array([0, 1]))
    assert (found["mean_loss"], found["perplexity"], found["accuracy"]) == (None, None, 0)
    x[0, 0] = -np.inf
    found = score(x, np.array([0, 1]))
    assert (found["mean_loss"], found["perplexity"], found["accuracy"]) == (None, None, 0)
    found = score(x, np.array([-100, -100]))
    assert (found["mean_loss"], found["perplexity"], found["accuracy"]) == (None, None, None)
    assert found["ignored_rows"] == 2
    found = score(np.full((1, 2), [[-1e4, 0]], np.float32), np.array([0]))
    assert (found["mean_loss"], found["perplexity"]) == (1e4, None)


@pytest.mark.parametrize("shape", [(0, 3), (0, 0), (2, 0, 3), (5,), (1, 1), (1, 2, 1, 3)])
def test_odd_shapes(shape: tuple[int, ...], score: Any, tmp_path: Path) -> None:
    """No rows, one row without an axis of positions, one class."""
    found = score(np.zeros(shape), np.zeros(shape[:-1], int), "--output", tmp_path / "losses.npy")
    rows = math.prod(shape[:-1])
    assert found["rows"] == rows
    assert found["mean_loss"] == (pytest.approx(math.log(shape[-1])) if rows else None)
    assert np.load(tmp_path / "losses.npy").shape == shape[:-1]


def test_mean_over_blocks_is_exact(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of very different size, a block for each."""
    monkeypatch.setattr(_work, "BLOCK_BYTES", 1)
    gaps = np.concatenate([[1e15], np.full(4000, 0.1)])
    x = np.stack([np.zeros_like(gaps), -gaps], axis=1)
    x[1:, 1] = -700
    y = np.concatenate([[1], np.zeros(4000, int)])
    x[1:, 1] = -0.1
    expected = math.fsum(fastce.cross_entropy(x, y, reduction="none")) / 4001
    assert score(x, y)["mean_loss"] == expected


def test_output(x: Array, y: Array, score: Any, tmp_path: Path, blocks: None) -> None:
    """Losses in the unit asked for; a link is followed, what was there is replaced, nothing else is left."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "real.npy").write_bytes(b"old")
    (folder / "link.npy").symlink_to("real.npy")
    y[3] = -100
    score(x, y, "--base", 2, "--label-smoothing", 0.1, "--output", folder / "link.npy")
    losses = np.load(folder / "real.npy")
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, fastce.cross_entropy(x, y, base=2, label_smoothing=0.1, reduction="none"), 1e-6)
    assert losses[3] == 0
    assert (folder / "link.npy").is_symlink()
    assert sorted(path.name for path in folder.iterdir()) == ["link.npy", "real.npy"]


def test_failure_leaves_the_output_alone(
    x: Array, y: Array, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in the last block, a full disk, an interrupt: the old file is there, and no other."""
    monkeypatch.setattr(_work, "BLOCK_BYTES", 100)
    arguments = ["score", *(str(tmp_path / name) for name in ("x.npy", "y.npy")), "--output", str(tmp_path / "z.npy")]
    (tmp_path / "z.npy").write_bytes(b"old")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.append(y[:-1], C))

    def check(status: int, message: str) -> None:
        assert main(arguments) == status
        assert message in capsys.readouterr().err
        assert (tmp_path / "z.npy").read_bytes() == b"old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy", "z.npy"]

    check(2, f"label {C} at index ({N - 1},)")
    np.save(tmp_path / "y.npy", y)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", full)
    check(2, "fastce: error: No space left on device")
    monkeypatch.setattr("os.fsync", interrupt)
    check(130, "fastce: interrupted")


def test_text(x: Array, y: Array, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table for people has what JSON has, a line for each."""
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    assert main(["score", str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "--backend", "numpy", "--base", "2"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert [line[:14].rstrip() for line in lines] == [
        *("logits", "backend", "mean loss", "perplexity", "accuracy", "rows"),
        *("ignored rows", "seconds", "logits/s", "GB/s"),
    ]
    assert lines[0].endswith(f"x.npy, {N} × {C} float32")
    assert lines[1].endswith("numpy (reference), 1 thread")
    assert lines[2] == f"mean loss     {fastce.cross_entropy(x, y, base=2, backend='numpy'):.9g} bits"
