"""How fastce.dask scales over processes on one machine: `python -m bench.dask_scaling`, for docs/distributed.md.

Logits lie in a file that the page cache holds; each task maps its block. Every answer is compared with the library's.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import fastce
import fastce.dask

ROWS, CLASSES = 16_384, 32_000
ROUNDS = 5


def block_of(file: str, block_info: Any = None) -> Any:
    (first, stop), (left, right) = block_info[None]["array-location"]
    return np.load(file, mmap_mode="r")[first:stop, left:right]


def largest(block: Any) -> Any:
    return np.abs(block).max(keepdims=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "logits.npy"))
        rng = np.random.default_rng(0)
        logits = np.lib.format.open_memmap(file, "w+", np.float32, (ROWS, CLASSES))
        for i in range(0, ROWS, 1024):
            logits[i : i + 1024] = rng.standard_normal((1024, CLASSES), dtype=np.float32)
        labels = rng.integers(0, CLASSES, ROWS)
        want = fastce.cross_entropy(logits, labels)
        table: dict[str, dict[str, float]] = {}
        for n_workers in (1, 2):
            with (
                LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0") as cluster,
                Client(cluster) as client,
            ):
                for name, chunks in (("rows", (1024, CLASSES)), ("rows and classes", (2048, CLASSES // 2))):
                    cut = da.core.normalize_chunks(chunks, (ROWS, CLASSES))
                    lazy = da.map_blocks(
                        block_of, file, chunks=cut, dtype=np.float32, meta=np.empty((0, 0), np.float32)
                    )
                    loss, grad = map(da.asarray, fastce.dask.cross_entropy_with_grad(lazy, labels))
                    forward = fastce.dask.cross_entropy(lazy, labels)
                    for what, job in (("loss", [forward]), ("gradient", [loss, grad.map_blocks(largest).max()])):
                        seconds = []
                        for _ in range(ROUNDS):
                            start = time.perf_counter()
                            found = client.compute(job, sync=True)
                            seconds.append(time.perf_counter() - start)
                            np.testing.assert_allclose(found[0], want, rtol=1e-6)
                        table.setdefault(f"{what}, blocks of {name}", {})[f"{n_workers}"] = statistics.median(seconds)
    for name, medians in table.items():
        one, two = medians["1"], medians["2"]
        rates = ", ".join(f"{ROWS * CLASSES / s / 1e9:.2f}" for s in (one, two))
        print(f"{name}: {one:.3f} s, {two:.3f} s, {one / two:.2f} x ({rates} billion logits a second)")


if __name__ == "__main__":
    main()
