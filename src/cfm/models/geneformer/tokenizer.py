"""Tokens of Geneformer: the genes of a cell, from the one furthest above its median to the one furthest below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numba
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm._core.errors import OptionError
from cfm.tokens import TokenBatch, gene_rows, rank_order
from cfm.tokens.pool import over_rows
from cfm.tokens.rows import GeneRows

Arithmetic = Literal["sparse", "dense"]

TARGET_SUM = 10_000


@dataclass(frozen=True)
class GeneformerTokenizer:
    """CSR rows over the genes of one file to tokens in rank order.

    A gene's key is (count / total count of the cell x 10,000) / median of the gene. Rounding decides between keys that
    are all but equal, so the operations and dtypes are those of the official code: for sparse matrices it multiplies
    by reciprocals, for dense ones it divides. Equal keys stay in the order of the columns.

    Parameters
    ----------
    places
        int32[columns of the file]: place of each column in the order of ties, -1 for genes without a token. Columns
        of one gene have the same place; their counts are added.
    tokens
        int32[places]: token id of the gene at each place.
    medians
        float64[places]: its median.
    max_tokens
        Most tokens of a cell.
    ends
        Tokens before the first and after the last gene, or None.
    n_counts
        Total count of every cell of the file, in the dtype that decides about rounding; None takes the sum over all
        genes, in float64.
    arithmetic
        ``"sparse"`` or ``"dense"``.
    """

    places: NDArray[np.int32]
    tokens: NDArray[np.int32]
    medians: NDArray[np.float64]
    max_tokens: int
    ends: tuple[int, int] | None
    n_counts: NDArray[Any] | None = None
    arithmetic: Arithmetic = "sparse"

    def __call__(self, counts: sp.csr_matrix | sp.csr_array, start: int) -> TokenBatch:
        """Tokenise cells; `start` is the position in the file of the first."""
        rows, keys = self.keys(counts, start)
        order = rank_order(keys, rows.offsets)
        room = self.max_tokens - (0 if self.ends is None else 2)
        kept = np.minimum(np.diff(rows.offsets), room)
        # A cell without a gene gets no ends either: there is nothing between them that a model could read.
        lengths = kept if self.ends is None else np.where(kept > 0, kept + 2, 0)
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        ids = np.empty(offsets[-1], np.int32)
        first, last = self.ends or (-1, -1)
        over_rows(
            lambda a, b: _write_rows(rows.ids, rows.offsets, order, self.tokens, first, last, offsets, a, b, ids),
            rows.offsets,
        )
        return TokenBatch(ids, None, offsets, np.arange(start, start + counts.shape[0]))

    def keys(self, counts: sp.csr_matrix | sp.csr_array, start: int) -> tuple[GeneRows, NDArray[np.float64]]:
        """The genes of each cell in the order of ties, their ids being places, and the key of each."""
        weights = 1 / self.medians if self.arithmetic == "sparse" else self.medians
        return self._scaled(counts, start, weights)

    def normalised(self, counts: sp.csr_matrix | sp.csr_array, start: int) -> tuple[GeneRows, NDArray[np.float64]]:
        """The same genes, with count / total x 10,000 of each."""
        return self._scaled(counts, start, np.ones(len(self.medians)))

    def _scaled(
        self, counts: sp.csr_matrix | sp.csr_array, start: int, weights: NDArray[np.float64]
    ) -> tuple[GeneRows, NDArray[np.float64]]:
        rows = gene_rows(counts, self.places, len(self.tokens))
        totals = rows.totals if self.n_counts is None else self._given_totals(rows, start)
        if totals.dtype.kind != "f":
            totals = totals.astype(np.float64)
        # What numpy's promotion gives for a matrix and a column of these dtypes, and no wider.
        dtype = np.result_type(counts.dtype, totals.dtype)
        with np.errstate(divide="ignore"):
            factors = (1 / totals if self.arithmetic == "sparse" else totals).astype(dtype)
        keys = np.empty(len(rows.ids), np.float64)
        divide = self.arithmetic == "dense"
        over_rows(
            lambda a, b: _scale(rows.ids, rows.counts, rows.offsets, factors, weights, divide, a, b, keys), rows.offsets
        )
        return rows, keys

    def _given_totals(self, rows: GeneRows, start: int) -> NDArray[Any]:
        assert self.n_counts is not None
        totals = self.n_counts[start : start + len(rows.totals)]
        bad = ~(np.isfinite(totals) & (totals > 0)) & (rows.totals > 0)
        if bad.any():
            cell = start + int(np.flatnonzero(bad)[0])
            msg = f"n_counts= names a column that holds {self.n_counts[cell]} for cell {cell}, which has counts."
            raise OptionError(f"{msg} Leave n_counts= out: the sum over all genes is then taken.")
        return totals


def tie_places(tokens: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The place of each column in the order of ties, and the gene at each place.

    Genes that stand in one column come first, in the order of the file, then those of several columns, in the order of
    their first: so does the official code when it adds columns up.

    Parameters
    ----------
    tokens
        int32[columns]: gene of each column, -1 for none.

    Examples
    --------
    >>> places, genes = tie_places(np.array([5, 3, -1, 5, 7], np.int32))
    >>> places.tolist(), genes.tolist()
    ([2, 0, -1, 2, 1], [3, 7, 5])
    """
    known = np.flatnonzero(tokens >= 0)
    genes, first, inverse, times = np.unique(tokens[known], return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, times > 1))
    place_of_gene = np.empty(len(genes), np.int32)
    place_of_gene[order] = np.arange(len(genes), dtype=np.int32)
    places = np.full(len(tokens), -1, np.int32)
    places[known] = place_of_gene[inverse]
    return places, genes[order].astype(np.int32)


@numba.njit(nogil=True, cache=True)
def _scale(ids, counts, offsets, factors, weights, divide, first, last, keys):  # type: ignore[no-untyped-def]
    # In the dtype of the factors up to the weight, and in float64 from there on: so numpy rounds.
    kind = factors.dtype.type
    target = kind(TARGET_SUM)
    for row in range(first, last):
        factor = factors[row]
        for j in range(offsets[row], offsets[row + 1]):
            count = kind(counts[j])
            if divide:
                keys[j] = np.float64(count / factor * target) / weights[ids[j]]
            else:
                keys[j] = np.float64(count * factor * target) * weights[ids[j]]


@numba.njit(nogil=True, cache=True)
def _write_rows(places, offsets, order, tokens, cls, eos, new_offsets, first, last, ids):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        start, out, stop = offsets[row], new_offsets[row], new_offsets[row + 1]
        if out == stop:
            continue
        if cls >= 0:
            ids[out] = cls
            out += 1
            stop -= 1
            ids[stop] = eos
        for j in range(stop - out):
            ids[out + j] = tokens[places[start + order[start + j]]]
