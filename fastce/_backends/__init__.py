"""The ordered table of backends, what each must offer, and their loading when first needed.

A backend is a module of this package with the functions of `Implementation`. It gets a valid Problem and
checks nothing but the rows it visits. Choosing among backends is the pipeline's work.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from fastce._backends import _numba_forks  # noqa: F401  forks are watched before any backend is loaded
from fastce.errors import BackendUnavailableError

if TYPE_CHECKING:
    from contextvars import ContextVar

    from fastce._problem import Array, Problem, Totals


class Plan(NamedTuple):
    """How a backend would do a problem."""

    variant: str
    """The ISA of the C core, "parallel" or "serial" for Numba, "reference" for NumPy."""
    kernel: str
    num_threads: int | None = None
    """Where a variant does not use what it is given."""


class Quick(Protocol):
    """Small plain calls, done with fewer questions: the same results as on the general path, or None for "not here".

    The parameters are those of `cross_entropy` and `cross_entropy_with_grad` in their order, without ``backend``. None
    is the answer to every call that is not as plain as can be, to errors too, and nothing has been written then.
    """

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
    ) -> float | Array | None:
        """Return the loss."""

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
    ) -> tuple[float | Array, Array] | None:
        """Return the loss and its gradient."""


class Implementation(Protocol):
    """The functions of a backend's module."""

    def scan(self, problem: Problem, num_threads: int) -> Totals:
        """Check every row's label, sample weight and dense target; total the weights. Logits are not read."""

    def run(self, problem: Problem, num_threads: int) -> Totals:
        """Do the problem: fill its ``row_values`` and ``out``, checking rows on the way."""

    def variants(self) -> tuple[str, ...]:
        """Return what `fastce._settings.use_variant` can force on this machine, best first."""

    def describe(self, problem: Problem, num_threads: int) -> Plan:
        """Return what this problem would get, computing nothing."""

    def quick(self, overrides: tuple[ContextVar[Any], ...]) -> Quick | None:
        """Return what does small plain calls while these are None, if there is such a thing."""

    def config(self) -> dict[str, Any]:
        """Return versions and the like, for `fastce.show_config`."""


@dataclass(frozen=True)
class Backend:
    """A row of the table."""

    name: str
    module: str
    install: str
    """The command that makes it available."""


BACKENDS = (
    Backend("cython", "fastce._backends.cython", "pip install --force-reinstall fastce"),
    Backend("numba", "fastce._backends.numba", 'pip install "fastce[numba]"'),
    Backend("numpy", "fastce._backends.numpy", "pip install numpy"),
)
"""All backends, in order of preference."""

NAMES = tuple(backend.name for backend in BACKENDS)

_loaded: dict[str, Implementation | str] = {}
"""By name: the module, or why it cannot be imported."""


def load(name: str) -> Implementation:
    """Return a backend of the table, importing it the first time.

    Raises
    ------
    BackendUnavailableError
        With the reason its import failed, also when asked again.
    """
    found = _loaded.get(name)
    if found is None:
        found = _loaded[name] = _import(_row(name).module)
    if isinstance(found, str):
        raise BackendUnavailableError(name, found, _row(name).install)
    return found


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends that can run, in order of preference.

    Returns
    -------
    tuple of str
        Some of "cython", "numba" and "numpy"; the first is what ``backend="auto"`` gets. `show_config` tells
        why another is missing.

    Examples
    --------
    >>> import fastce
    >>> fastce.available_backends()[-1]
    'numpy'
    """
    return tuple(name for name in NAMES if why_not(name) is None)


def why_not(name: str) -> BackendUnavailableError | None:
    """Return the error that `load` raises for this name, or None where it does not."""
    try:
        load(name)
    except BackendUnavailableError as error:
        return error
    return None


def _row(name: str) -> Backend:
    return next(backend for backend in BACKENDS if backend.name == name)


def _import(module: str) -> Implementation | str:
    try:
        return cast("Implementation", importlib.import_module(module))
    except Exception as error:  # a broken dependency raises anything while it is imported
        return f"{type(error).__name__}: {error}" if not isinstance(error, ImportError) else str(error)
