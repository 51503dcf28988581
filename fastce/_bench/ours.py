"""The backends of fastce, as systems.

The numpy backend is the naive baseline: the shortest correct text.
"""

from __future__ import annotations

import functools
from typing import Any

from fastce._bench.cases import LABEL_SMOOTHING, SCALED, SOFTCAP, Z_LOSS, Case, Inputs, available_threads
from fastce._bench.family import TEMPERATURE
from fastce._bench.reference import Answer
from fastce._bench.system import Call, System


def fastce_call(backend: str, case: Case, arrays: Inputs) -> Call:
    """Prepare the public function, as a user would call it; "auto" names neither backend nor threads."""
    import fastce

    options: dict[str, Any] = {}
    if backend != "auto":
        options["backend"] = backend
    if backend != "auto" or case.threads != available_threads():
        options["num_threads"] = case.threads
    if case.function != "cross_entropy":
        return _call_of_relative(case, arrays, options)
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
    if "temperature" in case.options:
        options["temperature"] = SCALED
    if "softcap" in case.options:
        options["softcap"] = SOFTCAP
    target = arrays.target if arrays.probabilities is None else (arrays.target, arrays.probabilities)
    if not case.gradient:
        return Call(functools.partial(fastce.cross_entropy, arrays.logits, target, **options), Answer)
    if arrays.out is not None:
        options["out"] = arrays.out
    run = functools.partial(fastce.cross_entropy_with_grad, arrays.logits, target, **options)
    return Call(run, lambda result: Answer(result.loss, result.grad))


def _call_of_relative(case: Case, arrays: Inputs, options: dict[str, Any]) -> Call:
    """Prepare a function of the family."""
    import fastce

    first, second = arrays.logits, arrays.target
    if arrays.sample_weight is not None:
        options["sample_weight"] = arrays.sample_weight
    if case.function == "entropy":
        return Call(functools.partial(fastce.entropy, first, **options), _mean)
    if case.function in ("kl_divergence", "js_divergence"):
        return Call(functools.partial(getattr(fastce, case.function), second, first, **options), _mean)
    if case.function == "row_statistics":
        return Call(functools.partial(fastce.row_statistics, first, second, **options), lambda s: _mean(s.loss))
    if case.function == "distillation_loss":
        options["temperature"] = TEMPERATURE
    if not case.gradient:
        return Call(functools.partial(getattr(fastce, case.function), first, second, **options), Answer)
    if arrays.out is not None:
        options["out"] = arrays.out
    run = functools.partial(getattr(fastce, f"{case.function}_with_grad"), first, second, **options)
    return Call(run, lambda result: Answer(result.loss, result.grad))


def _mean(values: Any) -> Answer:
    return Answer(float(values.mean(dtype=float)))


def _system(backend: str, *needs: str, streams: bool = True) -> System:
    return System(f"fastce {backend}", ("fastce", *needs), functools.partial(fastce_call, backend), streams)


OURS = (_system("cython"), _system("auto"), _system("numba", "numba"), _system("numpy", streams=False))
