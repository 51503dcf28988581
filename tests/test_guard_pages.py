"""Torture: rows flush against pages that must not be touched; a child process per engine, since a fault kills it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from matrix import Engine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the child uses Linux's mmap and mprotect")


def test_no_read_or_write_beyond_the_arrays(engine: Engine) -> None:
    """Every C up to 4 lanes + 3, every dtype, both ends; logits, labels, dense targets, weights and `out`."""
    child = Path(__file__).with_name("child_guard_pages.py")
    command = [sys.executable, "-X", "faulthandler", str(child), engine.backend, engine.variant]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (
        f"exit status {done.returncode}: the last lines say which case\n{done.stdout}{done.stderr}"
    )
    assert done.stdout.endswith("done\n")
