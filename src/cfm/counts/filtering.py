"""Leaving genes out that few cells express, for models whose official code does so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm._core.logging import logger

from .source import CountSource


def genes_in_cells(source: CountSource, min_cells: int, chunk_cells: int) -> CountSource:
    """The counts of the genes that at least so many cells express; takes a pass over all counts.

    Parameters
    ----------
    source
        All counts.
    min_cells
        Cells that a gene has to be seen in.
    chunk_cells
        Cells read at a time.
    """
    n_cells: NDArray[np.int64] = np.zeros(len(source.var), np.int64)
    for chunk in source.chunks(chunk_cells):
        counts = sp.csr_array(chunk.counts, copy=True)
        counts.sum_duplicates()
        counts.eliminate_zeros()
        n_cells += np.bincount(counts.indices, minlength=len(n_cells))
    kept = np.flatnonzero(n_cells >= min_cells)
    logger.info(
        "%d of %d genes are in fewer than %d cells and are left out", len(n_cells) - len(kept), len(n_cells), min_cells
    )
    return replace(source, var=source.var.iloc[kept], read=lambda start, stop: source.read(start, stop)[:, kept])
