"""Tokens of cfm-mini: the expressed genes of a cell, each with its log-normalised count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm.tokens import TokenBatch, gene_rows
from cfm.tokens.rows import GeneRows

TARGET_SUM = 1e4


@dataclass(frozen=True)
class MiniTokenizer:
    """CSR rows over the genes of one file to tokens.

    Parameters
    ----------
    tokens
        int32[genes of the file]: token of each column, -1 for none.
    n_tokens
        Size of the vocabulary.
    """

    tokens: NDArray[np.int32]
    n_tokens: int

    def __call__(self, counts: sp.csr_matrix | sp.csr_array, start: int) -> TokenBatch:
        """Tokenise cells; `start` is the position in the file of the first."""
        rows = gene_rows(counts, self.tokens, self.n_tokens)
        n_cells = len(rows.offsets) - 1
        return TokenBatch(rows.ids, log_normalise(rows), rows.offsets, np.arange(start, start + n_cells))


def log_normalise(rows: GeneRows) -> NDArray[np.float32]:
    """log(1 + 10,000 x / sum of the cell's known counts), the natural logarithm.

    The sum is over the genes that the model knows: what it cannot read leaves no trace, and a panel that holds a
    fifth of the genes still gives values that add up to 10,000.
    """
    lengths = np.diff(rows.offsets)
    filled = np.flatnonzero(lengths)
    sums = np.ones(len(lengths))
    if len(filled):
        sums[filled] = np.add.reduceat(rows.counts, rows.offsets[filled])
    return np.log1p(rows.counts * np.repeat(TARGET_SUM / sums, lengths)).astype(np.float32)
