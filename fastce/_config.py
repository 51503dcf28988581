"""What there is on this machine and what fastce makes of it: the text of `fastce info` and of bug reports."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any, Literal, overload

import numpy as np

from fastce import _backends, _settings


@overload
def show_config(mode: Literal["stdout"] = ...) -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show versions, threads, and each backend or why it cannot run.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print the configuration, or return it.

    Returns
    -------
    dict or None
        For "dicts". "versions", "platform", "environment" (the variables that fastce reads and that are set),
        "num_threads" ("count" and where it came from, "source") and "backends": for each name "available" and
        what the backend tells of itself (of the C core: the features of the CPU, the ISA in use, OpenMP), or
        "reason" and "install", the command that would make it available.

    Raises
    ------
    ValueError
        For another mode, and for an environment variable whose value is not accepted.

    Examples
    --------
    >>> import fastce
    >>> config = fastce.show_config("dicts")
    >>> config["backends"]["numpy"]["available"]
    True
    >>> config["num_threads"]["count"] >= 1
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode: expected 'stdout' or 'dicts', got {mode!r}")
    config = _collect()
    if mode == "dicts":
        return config
    print("\n".join(_lines(config)))
    return None


def _collect() -> dict[str, Any]:
    from fastce import __version__

    count, source = _settings.thread_limit(None)
    return {
        "versions": {
            "fastce": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "ml_dtypes": _version("ml_dtypes"),
        },
        "platform": f"{sys.platform} {platform.machine()}",
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "num_threads": {"count": count, "source": source},
        "backends": {row.name: _backend(row) for row in _backends.BACKENDS},
    }


_VARIABLES = ("FASTCE_BACKEND", "FASTCE_NUM_THREADS", "FASTCE_ISA", "OMP_NUM_THREADS")


def _backend(row: _backends.Backend) -> dict[str, Any]:
    error = _backends.why_not(row.name)
    if error is not None:
        return {"available": False, "reason": error.reason, "install": error.install}
    return {"available": True, **_backends.load(row.name).config()}


def _version(module: str) -> str | None:
    try:
        return str(__import__(module).__version__)
    except ImportError:
        return None


def _lines(config: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in config.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")] if value else []
        elif isinstance(value, (list, tuple)):
            lines.append(f"{indent}{key}: {' '.join(map(str, value))}")
        else:
            lines.append(f"{indent}{key}: {'none' if value is None else value}")
    return lines
