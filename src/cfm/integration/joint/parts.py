"""From counts to what goes into a table: which features are in use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm.integration.features import Kind

from .table import Measured

MIN_CELLS = 3
"""Peaks that are open in fewer cells are not modelled."""


def features_in_use(kind: Kind, counts: sp.csr_matrix) -> NDArray[np.int64]:
    """int64: columns to model, of what has no `most_variable` of its own: all proteins, all peaks but the rarest."""
    if kind == "protein":
        return np.arange(counts.shape[1])
    return np.flatnonzero(counts.getnnz(axis=0) >= MIN_CELLS)


def measured(
    counts: sp.csr_matrix,
    columns: NDArray[np.int64],
    names: NDArray[np.str_],
    rows: NDArray[np.int64],
    vectors: NDArray[np.float32] | None = None,
) -> Measured:
    """A modality with the features in use."""
    totals = np.asarray(counts.sum(axis=1), np.float64).ravel()
    return Measured(sp.csr_matrix(counts[:, columns], dtype=np.float32), totals, rows, names[columns], vectors)


def aligned(part: Measured, names: NDArray[np.str_]) -> tuple[Measured, float]:
    """A modality with the features of a saved model in their order, and the share of these that were there.

    Features that are not there count as not seen.
    """
    place = {name: i for i, name in enumerate(part.names.tolist())}
    source = np.array([place.get(name, -1) for name in names.tolist()])
    there = np.flatnonzero(source >= 0)
    pick = sp.csr_matrix((np.ones(len(there), np.float32), (source[there], there)), (part.counts.shape[1], len(names)))
    counts = sp.csr_matrix(part.counts @ pick)
    return Measured(counts, part.totals, part.rows, names, part.extra), len(there) / len(names)


def sizes(parts: Mapping[Kind, Measured]) -> dict[Kind, int]:
    """Number of features of each modality."""
    return {kind: part.counts.shape[1] for kind, part in parts.items()}
