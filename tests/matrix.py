"""The axes of the contract suite: every backend in every variant, times every dtype.

The lists are written here and not read from fastce, so that an engine that is lost somewhere (an ISA that no longer
builds, a backend that no longer imports) fails its tests instead of vanishing from them; test_matrix.py compares them
with what fastce says it has. What this CPU can run is derived here too, from /proc/cpuinfo.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import fastce
from fastce import _settings

NEEDS = {
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma", "f16c"},
}


def expected_isas() -> list[str]:
    """The ISAs of the C core that must run on this machine, best first."""
    if platform.machine().lower() in {"aarch64", "arm64"}:
        return ["neon", "portable"]
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())
    return [*(isa for isa, needed in NEEDS.items() if needed <= flags), "portable"]


@dataclass(frozen=True)
class Engine:
    """A backend and the variant of it that is forced; its functions are those of fastce."""

    backend: str
    variant: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.variant}"

    def lanes(self, dtype: np.dtype[Any]) -> int:
        """The most numbers this backend has in one vector: AVX-512's, and Numba's double ones."""
        return (32 if self.backend == "numba" else 16) // (2 if dtype == np.float64 else 1)

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with _settings.use_variant(self.variant):
            return function(*args, **{"backend": self.backend} | options)

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Any function of fastce, by name."""
        return self._call(getattr(fastce, name), *args, **options)

    def cross_entropy(self, *args: Any, **options: Any) -> Any:
        return self._call(fastce.cross_entropy, *args, **options)

    def cross_entropy_with_grad(self, *args: Any, **options: Any) -> Any:
        return self._call(fastce.cross_entropy_with_grad, *args, **options)

    def softmax(self, *args: Any, **options: Any) -> Any:
        return self._call(fastce.softmax, *args, **options)

    def log_softmax(self, *args: Any, **options: Any) -> Any:
        return self._call(fastce.log_softmax, *args, **options)

    def logsumexp(self, *args: Any, **options: Any) -> Any:
        return self._call(fastce.logsumexp, *args, **options)

    def explain(self, *args: Any, **options: Any) -> Any:
        return self._call(fastce.explain, *args, **options)


VARIANTS = {"cython": expected_isas(), "numba": ["parallel", "serial"], "numpy": ["reference"]}
ENGINES = [Engine(backend, variant) for backend, variants in VARIANTS.items() for variant in variants]
COMPILED = [engine for engine in ENGINES if engine.backend != "numpy"]
DTYPES = [np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]

BLOCK = 2048
"""The classes that the compiled backends do at once in a long row, at most."""
