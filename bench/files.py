"""`fastce score` beside reading its files alone: `python -m bench.files [FOLDER]`.

Logits of 16,384 classes in every format, 2 GiB each, in the page cache. Reading alone is a loop over the bytes of the
files, 1 MiB at a time into the same buffer; where rows have to be decoded also the format's own package, which does
nothing with what it reads. They take turns with the command, whose answers are compared first.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastce._bench.machine import cpu_name

CLASSES = 16_384
ROWS = 32_768
PART_ROWS = 2048
BATCH_ROWS = 512
CHUNK_ROWS = 64
ROUNDS = 7
PIECE = 1 << 20


class Written(NamedTuple):
    """Logits in a format: their files, and how its package reads them without doing anything with them."""

    title: str
    spec: Path
    package_reads: Callable[[], object] | None


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        measure(Path(name))


def measure(folder: Path) -> None:
    rng = np.random.default_rng(0)
    part = rng.standard_normal((PART_ROWS, CLASSES), dtype=np.float32)
    labels = rng.integers(0, CLASSES, ROWS)
    np.save(folder / "labels.npy", labels)
    x = part.astype(np.float64)
    lse = np.log(np.exp(x).sum(-1))
    expected = np.mean([lse[i % PART_ROWS] - x[i % PART_ROWS, label] for i, label in enumerate(labels)])
    formats = [write(folder, part) for write in (npy, arrow, raw_zarr, zstd_zarr, parquet)]
    gb = ROWS * CLASSES * 4 / 1e9
    print(f"{cpu_name()}; {gb:.2f} GB of logits a format; GB/s, medians of {ROUNDS} and the middle half of the ratios")
    print(f"{'':30}{'bytes alone':>12}{'package':>9}{'score':>8}  score of what reads alone")
    for written in formats:
        loss = score(written.spec, folder)["mean_loss"]
        if not math.isclose(loss, expected, rel_tol=1e-6):
            raise SystemExit(f"{written.title}: {loss} where {expected} was expected")
        rates: dict[str, list[float]] = {"bytes": [], "package": [], "score": []}
        for _ in range(ROUNDS):
            rates["bytes"].append(gb / timed(partial(read_bytes, written.spec)))
            if written.package_reads is not None:
                rates["package"].append(gb / timed(written.package_reads))
            rates["score"].append(score(written.spec, folder)["gb_per_second"])
        beside = rates["package"] or rates["bytes"]
        ratios = [a / b for a, b in zip(rates["score"], beside, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        shown = {name: f"{statistics.median(rate):.2f}" if rate else "-" for name, rate in rates.items()}
        print(
            f"{written.title:30}{shown['bytes']:>12}{shown['package']:>9}{shown['score']:>8}"
            f"  {statistics.median(ratios):4.0%} ({quartiles[0]:.0%} to {quartiles[2]:.0%})"
        )


def score(spec: Path, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "fastce", "score", str(spec), str(folder / "labels.npy"), "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_bytes(path: Path) -> None:
    buffer = bytearray(PIECE)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass


def parts(part: np.ndarray[Any, Any]) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    for start in range(0, ROWS, PART_ROWS):
        yield start, part


def npy(folder: Path, part: np.ndarray[Any, Any]) -> Written:
    array = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (ROWS, CLASSES))
    for start, rows in parts(part):
        array[start : start + PART_ROWS] = rows
    return Written(".npy", folder / "x.npy", None)


def table(part: np.ndarray[Any, Any]) -> Any:
    import pyarrow as pa

    return pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), CLASSES)})


def arrow(folder: Path, part: np.ndarray[Any, Any]) -> Written:
    import pyarrow as pa

    path, whole = folder / "x.arrow", table(part)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, whole.schema) as writer:
        for _ in parts(part):
            writer.write_table(whole, max_chunksize=BATCH_ROWS)
    return Written("Arrow, batches of 32 MiB", path, None)


def parquet(folder: Path, part: np.ndarray[Any, Any]) -> Written:
    import pyarrow.parquet as pq

    path, whole = folder / "x.parquet", table(part)
    with pq.ParquetWriter(path, whole.schema, use_dictionary=False, compression="none") as writer:
        for _ in parts(part):
            for start in range(0, PART_ROWS, BATCH_ROWS):
                writer.write_table(whole.slice(start, BATCH_ROWS))

    def read() -> None:
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        for batch in file.iter_batches(batch_size=BATCH_ROWS // 4):
            batch.column(0).values.to_numpy()

    return Written("Parquet, not compressed", path, read)


def zarr_array(path: Path, part: np.ndarray[Any, Any], title: str, compressors: Any) -> Written:
    import zarr

    array: Any = zarr.create_array(
        store=path, shape=(ROWS, CLASSES), chunks=(CHUNK_ROWS, CLASSES), dtype="f4", compressors=compressors
    )
    for start, rows in parts(part):
        array[start : start + PART_ROWS] = rows

    def read() -> None:
        for start in range(0, ROWS, CHUNK_ROWS):
            array[start : start + CHUNK_ROWS]

    return Written(title, path, None if compressors is None else read)


def raw_zarr(folder: Path, part: np.ndarray[Any, Any]) -> Written:
    return zarr_array(folder / "raw.zarr", part, "Zarr, chunks of 4 MiB", None)


def zstd_zarr(folder: Path, part: np.ndarray[Any, Any]) -> Written:
    return zarr_array(folder / "zstd.zarr", part, "Zarr, the same with Zstandard", "auto")


if __name__ == "__main__":
    main()
