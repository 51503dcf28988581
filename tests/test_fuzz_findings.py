"""Files on which a reader once failed in another way than in words, kept by tests/fuzz/fuzz_files.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz")
sys.path.insert(0, str(FUZZ))

from fuzz_files import read_all, seeds  # noqa: E402

from fastce._cli._files import READERS  # noqa: E402

FILES = [path for path in sorted((FUZZ / "findings").iterdir()) if path.suffix in READERS]


@pytest.mark.parametrize("number", range(len(seeds())))
def test_the_seeds_are_good(number: int, tmp_path: Path) -> None:
    """What is spoiled was right before."""
    suffix, data = seeds()[number]
    path = tmp_path / f"seed{suffix}"
    path.write_bytes(data)
    assert read_all(path, bfloat16=False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_findings(path: Path) -> None:
    """Read, or refused in words."""
    read_all(path, bfloat16=False)
    read_all(path, bfloat16=True)
