"""The public functions: their signatures and their documentation; the work is one call into the pipeline."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from fastce import _inputs, _pipeline
from fastce._problem import Array, Output

__all__ = ["LossAndGrad", "cross_entropy", "cross_entropy_with_grad", "log_softmax", "logsumexp", "softmax"]


class LossAndGrad(NamedTuple):
    loss: Any
    grad: Array


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> Any:
    request = _inputs.loss_request(
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        reduction=reduction,
        denominator=denominator,
        base=base,
    )
    return _pipeline.loss(request, backend, num_threads)


def cross_entropy_with_grad(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
    out: Array | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> LossAndGrad:
    request = _inputs.loss_request(
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        reduction=reduction,
        denominator=denominator,
        base=base,
        gradient=True,
        grad_output=grad_output,
        out=out,
    )
    return LossAndGrad(*_pipeline.loss_and_grad(request, backend, num_threads))


def softmax(
    logits: Any, *, axis: int = -1, out: Array | None = None, backend: str = "auto", num_threads: int | None = None
) -> Array:
    request = _inputs.map_request(Output.SOFTMAX, logits, axis, out)
    return _pipeline.softmax(request, backend, num_threads)


def log_softmax(
    logits: Any, *, axis: int = -1, out: Array | None = None, backend: str = "auto", num_threads: int | None = None
) -> Array:
    request = _inputs.map_request(Output.LOG_SOFTMAX, logits, axis, out)
    return _pipeline.softmax(request, backend, num_threads)


def logsumexp(
    logits: Any, *, axis: int = -1, out: Array | None = None, backend: str = "auto", num_threads: int | None = None
) -> Array:
    request = _inputs.map_request(Output.LSE, logits, axis, out)
    return _pipeline.logsumexp(request, backend, num_threads)
