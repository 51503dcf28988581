"""Fast, exact softmax cross entropy on the CPU: `cross_entropy` is where to start."""

from __future__ import annotations

from fastce._backends import available_backends
from fastce._config import show_config
from fastce._functions import (
    LossAndGrad,
    cross_entropy,
    cross_entropy_with_grad,
    explain,
    log_softmax,
    logsumexp,
    softmax,
)
from fastce._pipeline import Explanation
from fastce._settings import use_backend
from fastce.errors import BackendUnavailableError

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "Explanation",
    "LossAndGrad",
    "available_backends",
    "cross_entropy",
    "cross_entropy_with_grad",
    "explain",
    "log_softmax",
    "logsumexp",
    "show_config",
    "softmax",
    "use_backend",
]
