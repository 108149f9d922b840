"""Tokens of scFoundation: the expressed genes of a cell with their values, then the depth asked for and its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm._core.errors import OptionError
from cfm.tokens import TokenBatch, gene_rows
from cfm.tokens.rows import GeneRows

from .options import Choices

SCALE = 1e4


@dataclass(frozen=True)
class ScfoundationTokenizer:
    """CSR rows over the genes of one file to tokens. Of a gene the token is its place in the official list.

    Parameters
    ----------
    tokens
        int32[genes of the file]: token of each column, -1 for none.
    n_genes
        Genes of the list. The next token is the depth asked for, the one after it the depth of the cell.
    choices
        How values and depths are made.
    totals
        Counts of each cell of the file, for values that are normalised; None takes the sum of the values.
    total_name
        Column that they came from.
    """

    tokens: NDArray[np.int32]
    n_genes: int
    choices: Choices
    totals: NDArray[np.float64] | None = None
    total_name: str = ""

    def __call__(self, counts: sp.csr_matrix | sp.csr_array, start: int) -> TokenBatch:
        """Tokenise cells; `start` is the position in the file of the first."""
        rows = gene_rows(counts, self.tokens, self.n_genes)
        values = self.values(rows)
        lengths = np.diff(rows.offsets)
        filled = lengths > 0
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths + 2 * filled)))
        last = offsets[1:][filled] - 1
        is_gene = np.ones(offsets[-1], bool)
        is_gene[last] = is_gene[last - 1] = False
        ids, all_values = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
        ids[is_gene], all_values[is_gene] = rows.ids, values
        ids[last - 1], ids[last] = self.n_genes, self.n_genes + 1
        asked, own = self.depths(rows, values, start)
        all_values[last - 1], all_values[last] = asked[filled], own[filled]
        return TokenBatch(ids, all_values, offsets, np.arange(start, start + len(lengths)))

    def values(self, rows: GeneRows) -> NDArray[np.float64]:
        """float64[n]: the value of each expressed gene."""
        if self.choices.input == "normalized":
            return rows.counts
        totals = np.repeat(sums(rows.counts, rows.offsets), np.diff(rows.offsets))
        # In this order the official code multiplies and divides, once for cells and once for bulk.
        if self.choices.target_sum is None:
            return np.log1p(rows.counts / totals * SCALE)
        return np.log1p(rows.counts / (totals / self.choices.target_sum))

    def depths(
        self, rows: GeneRows, values: NDArray[np.float64], start: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """float64[n_cells], twice: the depth asked for, and that of the cell; without meaning where no gene is expressed."""
        choices = self.choices
        total = sums(values if choices.bulk else rows.counts, rows.offsets)
        if self.totals is not None:
            total = self._given(np.diff(rows.offsets) > 0, start)
        if choices.depth is None:
            own = total if choices.input == "normalized" else _log10(total)
            return own, own
        return choices.depth(np.where(total > 0, total, 1)), _log10(total)

    def _given(self, filled: NDArray[np.bool_], start: int) -> NDArray[np.float64]:
        """The totals that came with the cells."""
        assert self.totals is not None
        given = self.totals[start : start + len(filled)].astype(np.float64)
        if len(bad := np.flatnonzero(filled & ~((given > 0) & np.isfinite(given)))):
            raise OptionError(
                f"obs[{self.total_name!r}] has {given[bad[0]]:g} for cell {start + bad[0]:,}, which expresses genes: total_key= "
                "takes the column with the counts of each cell before they were normalised."
            )
        return given


def sums(values: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64[n_cells]: sum over each cell, 0 where it has nothing."""
    found = np.zeros(len(offsets) - 1)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        found[filled] = np.add.reduceat(values, offsets[filled])
    return found


def _log10(total: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log10(np.where(total > 0, total, 1))
