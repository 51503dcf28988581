"""The backends of fastce, as systems.

The numpy backend is the naive baseline: the shortest correct text.
"""

from __future__ import annotations

import functools
from typing import Any

from bench.cases import LABEL_SMOOTHING, Z_LOSS, Case, Inputs, available_threads
from bench.reference import Answer
from bench.system import Call, System


def fastce_call(backend: str, case: Case, arrays: Inputs) -> Call:
    """Prepare the public function, as a user would call it; "auto" names neither backend nor threads."""
    import fastce

    options: dict[str, Any] = {}
    if backend != "auto":
        options["backend"] = backend
    if backend != "auto" or case.threads != available_threads():
        options["num_threads"] = case.threads
    if case.axis != -1:
        options["axis"] = case.axis
    if arrays.weight is not None:
        options["weight"] = arrays.weight
    if arrays.sample_weight is not None:
        options["sample_weight"] = arrays.sample_weight
    if "label_smoothing" in case.options:
        options["label_smoothing"] = LABEL_SMOOTHING
    if "z_loss" in case.options:
        options["z_loss"] = Z_LOSS
    if not case.gradient:
        return Call(functools.partial(fastce.cross_entropy, arrays.logits, arrays.target, **options), Answer)
    if arrays.out is not None:
        options["out"] = arrays.out
    run = functools.partial(fastce.cross_entropy_with_grad, arrays.logits, arrays.target, **options)
    return Call(run, lambda result: Answer(result.loss, result.grad))


def _system(backend: str, *needs: str, streams: bool = True) -> System:
    return System(f"fastce {backend}", ("fastce", *needs), functools.partial(fastce_call, backend), streams)


OURS = (_system("cython"), _system("auto"), _system("numba", "numba"), _system("numpy", streams=False))
