"""Sentences of UCE: genes drawn by their counts, with replacement, and read chromosome by chromosome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numba
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm.tokens import TokenBatch, gene_rows
from cfm.tokens.keyed import cell_keys, keyed_uniform
from cfm.tokens.pool import over_rows

from .species import CLS, RIGHT, Genes

_FOR_GENES, _FOR_CHROMOSOMES = 1, 2


@dataclass(frozen=True)
class Atlas:
    """The genes of a species in the order in which a chromosome is read.

    With genes numbered like this, those of a cell stand grouped by chromosome and sorted within, without a sort.

    Parameters
    ----------
    rows
        int32[genes]: token of each gene.
    chromosomes
        int32[genes]: its chromosome, numbered from 0.
    names
        int32[chromosomes]: token of each chromosome.
    number
        int32[genes of the vocabulary]: number of each gene here.
    """

    rows: NDArray[np.int32]
    chromosomes: NDArray[np.int32]
    names: NDArray[np.int32]
    number: NDArray[np.int32]

    @classmethod
    def of(cls, genes: Genes) -> Self:
        """Sort the genes of a species."""
        order = genes.reading_order()
        names, chromosomes = np.unique(genes.chromosomes[order], return_inverse=True)
        number = np.empty(len(order), np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        return cls(genes.rows[order], chromosomes.astype(np.int32), names.astype(np.int32), number)


@dataclass(frozen=True)
class UceTokenizer:
    """CSR rows over the genes of one file to sentences. What a cell becomes depends on its counts and on the seed.

    Parameters
    ----------
    columns
        int32[genes of the file]: number of the gene of each column in the atlas, -1 for none.
    atlas
        The genes.
    sample_size
        Genes drawn.
    pad_length
        Longest sentence; what does not fit is cut off.
    min_genes
        Cells that express fewer genes of the file get no sentence.
    seed
        Another seed, other draws.
    """

    columns: NDArray[np.int32]
    atlas: Atlas
    sample_size: int = 1024
    pad_length: int = 1536
    min_genes: int = 0
    seed: int = 0

    def __call__(self, counts: sp.csr_matrix | sp.csr_array, start: int) -> TokenBatch:
        """Tokenise cells; `start` is the position in the file of the first."""
        atlas, n_cells = self.atlas, counts.shape[0]
        rows = gene_rows(counts, self.columns, len(atlas.rows))
        keys = cell_keys(rows.ids, rows.counts, rows.offsets, self.seed)
        draws = _keyed(keys, np.arange(self.sample_size, dtype=np.int32), _FOR_GENES)
        # By their tokens, which the model knows them by, and not by their numbers here.
        scores = _keyed(keys, atlas.names, _FOR_CHROMOSOMES)
        wanted = enough_genes(counts, self.min_genes)
        out, lengths = empty_sentences(n_cells, atlas, self.sample_size, self.pad_length)
        limit = self.pad_length
        over_rows(
            lambda a, b: _draw_and_write(
                rows.ids, rows.counts, rows.offsets, draws, scores, wanted, atlas.rows, atlas.chromosomes, atlas.names,
                limit, a, b, out, lengths,
            ),
            np.arange(n_cells + 1) * (self.sample_size + 1),
        )  # fmt: skip
        return batch_of(out, lengths, start)


def _keyed(keys: NDArray[np.uint64], ids: NDArray[np.int32], purpose: int) -> NDArray[np.float64]:
    """float64[n_cells, n]: a number in [0, 1) for each of n things in each cell."""
    n_cells, n = len(keys), len(ids)
    return keyed_uniform(keys, np.tile(ids, n_cells), np.arange(n_cells + 1) * n, purpose).reshape(n_cells, n)


def enough_genes(counts: sp.csr_matrix | sp.csr_array, min_genes: int) -> NDArray[np.bool_]:
    """Which cells express so many genes of the file, known to the model or not; all where none are asked for."""
    if min_genes <= 0:
        return np.ones(counts.shape[0], bool)
    rows = sp.csr_array(counts, copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return np.diff(rows.indptr) >= min_genes


def empty_sentences(
    n_cells: int, atlas: Atlas, sample_size: int, pad_length: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Room for sentences, one a row, and for their lengths."""
    longest = 1 + sample_size + 2 * min(len(atlas.names), sample_size)
    return np.empty((n_cells, min(longest, pad_length)), np.int32), np.zeros(n_cells, np.int64)


def batch_of(sentences: NDArray[np.int32], lengths: NDArray[np.int64], start: int) -> TokenBatch:
    """The batch of sentences, one a row, each so long."""
    ids = sentences[np.arange(sentences.shape[1]) < lengths[:, None]]
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    return TokenBatch(ids, None, offsets, np.arange(start, start + len(lengths)))


@numba.njit(nogil=True, cache=True)
def _draw_and_write(  # type: ignore[no-untyped-def]
    ids, counts, offsets, draws, scores, wanted, rows, chromosomes, names, limit, first, last, out, lengths
):
    longest = 0
    for cell in range(first, last):
        longest = max(longest, offsets[cell + 1] - offsets[cell])
    cumulated, times = np.empty(longest, np.float64), np.empty(longest, np.int32)
    for cell in range(first, last):
        start, n = offsets[cell], offsets[cell + 1] - offsets[cell]
        if n == 0 or not wanted[cell]:
            continue
        total = 0.0
        for i in range(n):
            total += np.log1p(counts[start + i])
            cumulated[i] = total
        times[:n] = 0
        for draw in draws[cell]:
            times[min(np.searchsorted(cumulated[:n], draw * total, side="right"), n - 1)] += 1
        lengths[cell] = write_sentence(
            ids[start : start + n], times[:n], scores[cell], rows, chromosomes, names, limit, out[cell]
        )


@numba.njit(nogil=True, cache=True)
def write_sentence(genes, times, scores, rows, chromosomes, names, limit, out):  # type: ignore[no-untyped-def]
    """Write the sentence of a cell and give its length.

    `genes` are numbers in the atlas, ascending, each drawn so many `times`; chromosomes come in the order of their
    `scores`, and what is longer than `limit` is left out.
    """
    starts, which, n_groups = np.empty(len(genes) + 1, np.int64), np.empty(len(genes), np.float64), 0
    before = -1
    for i in range(len(genes)):
        chromosome = chromosomes[genes[i]]
        if times[i] and chromosome != before:
            starts[n_groups], which[n_groups] = i, scores[chromosome]
            n_groups, before = n_groups + 1, chromosome
    starts[n_groups] = len(genes)
    length = _put(out, 0, CLS, limit)
    for group in np.argsort(which[:n_groups]):
        first = starts[group]
        length = _put(out, length, names[chromosomes[genes[first]]], limit)
        for i in range(first, starts[group + 1]):
            for _ in range(times[i]):
                length = _put(out, length, rows[genes[i]], limit)
        length = _put(out, length, RIGHT, limit)
    return length


@numba.njit(nogil=True, cache=True)
def _put(out, length, token, limit):  # type: ignore[no-untyped-def]
    if length == limit:
        return length
    out[length] = token
    return length + 1
