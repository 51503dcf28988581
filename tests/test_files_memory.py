"""Memory stays bounded, whatever the size of files: what a child process takes of its own beside the page cache."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastce
from files import write_sparse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is told by /proc")

CHILD = Path(__file__).with_name("child_files_memory.py")
SCORE_MIB = 64
GRADIENT_MIB = 8


def child(*arguments: object) -> tuple[float, Any]:
    command = [sys.executable, str(CHILD), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    used, said = done.stdout.strip().split("\n", 1)
    return float(used), json.loads(said)


def npy(folder: Path) -> Path:
    """1 GB of zeros that take no space on the disk."""
    write_sparse(folder / "x.npy", (500_000, 1000), np.float16)
    return folder / "x.npy"


def zarr_array(folder: Path) -> Path:
    """400 MB in chunks of 4 MB."""
    import zarr

    shape = (100_000, 1000)
    array = zarr.create_array(store=folder / "x.zarr", shape=shape, chunks=(1000, 1000), dtype="f4")
    rows = np.random.default_rng(0).standard_normal((1000, 1000)).astype("f4")
    for start in range(0, shape[0], 1000):
        array[start : start + 1000] = rows
    return folder / "x.zarr"


def parquet(folder: Path) -> Path:
    """400 MB in groups of 40 MB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.random.default_rng(0).standard_normal((10_000, 1000)).astype("f4")
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 1000)})
    with pq.ParquetWriter(folder / "x.parquet", table.schema, use_dictionary=False) as writer:
        for _ in range(10):
            writer.write_table(table)
    return folder / "x.parquet"


@pytest.mark.parametrize(
    ("write", "package"), [(npy, None), (zarr_array, "zarr"), (parquet, "pyarrow")], ids=["npy", "zarr", "parquet"]
)
def test_score(write: Any, package: str | None, tmp_path: Path) -> None:
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")
    logits = write(tmp_path)
    rows, classes = fastce.open_logits(logits).shape
    np.save(tmp_path / "y.npy", np.zeros(rows, np.uint8))
    options = ["--resume", tmp_path / "state", "--output", tmp_path / "losses.npy"]
    used, found = child("score", logits, tmp_path / "y.npy", *options)
    assert found["rows"] == rows
    if write is npy:
        assert found["mean_loss"] == pytest.approx(np.log(classes), rel=1e-6)
    assert used < SCORE_MIB


@pytest.mark.parametrize("in_place", [False, True])
def test_gradient_from_a_map_into_a_map(in_place: bool, tmp_path: Path) -> None:
    """Logits of 400 MB, the gradient in another file or over them."""
    shape = (100_000, 1000)
    write_sparse(tmp_path / "x.npy", shape, np.float32)
    x = np.load(tmp_path / "x.npy", mmap_mode="r+")
    rows = [0, 1, 50_000, 99_999]
    some = x[rows] = np.random.default_rng(0).standard_normal((len(rows), shape[1]))
    x.flush()
    y = np.arange(shape[0]) % shape[1]
    np.save(tmp_path / "y.npy", y)
    out = "x.npy" if in_place else "grad.npy"
    if not in_place:
        write_sparse(tmp_path / out, shape, np.float32)
    used, loss = child("gradient", tmp_path / "x.npy", tmp_path / "y.npy", tmp_path / out)
    assert used < GRADIENT_MIB
    expected = fastce.cross_entropy_with_grad(some.astype(np.float32), y[rows], denominator=shape[0])
    np.testing.assert_array_equal(np.load(tmp_path / out, mmap_mode="r")[rows], expected.grad)
    zeros = (shape[0] - len(rows)) * np.log(shape[1]) / shape[0]
    assert loss == pytest.approx(expected.loss + zeros, rel=1e-6)
