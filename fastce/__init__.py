"""Fast, exact softmax cross entropy on the CPU: `cross_entropy` is where to start."""

from __future__ import annotations

from fastce._accumulator import CrossEntropyAccumulator, CrossEntropySummary
from fastce._backends import available_backends
from fastce._config import show_config
from fastce._elementwise import (
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_with_grad,
    binary_focal_loss_with_logits,
    binary_focal_loss_with_logits_with_grad,
    mse_loss,
    mse_loss_with_grad,
)
from fastce._flags import get_include, get_library
from fastce._functions import (
    LossAndGrad,
    RowStatistics,
    cross_entropy,
    cross_entropy_with_grad,
    distillation_loss,
    distillation_loss_with_grad,
    explain,
    focal_loss,
    focal_loss_with_grad,
    log_softmax,
    logsumexp,
    row_statistics,
    softmax,
)
from fastce._linear import LinearLossAndGrad, linear_cross_entropy, linear_cross_entropy_with_grad
from fastce._partial import CrossEntropyPartial, partial_cross_entropy, partial_cross_entropy_grad
from fastce._pipeline import Explanation
from fastce._probabilities import (
    categorical_cross_entropy,
    categorical_cross_entropy_with_grad,
    entropy,
    js_divergence,
    kl_divergence,
    log_loss,
    nll_loss,
    nll_loss_with_grad,
)
from fastce._settings import use_backend
from fastce._stored import StoredLogits, open_logits
from fastce.errors import BackendUnavailableError

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "CrossEntropyAccumulator",
    "CrossEntropyPartial",
    "CrossEntropySummary",
    "Explanation",
    "LinearLossAndGrad",
    "LossAndGrad",
    "RowStatistics",
    "StoredLogits",
    "available_backends",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_with_grad",
    "binary_focal_loss_with_logits",
    "binary_focal_loss_with_logits_with_grad",
    "categorical_cross_entropy",
    "categorical_cross_entropy_with_grad",
    "cross_entropy",
    "cross_entropy_with_grad",
    "distillation_loss",
    "distillation_loss_with_grad",
    "entropy",
    "explain",
    "focal_loss",
    "focal_loss_with_grad",
    "get_include",
    "get_library",
    "js_divergence",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "log_loss",
    "log_softmax",
    "logsumexp",
    "mse_loss",
    "mse_loss_with_grad",
    "nll_loss",
    "nll_loss_with_grad",
    "open_logits",
    "partial_cross_entropy",
    "partial_cross_entropy_grad",
    "row_statistics",
    "show_config",
    "softmax",
    "use_backend",
]
