"""Clause 15 where it is easy to miss: a backend that is loaded for the first time in a forked child."""

from __future__ import annotations

import subprocess
import sys

import pytest

from matrix import VARIANTS

PROGRAM = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own about forking with threads
import numpy as np
import fastce

x, y = np.random.default_rng(0).standard_normal((4000, 100), dtype=np.float32), np.arange(4000) % 100
used, first = sys.argv[1:]
expected = fastce.cross_entropy(x, y, backend=used, num_threads=2)
child = os.fork()
if child == 0:
    got = fastce.cross_entropy(x, y, backend=first, num_threads=2)
    os._exit(0 if abs(got - expected) < 1e-6 * expected else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("used", VARIANTS)
@pytest.mark.parametrize("first", VARIANTS)
def test_a_backend_first_loaded_in_a_forked_child(used: str, first: str) -> None:
    """The parent's threads, of whatever backend, do not make it hang."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, used, first], timeout=120, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
