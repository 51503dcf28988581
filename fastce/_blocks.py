"""Runs of rows that fit a cache: for what visits its logits more than once, or reads them from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator

BLOCK_BYTES = 4 << 20
"""Logits and dense target that are visited at a time: they fit a last-level cache, and make a call's cost vanish."""


def blocks(positions: tuple[int, ...], row_bytes: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array of positions into boxes of about BLOCK_BYTES, each a run of rows in C order."""
    if 0 in positions:
        return
    yield from _boxes(positions, max(1, BLOCK_BYTES // max(1, row_bytes)))


def _boxes(shape: tuple[int, ...], rows: int) -> Iterator[tuple[slice, ...]]:
    if not shape:
        yield ()
        return
    inside = math.prod(shape[1:])
    step = max(1, rows // inside)
    for i in range(0, shape[0], step):
        part = slice(i, min(i + step, shape[0]))
        for rest in _boxes(shape[1:], rows) if inside > rows else [tuple(slice(0, n) for n in shape[1:])]:
            yield (part, *rest)
