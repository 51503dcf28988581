"""Where C, C++ and Cython programs find the header and the library: beside this file, however it was installed."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def get_include() -> str:
    """Return the directory of ``fastce.h``, for the include directories of a C, C++ or Cython program.

    Returns
    -------
    str
        The directory. A program that only includes the header, or cimports ``fastce.c_api``, needs no more than this.

    Examples
    --------
    >>> import fastce, os
    >>> os.listdir(fastce.get_include()).count("fastce.h")
    1
    """
    return str(PACKAGE / "include")


def get_library() -> str:
    """Return the path of the shared library of the C core, which needs no Python.

    Returns
    -------
    str
        The file. Programs are linked with it by the flags of ``fastce-config --libs``, or load it when they run.

    Examples
    --------
    >>> import ctypes, fastce
    >>> ctypes.CDLL(fastce.get_library()).fastce_abi_version()
    1
    """
    return str(PACKAGE / ("libfastce.dylib" if sys.platform == "darwin" else "libfastce.so"))
