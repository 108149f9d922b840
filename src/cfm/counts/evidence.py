"""Are these numbers counts? What a look at stored values shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Evidence:
    """What some stored values look like.

    Parameters
    ----------
    n_values
        Stored values looked at.
    share_fractional
        Share that are not whole numbers, 0 to 1; NaN and infinity count as not whole.
    minimum, maximum
        Smallest and largest finite value; 0 where there is none.
    n_not_finite
        Values that are NaN or infinite.
    """

    n_values: int
    share_fractional: float
    minimum: float
    maximum: float
    n_not_finite: int

    @classmethod
    def of(cls, values: NDArray[np.generic]) -> Evidence:
        """Look at all of `values`."""
        if values.size == 0:
            return cls(0, 0.0, 0.0, 0.0, 0)
        if values.dtype.kind in "bui":
            return cls(values.size, 0.0, float(values.min()), float(values.max()), 0)
        low, high = float(values.min()), float(values.max())
        n_not_finite = 0
        if not (np.isfinite(low) and np.isfinite(high)):  # a NaN anywhere makes both NaN
            finite = values[np.isfinite(values)]
            n_not_finite = values.size - finite.size
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        return cls(values.size, _count_fractional(values) / values.size, low, high, n_not_finite)

    @property
    def is_counts(self) -> bool:
        """Non-negative whole numbers only."""
        return self.share_fractional == 0.0 and self.minimum >= 0

    def __str__(self) -> str:
        share = "less than 0.1%" if 0 < self.share_fractional < 0.001 else f"{self.share_fractional:.1%}"
        text = (
            f"{share} of {self.n_values:,} stored values are not whole numbers, "
            f"minimum {self.minimum:.4g}, maximum {self.maximum:.4g}"
        )
        if self.n_not_finite:
            text += f", {self.n_not_finite:,} NaN or infinite"
        return f"{text} ({self._looks_like()})"

    def _looks_like(self) -> str:
        if self.is_counts:
            return "counts"
        if self.n_not_finite:
            return "damaged: counts have neither"
        if self.minimum < 0:
            return "scaled or centred" if self.share_fractional else "negative whole numbers: no counts"
        if self.maximum < 20:
            return "log-normalised"
        return "normalised, imputed or corrected"


def is_count(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which values are non-negative and whole; NaN and infinity are not."""
    return _is_whole(values) & np.greater_equal(values, 0)


def _is_whole(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    whole: NDArray[np.bool_] = np.isfinite(values) & (values == np.rint(values))
    return whole


def _count_fractional(values: NDArray[np.generic], block: int = 1 << 16) -> int:
    # In blocks that stay in the cache: a chunk of many cells needs no second copy of its values.
    return sum(
        int(np.count_nonzero(~_is_whole(values[start : start + block]))) for start in range(0, values.size, block)
    )
