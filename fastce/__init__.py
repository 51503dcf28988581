"""Fast, exact softmax cross entropy on the CPU: see `cross_entropy`."""

from __future__ import annotations

from fastce._backends import available as available_backends
from fastce._functions import (
    LossAndGrad,
    cross_entropy,
    cross_entropy_with_grad,
    log_softmax,
    logsumexp,
    softmax,
)
from fastce._settings import use_backend
from fastce.errors import BackendUnavailableError

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "LossAndGrad",
    "available_backends",
    "cross_entropy",
    "cross_entropy_with_grad",
    "log_softmax",
    "logsumexp",
    "softmax",
    "use_backend",
]
