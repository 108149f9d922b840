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
        finite = np.isfinite(values)
        n_not_finite = int(values.size - np.count_nonzero(finite))
        kept = values[finite] if n_not_finite else values
        fractional = int(np.count_nonzero(kept != np.rint(kept))) + n_not_finite
        low, high = (float(kept.min()), float(kept.max())) if kept.size else (0.0, 0.0)
        return cls(values.size, fractional / values.size, low, high, n_not_finite)

    @property
    def is_counts(self) -> bool:
        """Non-negative whole numbers only."""
        return self.share_fractional == 0.0 and self.minimum >= 0

    def __str__(self) -> str:
        text = (
            f"{self.share_fractional:.1%} of {self.n_values:,} stored values are not whole numbers, "
            f"minimum {self.minimum:.4g}, maximum {self.maximum:.4g}"
        )
        if self.n_not_finite:
            text += f", {self.n_not_finite:,} NaN or infinite"
        return f"{text} ({self._looks_like()})"

    def _looks_like(self) -> str:
        if self.is_counts:
            return "counts"
        if self.n_not_finite:
            return "damaged: counts have no NaN"
        if self.minimum < 0:
            return "scaled or centred" if self.share_fractional else "negative whole numbers: no counts"
        if self.maximum < 20:
            return "log-normalised"
        return "normalised, imputed or corrected"
