"""Cells of several species in one object."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core.errors import MissingKeyError
from cfm.counts import find_counts
from cfm.integration import all_counts, on_common_genes
from cfm.integration.batches import in_memory


def species_rows(adata: AnnData, species_key: str) -> dict[str, NDArray[np.int64]]:
    """Cells of each species.

    Raises
    ------
    MissingKeyError
        No such column, or cells without a value.
    """
    obs = in_memory(adata.obs)
    if species_key not in obs:
        raise MissingKeyError(f"species_key={species_key!r}: obs has {[str(c) for c in obs.columns]}.")
    column = obs[species_key]
    if column.isna().any():
        raise MissingKeyError(f"obs[{species_key!r}] is missing in {int(column.isna().sum())} of {len(column)} cells.")
    names = column.astype(str).str.lower().to_numpy(str)
    return {name: np.flatnonzero(names == name) for name in np.unique(names).tolist()}


def on_genes_of_all(
    adata: AnnData, rows: dict[str, NDArray[np.int64]], layer: str | None, gene_column: str | None
) -> tuple[AnnData, str]:
    """The same cells on human genes that all their species have, with counts in X, and where these were."""
    source = find_counts(adata, layer=layer)
    counts, symbols = on_common_genes(all_counts(source), source.var, rows, gene_column)
    return AnnData(counts, in_memory(adata.obs), pd.DataFrame(index=symbols)), source.where
