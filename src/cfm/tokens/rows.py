"""From CSR rows over the genes of a file to rows over the tokens of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import scipy.sparse as sp
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from .pool import over_rows


@dataclass(frozen=True)
class GeneRows:
    """Cells as the expressed genes that a model knows, in ascending token id.

    The order of columns in the file, its storage and its dtype leave no trace here: this is what makes a
    vector depend on the cell alone.

    Parameters
    ----------
    ids
        int32[n]: token ids, ascending within a cell.
    counts
        float64[n]: counts, duplicates summed, never 0.
    offsets
        int64[n_cells + 1].
    totals
        float64[n_cells]: counts of the cell over all genes of the file, known to the model or not.
    """

    ids: NDArray[np.int32]
    counts: NDArray[np.float64]
    offsets: NDArray[np.int64]
    totals: NDArray[np.float64]


def gene_rows(counts: sp.csr_matrix | sp.csr_array, tokens: NDArray[np.int32], n_tokens: int) -> GeneRows:
    """Map the columns of CSR rows to tokens, sum duplicates, drop unknown genes and zeros.

    Parameters
    ----------
    counts
        cells x genes of the file, any numeric dtype, indices in any order.
    tokens
        int32[genes of the file]: token of each column, -1 for none.
    n_tokens
        Size of the vocabulary.

    Raises
    ------
    ValueError
        Not one token for each column, or a token that the vocabulary does not have.
    """
    # The kernels check no bounds: a wrong token would be written outside their arrays.
    if len(tokens) != counts.shape[1] or (len(tokens) and tokens.max() >= n_tokens):
        raise ValueError(f"{len(tokens)} tokens below {n_tokens} do not fit {counts.shape[1]} columns")
    indptr = np.ascontiguousarray(counts.indptr, dtype=np.int64)
    indices = np.ascontiguousarray(counts.indices, dtype=np.int32)
    native = counts.data.dtype in (np.float32, np.float64)  # others would each be compiled anew
    data = np.ascontiguousarray(counts.data, dtype=None if native else np.float64)
    n_cells = len(indptr) - 1
    ids = np.empty(len(data), np.int32)
    values = np.empty(len(data), np.float64)
    lengths = np.zeros(n_cells, np.int64)
    totals = np.zeros(n_cells, np.float64)
    over_rows(
        lambda a, b: _map_rows(indptr, indices, data, tokens, n_tokens, a, b, ids, values, lengths, totals), indptr
    )
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    if offsets[-1] == len(ids):
        return GeneRows(ids, values, offsets, totals)
    kept_ids, kept_values = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float64)
    over_rows(lambda a, b: _compact(indptr, offsets, ids, values, a, b, kept_ids, kept_values), indptr)
    return GeneRows(kept_ids, kept_values, offsets, totals)


@numba.njit(nogil=True, cache=True)
def _map_rows(indptr, indices, data, tokens, n_tokens, first, last, ids, values, lengths, totals):  # type: ignore[no-untyped-def]
    # A dense accumulator with one bit a token replaces a sort: walking over the set bits gives the tokens in
    # ascending order for less than sorting a few thousand ids, and duplicates add up on the way.
    sums = np.zeros(n_tokens, np.float64)
    bits = np.zeros(n_tokens // 64 + 1, np.uint64)
    one, low = np.uint64(1), np.uint64(63)
    for row in range(first, last):
        total = 0.0
        for j in range(indptr[row], indptr[row + 1]):
            value = np.float64(data[j])
            total += value
            token = tokens[indices[j]]
            if token >= 0 and value != 0:
                sums[token] += value
                bits[token >> 6] |= one << (np.uint64(token) & low)
        totals[row] = total
        out = indptr[row]
        for place in range(len(bits)):
            word = bits[place]
            while word:
                token = 64 * place + _trailing_zeros(word)  # type: ignore[call-arg]
                word &= word - one
                ids[out] = token
                values[out] = sums[token]
                sums[token] = 0.0
                out += 1
            bits[place] = 0
        lengths[row] = out - indptr[row]


@intrinsic
def _trailing_zeros(_typing, _word):  # type: ignore[no-untyped-def]
    """Position of the lowest set bit of a word that is not 0: one instruction of the processor."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        del context, signature
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@numba.njit(nogil=True, cache=True)
def _compact(indptr, offsets, ids, values, first, last, kept_ids, kept_values):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        source = indptr[row]
        for j in range(offsets[row], offsets[row + 1]):
            kept_ids[j] = ids[source]
            kept_values[j] = values[source]
            source += 1
