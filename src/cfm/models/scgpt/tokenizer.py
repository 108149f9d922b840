"""Tokens of scGPT: ``<cls>``, then the expressed genes of a cell, each with the bin of its count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm.tokens import TokenBatch, bin_values, gene_rows
from cfm.tokens.keyed import cell_keys, keyed_uniform, lowest
from cfm.tokens.rows import GeneRows

Ties = Literal["left", "random"]
Select = Literal["random", "top"]

_FOR_BINS, _FOR_SAMPLES = 1, 2
_VALUES_AT_A_TIME = 4_000_000


@dataclass(frozen=True)
class ScgptTokenizer:
    """CSR rows over the genes of one file to tokens. What a cell becomes depends on its counts alone.

    Parameters
    ----------
    tokens
        int32[genes of the file]: token id of each column, -1 for none.
    n_tokens
        Size of the vocabulary, special tokens included.
    cls, cls_value
        Token that stands first, and its value.
    n_edges
        Number of quantiles between which bins lie: one less than the official ``n_bins``.
    max_length
        Most tokens of a cell, ``<cls>`` included.
    ties
        Which bin a count takes that lies on several edges.
    select
        Which genes of a longer cell stay.
    seed
        For random ties and random genes.
    zeros
        Whether genes of the file that the cell does not express are tokens too, with bin 0.
    apart
        int64[n_tokens]: modality of each token; the values of a modality are binned without those of the others.
    """

    tokens: NDArray[np.int32]
    n_tokens: int
    cls: int
    cls_value: float
    n_edges: int
    max_length: int
    ties: Ties = "left"
    select: Select = "random"
    seed: int = 0
    zeros: bool = False
    apart: NDArray[np.int64] | None = None

    def __call__(self, counts: sp.csr_matrix | sp.csr_array, start: int) -> TokenBatch:
        """Tokenise cells; `start` is the position in the file of the first."""
        rows = gene_rows(counts, self.tokens, self.n_tokens)
        keys = cell_keys(rows.ids, rows.counts, rows.offsets, self.seed)
        draws = keyed_uniform(keys, rows.ids, rows.offsets, _FOR_BINS) if self.ties == "random" else None
        bins = self._bins(rows, draws)
        if not self.zeros:
            return self._chosen(rows, bins, keys, start)
        return _joined([self._chosen(*part) for part in self._with_zeros(rows, bins, keys, start)])

    def _bins(self, rows: GeneRows, draws: NDArray[np.float64] | None) -> NDArray[np.float32]:
        """The bin of each count among those of its cell and modality."""
        # Single precision, as in the official code: it decides on which side of an edge a value falls.
        counts = rows.counts.astype(np.float32)
        if self.apart is None:
            return bin_values(counts, rows.offsets, self.n_edges, draws).astype(np.float32)
        of_token, bins = self.apart[rows.ids], np.empty(len(counts), np.float32)
        for modality in np.unique(of_token):
            its_own = of_token == modality
            offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(its_own)))[rows.offsets]
            bins[its_own] = bin_values(
                counts[its_own], offsets, self.n_edges, None if draws is None else draws[its_own]
            )
        return bins

    def _chosen(self, rows: GeneRows, bins: NDArray[np.float32], keys: NDArray[np.uint64], start: int) -> TokenBatch:
        """At most the longest number of genes of each cell, after ``<cls>``."""
        limit = self.max_length - 1
        if np.diff(rows.offsets).max(initial=0) <= limit:
            return with_first(rows.ids, bins, rows.offsets, self.cls, self.cls_value, start)
        draws = keyed_uniform(keys, rows.ids, rows.offsets, _FOR_SAMPLES)
        kept, offsets = lowest(-rows.counts if self.select == "top" else draws, draws, rows.offsets, limit)
        return with_first(rows.ids[kept], bins[kept], offsets, self.cls, self.cls_value, start)

    def _with_zeros(
        self, rows: GeneRows, bins: NDArray[np.float32], keys: NDArray[np.uint64], start: int
    ) -> Iterator[tuple[GeneRows, NDArray[np.float32], NDArray[np.uint64], int]]:
        """All genes of the file for each cell that has any count, some cells at a time: these rows are long."""
        genes = np.unique(self.tokens[self.tokens >= 0])
        n_cells = len(rows.offsets) - 1
        step = max(1, _VALUES_AT_A_TIME // max(1, len(genes)))
        for first in range(0, max(n_cells, 1), step):
            last = min(first + step, n_cells)
            a, b = rows.offsets[first], rows.offsets[last]
            filled = np.diff(rows.offsets[first : last + 1]) > 0
            offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(filled * len(genes))))
            cells = np.repeat(np.arange(last - first), np.diff(rows.offsets[first : last + 1]))
            where = offsets[cells] + np.searchsorted(genes, rows.ids[a:b])
            counts, values = np.zeros(offsets[-1]), np.zeros(offsets[-1], np.float32)
            counts[where], values[where] = rows.counts[a:b], bins[a:b]
            ids = np.tile(genes, int(filled.sum()))
            yield GeneRows(ids, counts, offsets, rows.totals[first:last]), values, keys[first:last], start + first


def with_first(
    ids: NDArray[np.int32],
    values: NDArray[np.float32],
    offsets: NDArray[np.int64],
    token: int,
    value: float,
    start: int,
) -> TokenBatch:
    """Put one token before those of each cell that has any; a cell without genes stays without tokens."""
    lengths = np.diff(offsets)
    filled = lengths > 0
    new = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths + filled)))
    is_gene = np.ones(new[-1], bool)
    is_gene[new[:-1][filled]] = False
    all_ids, all_values = np.full(new[-1], token, np.int32), np.full(new[-1], value, np.float32)
    all_ids[is_gene], all_values[is_gene] = ids, values
    return TokenBatch(all_ids, all_values, new, np.arange(start, start + len(lengths)))


def _joined(batches: list[TokenBatch]) -> TokenBatch:
    """Batches one after another as one."""
    lengths = np.concatenate([batch.lengths for batch in batches])
    values = [batch.values for batch in batches if batch.values is not None]
    return TokenBatch(
        np.concatenate([batch.ids for batch in batches]),
        np.concatenate(values),
        np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths))),
        np.concatenate([batch.rows for batch in batches]),
    )
