"""Sums that keep what rounding loses of them, so that no number of terms and no grouping shows in float64."""

from __future__ import annotations

import math
from typing import NamedTuple


class Sum(NamedTuple):
    """A compensated sum (Neumaier's): exact to float64's rounding for any number of terms."""

    total: float = 0.0
    lost: float = 0.0

    def plus(self, x: float) -> Sum:
        """Return the sum with one more term."""
        total = self.total + x
        large, small = (self.total, x) if abs(self.total) >= abs(x) else (x, self.total)
        return Sum(total, self.lost + ((large - total) + small if math.isfinite(total) else 0.0))

    def merged(self, other: Sum) -> Sum:
        """Return the sum of all terms of both."""
        return self.plus(other.total).plus(other.lost)

    @property
    def value(self) -> float:
        return self.total + self.lost
