"""Runs of rows that fit a cache: for what visits its logits more than once, or reads them from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator

BLOCK_BYTES = 8 << 20
"""Logits and dense target that are visited at a time: they fit a last-level cache, and make a call's cost vanish."""


def blocks(positions: tuple[int, ...], row_bytes: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array of positions into boxes of about BLOCK_BYTES, each a run of rows in C order."""
    return boxes(positions, max(1, BLOCK_BYTES // max(1, row_bytes)))


def boxes(positions: tuple[int, ...], rows: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array of positions into boxes of about so many rows, each a run of rows in C order."""
    if not positions:
        yield ()
        return
    inside = math.prod(positions[1:])
    step = max(1, rows // max(1, inside))
    whole = [tuple(slice(0, n) for n in positions[1:])]
    for i in range(0, positions[0] if inside else 0, step):
        for rest in boxes(positions[1:], rows) if inside > rows else whole:
            yield (slice(i, min(i + step, positions[0])), *rest)
