"""Compiled Numba kernels on disk: used by the next process, and never a reason to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import numpy as np
from numba.core import caching, compiler
import fastce

def refuse(*args, **options):
    raise PermissionError("read-only")

if "read-only" in sys.argv:
    caching._CacheLocator.ensure_cache_path = refuse
if "compile nothing" in sys.argv:
    compiler.compile_extra = refuse
x, y = np.random.default_rng(0).standard_normal((300, 100), dtype=np.float32), np.arange(300) % 100
loss = fastce.cross_entropy(x, y, backend="numba", num_threads=2)
assert abs(loss - fastce.cross_entropy(x, y, backend="cython")) < 1e-6 * loss
print(fastce.show_config("dicts")["backends"]["numba"]["cache"])
"""


def run(folder: Path, *how: str) -> str:
    """Run the program with a cache folder; return where it says its cache is."""
    env = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *how], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_kernels_are_compiled_once(tmp_path: Path) -> None:
    """A folder that is not there is made; the next process compiles nothing; a damaged file is as good as none."""
    folder = tmp_path / "absent" / "cache"
    assert run(folder).startswith(str(folder))
    kept = sorted(folder.rglob("*.nbc"))
    assert kept
    run(folder, "compile nothing")
    for file in kept:
        file.write_bytes(file.read_bytes()[:100])
    run(folder)
    assert sorted(folder.rglob("*.nbc")) == kept
    assert all(file.stat().st_size > 100 for file in kept)


def test_without_a_folder_to_write_to(tmp_path: Path) -> None:
    """As on a read-only file system."""
    assert run(tmp_path, "read-only").startswith("none")
    assert not list(tmp_path.rglob("*.nbc"))
