"""Reading rows of a matrix as CSR, whatever its storage, without ever holding the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata.abc import CSCDataset
from numpy.typing import NDArray

from cfm._core.errors import CountsError
from cfm._core.logging import logger

type CSR = sp.csr_matrix | sp.csr_array
type RowReader = Callable[[int, int], CSR]

HELD_VALUES = 2**25
"""Stored values that a reader may hold: a quarter of a gigabyte in float32 with indices, twice that while it reads."""

HELD_ENTRIES = 2**28
"""The same as a number of entries, zeros included, where the number of stored values is not known."""

# Rows of a view that lie this close are read in one go: a few rows too many cost less than one more read.
_GAP = 16


def as_csr(block: Any) -> CSR:
    """Rows in any form as CSR; no copy where they are CSR already."""
    if hasattr(block, "compute"):
        block = block.compute()
    if block.dtype.kind not in "buif":
        raise CountsError(f"A matrix of dtype {block.dtype} holds no counts. Convert it: adata.X.astype('float32').")
    if sp.issparse(block):
        return block.tocsr()
    dense = np.atleast_2d(np.asarray(block))
    # scipy knows neither half precision nor the other byte order.
    dtype = np.dtype(np.float32) if dense.dtype == np.float16 else dense.dtype.newbyteorder("=")
    return sp.csr_array(dense.astype(dtype, copy=False))


def row_reader(matrix: Any) -> RowReader:
    """A function ``read(start, stop)`` for a matrix: numpy, scipy sparse, backed HDF5 or zarr, dask."""
    if isinstance(matrix, CSCDataset):
        return _rows_of_csc_file(matrix)
    if sp.issparse(matrix) and matrix.format == "csc":
        n_rows = matrix.shape[0]

        def read(start: int, stop: int) -> CSR:
            return as_csr(matrix if stop - start == n_rows else matrix[start:stop])

        return HeldRows(read, _cut([n_rows], _rows_within(n_rows, matrix.nnz)))
    if hasattr(matrix, "compute"):
        return _rows_of_dask(matrix)
    return lambda start, stop: as_csr(matrix[start:stop])


def view_reader(matrix: Any, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> RowReader:
    """A function ``read(start, stop)`` for the view ``matrix[rows][:, columns]``, which is never made.

    AnnData makes the X of a view whole each time it is touched, on a backed file from the whole of the file.
    """
    every_column = np.array_equal(columns, np.arange(matrix.shape[1]))

    def of_columns(block: CSR) -> CSR:
        return block if every_column else block[:, columns]

    if isinstance(matrix, np.ndarray) or (sp.issparse(matrix) and matrix.format == "csr"):
        return lambda start, stop: of_columns(as_csr(matrix[rows[start:stop]]))
    read = row_reader(matrix)

    def of_view(start: int, stop: int) -> CSR:
        wanted, position = np.unique(rows[start:stop], return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > _GAP) + 1)
        blocks = [read(int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs]
        block = blocks[0] if len(blocks) == 1 else sp.vstack(blocks, format="csr")
        return of_columns(block[position])

    return of_view


class HeldRows:
    """Rows of a storage that gives a few of them at the price of many: reads a group, and holds it until the next.

    A matrix stored by column gives any of its rows only in a pass over all its values, and a dask array computes
    whole blocks.

    Parameters
    ----------
    read
        Reads a group of rows.
    edges
        First row of each group, ascending, and the number of rows at the end.
    note
        What to tell the user if several groups are read.
    """

    def __init__(self, read: Callable[[int, int], CSR], edges: Sequence[int], note: str = "") -> None:
        self._read, self._edges, self._note = read, np.asarray(edges), note
        self._held: tuple[int, CSR] | None = None

    def __call__(self, start: int, stop: int) -> CSR:
        """Rows `start` to `stop`."""
        first = min(int(np.searchsorted(self._edges, start, side="right")) - 1, len(self._edges) - 2)
        last = max(int(np.searchsorted(self._edges, stop, side="left")), first + 1)
        parts = []
        for group in range(first, last):
            offset = int(self._edges[group])
            parts.append(self._group(group)[max(start - offset, 0) : stop - offset])
        return parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")

    def _group(self, group: int) -> CSR:
        if self._held is None or self._held[0] != group:
            if self._note and len(self._edges) > 2:
                logger.info(self._note)
                self._note = ""
            self._held = None  # so that the old group and the new one are never held together
            self._held = group, self._read(int(self._edges[group]), int(self._edges[group + 1]))
        return self._held[1]


def _rows_within(n_rows: int, n_values: int) -> int:
    """Rows that hold about `HELD_VALUES` of `n_values` stored values."""
    return max(1, n_rows * HELD_VALUES // max(n_values, 1))


def _cut(blocks: Sequence[int], rows: int) -> list[int]:
    """Edges of consecutive blocks, none of more than `rows` rows."""
    edges, start = [0], 0
    for size in blocks:
        edges.extend(range(start + rows, start + size, rows))
        start += size
        if size:
            edges.append(start)
    return edges if len(edges) > 1 else [0, 0]


def _rows_of_csc_file(matrix: Any) -> RowReader:
    n_rows, n_columns = matrix.shape
    indptr = np.asarray(matrix.group["indptr"])
    n_values = int(indptr[-1])
    # Columns whose values are read at a time: few beside what is kept of them.
    inner = np.unique(np.searchsorted(indptr, np.arange(0, n_values, max(HELD_VALUES // 8, 1))))
    columns = [0, *inner[(inner > 0) & (inner < n_columns)].tolist(), n_columns]

    def read(start: int, stop: int) -> CSR:
        # Not format="csr": scipy would go by way of row and column numbers, at twice the memory.
        return sp.hstack([matrix[:, a:b][start:stop] for a, b in pairwise(columns)], format="csc").tocsr()

    edges = _cut([n_rows], _rows_within(n_rows, n_values))
    note = (
        f"the counts are stored by column (CSC), and reading cells takes {len(edges) - 1} passes over the file; stored "
        "by row they take one. Convert once: adata = adata.to_memory(); adata.X = adata.X.tocsr(); "
        "adata.write_h5ad('by_row.h5ad')"
    )
    return HeldRows(read, edges, note)


def _rows_of_dask(matrix: Any) -> RowReader:
    blocks = matrix.chunks[0]
    edges = _cut(blocks, max(1, HELD_ENTRIES // max(matrix.shape[1], 1)))
    note = (
        f"dask blocks of {max(blocks, default=0):,} cells are too large to hold and are computed in parts. "
        "Smaller blocks are faster: adata.X = adata.X.rechunk((1000, -1))"
        if len(edges) - 1 > sum(size > 0 for size in blocks)
        else ""
    )
    return HeldRows(lambda start, stop: as_csr(matrix[start:stop]), edges, note)
