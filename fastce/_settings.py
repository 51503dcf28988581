"""Which backend, how many threads, which variant: what the caller, a context and the environment say.

The environment variables FASTCE_BACKEND, FASTCE_NUM_THREADS and FASTCE_ISA are read once, at first use; what they
may hold of backends and numbers is checked here, the ISAs are known to the C core alone. Contexts live in
contextvars, so that each thread and each asyncio task has its own.
"""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from fastce import _backends, _inputs, _threads

if TYPE_CHECKING:
    from collections.abc import Iterator

CHOICES = ("auto", *_backends.NAMES)

_ORDER = "the first that can run of " + ", ".join(_backends.NAMES)


class Environment(NamedTuple):
    """What the environment variables hold; None where unset or empty."""

    backend: str | None
    num_threads: int | None
    isa: str | None


class _Context(NamedTuple):
    backend: str
    num_threads: int | None


_context: ContextVar[_Context | None] = ContextVar("fastce_backend", default=None)
_variant: ContextVar[str | None] = ContextVar("fastce_variant", default=None)

OF_VARIANT: tuple[ContextVar[Any], ...] = (_variant,)
"""Where this is None, the machine decides alone how a backend that is named does a call."""

OVERRIDES: tuple[ContextVar[Any], ...] = (_context, _variant)
"""Where these are None, the environment and the machine decide alone."""


@functools.lru_cache(maxsize=1)
def environment() -> Environment:
    """Return what the environment variables hold, as it was at the first successful call.

    Raises
    ------
    ValueError
        For a value that is not accepted, at every call.
    """
    backend = os.environ.get("FASTCE_BACKEND") or None
    if backend is not None and backend not in CHOICES:
        raise ValueError(f"FASTCE_BACKEND: expected one of {', '.join(CHOICES)}, got {backend!r}")
    threads = os.environ.get("FASTCE_NUM_THREADS") or None
    if threads is not None and not (threads.isascii() and threads.isdecimal() and int(threads) > 0):
        raise ValueError(f"FASTCE_NUM_THREADS: expected an integer >= 1, got {threads!r}")
    return Environment(backend, None if threads is None else int(threads), os.environ.get("FASTCE_ISA") or None)


def backend(argument: Any) -> tuple[str, str]:
    """Return the backend to use, perhaps "auto", and who said so."""
    settings = environment()
    if argument != "auto":
        return _known("backend", argument), "named in the call"
    context = _context.get()
    if context is not None:
        return context.backend, _ORDER if context.backend == "auto" else "named by use_backend"
    if settings.backend is not None and settings.backend != "auto":
        return settings.backend, "named by FASTCE_BACKEND"
    return "auto", _ORDER


def thread_limit(argument: Any) -> tuple[int, str]:
    """Return how many threads a call may have at most, and who said so."""
    if argument is not None:
        return _inputs.thread_count("num_threads", argument), "num_threads of the call"
    context = _context.get()
    if context is not None and context.num_threads is not None:
        return context.num_threads, "num_threads of use_backend"
    return default_thread_limit()


def default_thread_limit() -> tuple[int, str]:
    """Return the same where neither a call nor `use_backend` says anything."""
    settings = environment()
    if settings.num_threads is not None:
        return settings.num_threads, "FASTCE_NUM_THREADS"
    return _threads.default()


def use_backend(name: str, num_threads: int | None = None) -> AbstractContextManager[None]:
    """Choose the backend of all calls in a ``with`` block that do not name one themselves.

    The choice holds in the current thread and asyncio task only. It comes before the environment variables
    FASTCE_BACKEND and FASTCE_NUM_THREADS, and after the arguments of a call.

    Parameters
    ----------
    name : {"auto", "cython", "numba", "numpy"}
        The backend; "auto" stands for the first that can run.
    num_threads : int, optional
        The most threads a call may have. By default what an outer ``use_backend``, the environment or the
        machine says.

    Returns
    -------
    context manager
        For one ``with`` statement.

    Raises
    ------
    ValueError
        For an unknown name, at once.
    BackendUnavailableError
        For a backend that cannot run, at once, with the reason and the command that would install it.

    See Also
    --------
    available_backends : The names that can run.
    explain : What a call would get.

    Examples
    --------
    >>> import fastce
    >>> with fastce.use_backend("numpy"):
    ...     round(fastce.cross_entropy([[2.0, 1.0]], [0]), 4)
    0.3133
    """
    context = _context.get()
    _known("name", name)
    if num_threads is not None:
        num_threads = _inputs.thread_count("num_threads", num_threads)
    elif context is not None:
        num_threads = context.num_threads
    if name != "auto":
        _backends.load(name)
    return _using(_Context(name, num_threads))


@contextmanager
def _using(context: _Context) -> Iterator[None]:
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


@contextmanager
def use_variant(name: str | None) -> Iterator[None]:
    """Force a variant of whatever backend runs, one of its ``variants()``; None stands for the best. For tests."""
    token = _variant.set(name)
    try:
        yield
    finally:
        _variant.reset(token)


def current_variant() -> str | None:
    """Return the variant that is forced in this context, which a backend must use or raise."""
    return _variant.get()


def _known(name: str, value: Any) -> str:
    if not (isinstance(value, str) and value in CHOICES):
        raise ValueError(f"{name}: expected one of {', '.join(CHOICES)}, got {value!r}")
    return value
