"""Raw counts as a stream of CSR chunks, never dense and never whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from cfm._core.errors import CountsError

from .evidence import Evidence


@dataclass(frozen=True)
class Chunk:
    """Consecutive cells.

    Parameters
    ----------
    start
        Position of the first cell in the file.
    counts
        CSR, cells x all genes, in the dtype of the storage. Indices may be unsorted, zeros may be stored.
    """

    start: int
    counts: sp.csr_matrix | sp.csr_array


@dataclass(frozen=True)
class CountSource:
    """Where the raw counts are, and how to read rows of them.

    Parameters
    ----------
    where
        Name of the place, as a user would write it: ``"X"``, ``"raw.X"``, ``"layers['counts']"``.
    var
        The genes of that place, one row per column.
    n_cells
        Number of cells.
    read
        ``read(start, stop)`` gives these rows: CSR, any other sparse matrix, or dense.
    """

    where: str
    var: pd.DataFrame
    n_cells: int
    read: Callable[[int, int], Any]

    def chunks(self, chunk_cells: int) -> Iterator[Chunk]:
        """Read the cells in file order, `chunk_cells` at a time, and check every value on the way.

        Raises
        ------
        CountsError
            A chunk holds something else than non-negative whole numbers.
        """
        for start in range(0, self.n_cells, chunk_cells):
            stop = min(start + chunk_cells, self.n_cells)
            counts = as_csr(self.read(start, stop))
            evidence = Evidence.of(counts.data)
            if not evidence.is_counts:
                msg = (
                    f"{self.where} began as counts, but cells {start:,} to {stop - 1:,} are none: {evidence}. "
                    "Name the layer that holds counts for all cells with layer=, or drop these cells."
                )
                raise CountsError(msg)
            yield Chunk(start, counts)

    def sample(self, blocks: int = 4, block_cells: int = 64) -> Evidence:
        """Look at a few blocks of cells spread over the file."""
        starts = np.unique(np.linspace(0, max(self.n_cells - block_cells, 0), blocks).astype(int))
        rows = [as_csr(self.read(int(s), min(int(s) + block_cells, self.n_cells))).data for s in starts]
        return Evidence.of(np.concatenate(rows)) if self.n_cells else Evidence.of(np.empty(0))


def as_csr(block: Any) -> sp.csr_matrix | sp.csr_array:
    """Rows in any form as CSR; no copy where they are CSR already."""
    if hasattr(block, "compute"):
        block = block.compute()
    if sp.issparse(block):
        return block.tocsr()
    return sp.csr_array(np.atleast_2d(np.asarray(block)))


def row_reader(matrix: Any) -> Callable[[int, int], Any]:
    """A function that reads rows of a matrix: numpy, scipy sparse, backed HDF5 or zarr, dask."""
    if sp.issparse(matrix) and matrix.format != "csr":
        # A CSC matrix gives rows only by walking over all its columns: once for all, not once a chunk.
        converted: list[Any] = []

        def read(start: int, stop: int) -> Any:
            if not converted:
                converted.append(matrix.tocsr())
            return converted[0][start:stop]

        return read
    return lambda start, stop: matrix[start:stop]
