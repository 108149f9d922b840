"""Raw counts as a stream of CSR chunks, never dense and never whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cfm._core.errors import CountsError

from .evidence import Evidence, is_count
from .reading import CSR, RowReader


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
    counts: CSR


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
        ``read(start, stop)`` gives these rows.
    whole
        Whether the values are counts. Otherwise any finite numbers from 0 on will do.
    """

    where: str
    var: pd.DataFrame
    n_cells: int
    read: RowReader
    whole: bool = True

    def chunks(self, chunk_cells: int) -> Iterator[Chunk]:
        """Read the cells in file order, `chunk_cells` at a time, and check every value on the way.

        Raises
        ------
        CountsError
            A chunk holds something else than non-negative whole numbers, or numbers.
        """
        for start in range(0, self.n_cells, chunk_cells):
            stop = min(start + chunk_cells, self.n_cells)
            counts = self.read(start, stop)
            # Compiled code reads these as addresses.
            if counts.nnz and not 0 <= counts.indices.min() <= counts.indices.max() < len(self.var):
                msg = (
                    f"{self.where} is damaged: cells {start:,} to {stop - 1:,} have values in columns beyond the "
                    f"{len(self.var):,} genes. Write the file again from where it came."
                )
                raise CountsError(msg)
            evidence = Evidence.of(counts.data)
            if not self.whole:
                self._check_numbers(evidence, start, stop)
            elif not evidence.is_counts:
                values = np.flatnonzero(~is_count(counts.data))
                cells = start + np.unique(np.searchsorted(counts.indptr, values, side="right") - 1)
                msg = (
                    f"{self.where} began as counts, but in cells {start:,} to {stop - 1:,}, {len(cells):,} hold other "
                    f"values (the first is cell {cells[0]:,}): {evidence}. Name the layer that holds counts for all "
                    "cells with layer=, or drop these cells."
                )
                raise CountsError(msg)
            yield Chunk(start, counts)

    def _check_numbers(self, evidence: Evidence, start: int, stop: int) -> None:
        if evidence.minimum < 0 or evidence.n_not_finite:
            raise CountsError(
                f"{self.where} holds no normalised values in cells {start:,} to {stop - 1:,}, which are 0 or more: {evidence}. "
                "Name the layer that does with layer=."
            )

    def sample(self, blocks: int = 4, block_cells: int = 64) -> Evidence:
        """Look at a few blocks of cells spread over the file, or at all of a small one."""
        if self.n_cells <= blocks * block_cells:
            return Evidence.of(self.read(0, self.n_cells).data if self.n_cells else np.empty(0))
        starts = np.linspace(0, self.n_cells - block_cells, blocks).astype(int).tolist()
        # From the end, since a reader may hold what it read last, and the stream begins with the first cells.
        rows = [self.read(start, start + block_cells).data for start in reversed(starts)]
        return Evidence.of(np.concatenate(rows))
