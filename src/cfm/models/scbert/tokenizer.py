"""Tokens of scBERT: the expressed genes of a cell, each with the bin of its normalised count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm.tokens import GeneRows, TokenBatch, gene_rows

TARGET = 10_000
"""What the counts of a cell add up to, over the genes of the list."""


@dataclass(frozen=True)
class ScbertTokenizer:
    """CSR rows over the genes of one file to tokens.

    A token is the position of a gene in the list, its value the bin. Genes that a cell does not express are no tokens:
    the network gives them bin 0. Expressed genes in bin 0 are tokens all the same, so that every cell with a gene of
    the list has one, and its number of tokens is its number of genes.

    Parameters
    ----------
    tokens
        int32[genes of the file]: position of each column in the list, -1 for none.
    n_genes
        Length of the list.
    n_bins
        The highest bin.
    """

    tokens: NDArray[np.int32]
    n_genes: int
    n_bins: int

    def __call__(self, counts: sp.csr_matrix | sp.csr_array, start: int) -> TokenBatch:
        """Tokenise cells; `start` is the position in the file of the first."""
        rows = gene_rows(counts, self.tokens, self.n_genes)
        bins = np.minimum(np.floor(log_values(rows)), np.float32(self.n_bins))
        return TokenBatch(rows.ids, bins, rows.offsets, np.arange(start, start + len(rows.totals)))


def log_values(rows: GeneRows) -> NDArray[np.float32]:
    """log2(1 + x) of the counts x, after each cell was scaled to 10,000; float32, one per token.

    In single precision and in the order of the official recipe: it decides on which side of an edge a value falls.
    """
    counts = rows.counts.astype(np.float32)
    cells = np.repeat(np.arange(len(rows.totals)), np.diff(rows.offsets))
    # Of the genes of the list alone: the totals of the rows are those of all genes of the file.
    totals = np.bincount(cells, rows.counts, len(rows.totals)).astype(np.float32) / np.float32(TARGET)
    return (np.log1p(counts / totals[cells]) / np.log(2)).astype(np.float32)
