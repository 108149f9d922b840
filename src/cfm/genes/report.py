"""How much of a data set a model reads: genes, counts, and what is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .matching import GeneMatch


@dataclass(frozen=True)
class Coverage:
    """What share of a data set a model reads.

    Parameters
    ----------
    n_genes
        Columns of the data.
    n_matched
        Columns that the model knows.
    n_vocabulary, n_vocabulary_matched
        Genes of the model, and how many of them the data has.
    share_of_counts
        Counts in matched columns over all counts, 0 to 1.
    lost
        The unmatched genes with most counts, most first, and the share of all counts that each holds.
    """

    n_genes: int
    n_matched: int
    n_vocabulary: int
    n_vocabulary_matched: int
    share_of_counts: float
    lost: dict[str, float]

    @classmethod
    def from_totals(cls, found: GeneMatch, totals: NDArray[np.float64], n_vocabulary: int, top: int = 10) -> Coverage:
        """Make the report from the total count of each column."""
        total = float(totals.sum()) or 1.0
        unmatched = np.flatnonzero((found.tokens < 0) & (totals > 0))
        # Columns may share a name; a lost name holds what all of them hold.
        lost: dict[str, float] = {}
        for i in unmatched:
            name = str(found.names[i])
            lost[name] = lost.get(name, 0.0) + float(totals[i] / total)
        return cls(
            n_genes=len(found.tokens),
            n_matched=found.n_columns,
            n_vocabulary=n_vocabulary,
            n_vocabulary_matched=found.n_tokens,
            share_of_counts=float(totals[found.tokens >= 0].sum() / total),
            lost=dict(sorted(lost.items(), key=lambda item: -item[1])[:top]),
        )

    def __str__(self) -> str:
        return (
            f"{self.n_matched:,} of {self.n_genes:,} genes matched, {self.share_of_counts:.1%} of counts "
            f"({self.n_vocabulary_matched:,} of the model's {self.n_vocabulary:,})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report in types that h5ad can hold: lost genes as two lists of one length."""
        return {
            "n_genes": self.n_genes,
            "n_matched": self.n_matched,
            "n_vocabulary": self.n_vocabulary,
            "n_vocabulary_matched": self.n_vocabulary_matched,
            "share_of_counts": self.share_of_counts,
            "lost_genes": list(self.lost),
            "lost_shares": np.asarray(list(self.lost.values()), dtype=np.float64),
        }
