"""Whether this process is a forked child, known to whoever imports this before the fork.

No Numba here, so that it can be imported with fastce: in a child of a process that used OpenMP, by Numba or by the
C core, Numba's threads would hang or be killed.
"""

from __future__ import annotations

import os
import threading

_child = threading.Event()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_child.set)


def forked() -> bool:
    """Tell whether this process was forked since the import of this module."""
    return _child.is_set()
