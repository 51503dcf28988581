"""The one list of what is measured, and the arrays it is measured on.

A case says what is computed, on what, and which regime it stands for; who computes it is in ours.py and peers.py. The
table, the pytest-benchmark suites and whatever reports on them take their cases from here.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from fastce._bench.family import FAMILY, Array

Output = Literal["forward", "grad", "grad fresh"]
"""What is asked for: the mean loss; with its gradient, into an array that is there; or into a new one."""

Option = Literal[
    "label_smoothing", "weight", "sample_weight", "z_loss", "dense", "skipped", "temperature", "softcap", "sparse"
]
"""What is asked beyond plain labels; "skipped" has nine rows in ten ignored."""

LABEL_SMOOTHING = 0.1
Z_LOSS = 1e-4
SCALED = 3.0
SOFTCAP = 30.0
LISTED = 16
"""The temperature, the softcap, and the length of a sparse target's lists."""
IGNORE_INDEX = -100


def available_threads() -> int:
    """Count the CPUs this process may use: what a case without a thread count of its own gets."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Case:
    """One measurement: its arrays are made by `inputs`, its right answer by reference.py."""

    regime: str
    shape: tuple[int, ...]
    output: Output = "forward"
    dtype: str = "float32"
    axis: int = -1
    options: tuple[Option, ...] = ()
    threads: int = field(default_factory=available_threads)
    function: str = "cross_entropy"
    """Or a name in FAMILY."""
    short: bool = False
    """Whether it belongs to the short form of `make bench`, which compares with every other system."""
    default: bool = False
    """Whether `fastce bench` measures it when nothing else is asked for."""

    @property
    def name(self) -> str:
        parts = ["x".join(map(str, self.shape)), self.dtype, self.output, *self.options]
        if self.function != "cross_entropy":
            parts.insert(0, self.function)
        if self.axis != -1:
            parts.append(f"axis {self.axis}")
        if self.threads != available_threads():
            parts.append(f"{self.threads} thread" + "s" * (self.threads > 1))
        return ", ".join(parts)

    @property
    def plain(self) -> bool:
        """Labels and nothing else, the class axis last: what every system can do."""
        return not self.options and self.axis == -1 and self.function == "cross_entropy"

    @property
    def gradient(self) -> bool:
        return self.output != "forward"

    @property
    def huge(self) -> bool:
        """Too large for systems that make several arrays of this size."""
        return self.n_logits > 1 << 28

    @property
    def n_classes(self) -> int:
        return self.shape[self.axis]

    @property
    def n_logits(self) -> int:
        return math.prod(self.shape)

    @property
    def n_rows(self) -> int:
        return self.n_logits // self.n_classes

    @property
    def itemsize(self) -> int:
        return _dtype(self.dtype).itemsize

    @property
    def bytes_read(self) -> int:
        """Logits and targets, each once; of rows that are skipped, or looked at for one number, that only."""
        if self.function == "nll_loss":
            return self.n_rows * self.itemsize + self._bytes_of_target
        visited = self.n_logits // 10 if "skipped" in self.options else self.n_logits
        return visited * self.itemsize + self._bytes_of_target

    @property
    def bytes_written(self) -> int:
        return self.n_logits * self.itemsize if self.gradient else 0

    @property
    def bytes_moved(self) -> int:
        """What no implementation can avoid to move."""
        return self.bytes_read + self.bytes_written

    @property
    def bytes_held(self) -> int:
        """The arrays of the case, whole: what the measured limit moves."""
        return self.n_logits * self.itemsize + self._bytes_of_target + self.bytes_written

    @property
    def _bytes_of_target(self) -> int:
        if self.function == "cross_entropy":
            if "sparse" in self.options:
                return self.n_rows * LISTED * (8 + 4)
            return self.n_logits * self.itemsize if "dense" in self.options else 8 * self.n_rows
        if "sample_weight" in self.options:
            return self.n_logits * (self.itemsize + 4)
        second = FAMILY[self.function].second
        if second == "rows":
            return 8 * self.n_rows
        if second == "first":
            return 0
        return self.n_logits * (1 if self.function == "binary_focal_loss_with_logits" else self.itemsize)


class Inputs(NamedTuple):
    """The arrays of a case: the class axis where the case has it, everything contiguous."""

    logits: Array
    target: Array
    """int64 labels, or lists of them, or a dense target of the dtype of the logits; of a relative, its second array."""
    weight: Array | None
    sample_weight: Array | None
    """Of each row; of each element of a relative, as float32."""
    out: Array | None
    """Where the gradient goes; None for a forward, or a fresh gradient."""
    probabilities: Array | None = None
    """Those of lists, as float32."""


@functools.lru_cache(maxsize=1)
def inputs(case: Case) -> Inputs:
    """Make the arrays of a case; the last ones are kept, so that systems can follow each other on the same memory."""
    rng = np.random.default_rng(2024)
    logits = np.empty(case.shape, _dtype(case.dtype))
    _fill_normal(logits, rng, spread=2.0)
    if case.function != "cross_entropy":
        first, second = FAMILY[case.function].make(logits, rng)
        weights = rng.random(case.shape, np.float32) + np.float32(0.5) if "sample_weight" in case.options else None
        return Inputs(first, second, None, weights, np.zeros_like(first) if case.output == "grad" else None)
    positions = list(case.shape)
    del positions[case.axis]
    if "dense" in case.options:
        target: Array = np.empty(case.shape, logits.dtype)
        _fill_normal(target, rng, spread=1.0)
        np.abs(target, out=target)
        target /= np.asarray(case.n_classes, target.dtype)
    elif "sparse" in case.options:
        target = rng.integers(case.n_classes, size=(case.n_rows, LISTED))
    else:
        target = rng.integers(case.n_classes, size=positions)
        if "skipped" in case.options:
            target[rng.random(positions) < 0.9] = IGNORE_INDEX
    return Inputs(
        logits,
        target,
        rng.random(case.n_classes) + 0.5 if "weight" in case.options else None,
        rng.random(positions) + 0.5 if "sample_weight" in case.options else None,
        np.zeros_like(logits) if case.output == "grad" else None,
        rng.random(target.shape, np.float32) / np.float32(LISTED) if "sparse" in case.options else None,
    )


def _fill_normal(array: Array, rng: np.random.Generator, spread: float) -> None:
    """Fill with normal numbers; a block of some millions is repeated, the generator being slower than what we time."""
    flat = array.reshape(-1)
    block = rng.standard_normal(min(flat.size, 1 << 22), dtype=np.float32)
    block *= spread
    block = block.astype(array.dtype)
    for begin in range(0, flat.size, block.size):
        part = flat[begin : begin + block.size]
        part[:] = block[: part.size]


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


SHAPES = {
    (32, 10): "small call",
    (1024, 10): "small call",
    (1_000_000, 2): "two classes",
    (1_000_000, 10): "few classes",
    (131_072, 100): "short rows",
    (16_384, 1_000): "rows",
    (2_048, 32_000): "long rows",
    (512, 128_256): "longest rows",
}
"""Shapes against every other system, and what each stands for."""

GRID = tuple((b, c) for b in (1, 32, 1_024, 16_384) for c in (2, 10, 100, 1_000, 32_000) if b * c <= 1 << 25)
"""Batch sizes by class sizes: what `fastce bench` makes maps of."""

OUTPUTS: tuple[Output, ...] = ("forward", "grad")
DTYPES = ("float16", "bfloat16", "float32", "float64")
OPTIONS: tuple[Option, ...] = get_args(Option)
IMAGES = (8, 21, 512, 512)


def thread_counts() -> list[int]:
    """Return one thread, all there are, and the powers of two between."""
    most = available_threads()
    return sorted({1 << i for i in range(most.bit_length())} | {most})


CASES: tuple[Case, ...] = (
    *(
        Case(regime, shape, output, short=shape in SHAPES, default=shape in GRID)
        for output in OUTPUTS
        for shape, regime in {**dict.fromkeys(GRID, "batch by classes"), **SHAPES}.items()
    ),
    *(
        Case(dtype, shape, output, dtype, default=shape == (1_024, 1_000))
        for dtype in DTYPES
        if dtype != "float32"
        for output in OUTPUTS
        for shape in ((1_024, 1_000), (16_384, 1_000), (2_048, 32_000))
    ),
    *(Case("options", (16_384, 1_000), output, options=(option,)) for option in OPTIONS for output in OUTPUTS),
    Case("options", (16_384, 1_000), "grad", options=("label_smoothing", "weight", "sample_weight", "z_loss")),
    *(Case("class axis strided", IMAGES, output, axis=1) for output in OUTPUTS),
    *(Case("class axis last", (8, 512, 512, 21), output) for output in OUTPUTS),
    *(
        Case("fresh gradient", shape, "grad fresh", default=shape == (16_384, 1_000))
        for shape in ((131_072, 100), (16_384, 1_000), (2_048, 32_000))
    ),
    *(
        Case("threads", shape, output, threads=t, default=shape == (16_384, 1_000))
        for output in OUTPUTS
        for shape in SHAPES
        for t in thread_counts()
        if t != available_threads()
    ),
    *(Case("in cache", (256, 1_000), output, threads=t, default=True) for output in OUTPUTS for t in thread_counts()),
    *(Case("batch", (rows, 1_000)) for rows in (1_000, 10_000, 100_000, 1_000_000)),
    *(
        Case("family", (16_384, 1_000), output, function=function)
        for function, member in FAMILY.items()
        for output in (OUTPUTS if member.gradient else OUTPUTS[:1])
    ),
    *(
        Case("family", (16_384, 1_000), output, options=("sample_weight",), function="binary_cross_entropy_with_logits")
        for output in OUTPUTS
    ),
    *(
        Case("family", (1_000_000, 10), function=function)
        for function in ("categorical_cross_entropy", "kl_divergence", "row_statistics")
    ),
)
