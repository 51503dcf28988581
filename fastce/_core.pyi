from contextvars import ContextVar
from typing import Any

from fastce._problem import Array, Problem

def scan(problem: Problem, num_threads: int) -> tuple[int, float, float]: ...
def run(problem: Problem, isa: bytes | None, num_threads: int) -> tuple[int, float, float]: ...

class Quick:
    def __init__(
        self,
        overrides: tuple[ContextVar[Any], ...],
        isa: bytes,
        limits: tuple[ContextVar[Any], ...],
        limit: int,
        loss_logits: float,
        grad_logits: float,
        logits_per_row: float,
    ) -> None: ...
    def loss(
        self,
        logits: Any,
        target: Any,
        axis: Any,
        weight: Any,
        sample_weight: Any,
        ignore_index: Any,
        label_smoothing: Any,
        z_loss: Any,
        reduction: Any,
        denominator: Any,
        base: Any,
        num_threads: Any,
    ) -> float | Array | None: ...
    def loss_and_grad(
        self,
        logits: Any,
        target: Any,
        axis: Any,
        weight: Any,
        sample_weight: Any,
        ignore_index: Any,
        label_smoothing: Any,
        z_loss: Any,
        reduction: Any,
        denominator: Any,
        base: Any,
        grad_output: Any,
        out: Any,
        num_threads: Any,
    ) -> tuple[float | Array, Array] | None: ...

def kernel_name(problem: Problem) -> str: ...
def isa_names() -> dict[str, bool]: ...
def cpu_features() -> dict[str, bool]: ...
def abi_version() -> int: ...
def has_openmp() -> bool: ...
def flat_call_address(isa: bytes | None) -> int: ...
def read_memory(data: Array, prefetch: int, num_threads: int) -> int: ...
def copy_memory(data: Array, out: Array, prefetch: int, streaming: bool, num_threads: int) -> None: ...
