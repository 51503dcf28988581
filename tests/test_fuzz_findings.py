"""Files on which a reader once failed in another way than in words, kept by tests/fuzz/fuzz_files.py."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

FUZZ = Path(__file__).with_name("fuzz")
sys.path.insert(0, str(FUZZ))

from fuzz_files import read_all, seeds, spoil  # noqa: E402

SUFFIXES = {".npy", ".safetensors", ".json", ".state"}
FILES = [path for path in sorted((FUZZ / "findings").iterdir()) if path.suffix in SUFFIXES]


@pytest.mark.parametrize("number", range(len(seeds())))
def test_the_seeds_are_good(number: int, tmp_path: Path) -> None:
    """What is spoiled was right before."""
    suffix, data = seeds()[number]
    path = tmp_path / f"seed{suffix}"
    path.write_bytes(data)
    assert read_all(path, bfloat16=False)


@pytest.mark.parametrize("seed", range(4))
def test_spoiled_files(seed: int, tmp_path: Path) -> None:
    """Read, or refused in words: some that the driver makes, and all that once were neither."""
    rng, good = random.Random(seed), seeds()
    spoiled = [(suffix, spoil(data, rng)) for suffix, data in good * 12]
    kept = [("".join(path.suffixes), path.read_bytes()) for path in FILES]
    accepted = 0
    for number, (suffix, data) in enumerate(spoiled + kept):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(data)
        with np.errstate(all="ignore"):
            accepted += read_all(path, bfloat16=False)
            read_all(path, bfloat16=True)
    assert 0 < accepted < len(spoiled)
