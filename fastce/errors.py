"""The exception that is fastce's own; every other error is one of Python's (TypeError, ValueError, IndexError)."""

from __future__ import annotations


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot run here.

    Parameters
    ----------
    backend : str
        Its name.
    reason : str
        Why it cannot run.
    install : str
        The command that would install what is missing.

    Examples
    --------
    >>> import fastce
    >>> print(fastce.BackendUnavailableError("numba", "No module named 'numba'", 'pip install "fastce[numba]"'))
    backend 'numba' cannot run: No module named 'numba'. To install it: pip install "fastce[numba]"
    """

    def __init__(self, backend: str, reason: str, install: str) -> None:
        super().__init__(backend, reason, install)
        self.backend = backend
        self.reason = reason
        self.install = install

    def __str__(self) -> str:
        return f"backend {self.backend!r} cannot run: {self.reason}. To install it: {self.install}"
