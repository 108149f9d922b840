"""Sentences as the official code draws them, from one generator with a state: for comparing with it, not for use."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm._core.errors import OptionError
from cfm.tokens import TokenBatch

from .species import PAD
from .tokenizer import Atlas, batch_of, empty_sentences, enough_genes, write_sentence


class OfficialTokenizer:
    """Sentences with numpy's global generator, cell after cell, each batch filled up to its longest cell.

    The cells have to come in order from the first; the first one seeds the generator anew.

    Parameters
    ----------
    columns
        int32[genes of the file]: number of the gene of each column in the atlas, -1 for none.
    atlas, sample_size, pad_length, min_genes, seed
        As in `UceTokenizer`.
    batch_size
        Cells that the official code puts through the model together. Shorter ones are padded, and the pads are
        attended to; cells that get no sentence take no part.
    """

    def __init__(
        self,
        columns: NDArray[np.int32],
        atlas: Atlas,
        sample_size: int,
        pad_length: int,
        min_genes: int,
        seed: int,
        batch_size: int,
    ) -> None:
        self.columns, self.atlas, self.sample_size, self.pad_length = columns, atlas, sample_size, pad_length
        self.min_genes, self.seed, self.batch_size = min_genes, seed, batch_size
        self._next = -1
        self._open = 0

    def __call__(self, counts: sp.csr_matrix | sp.csr_array, start: int) -> TokenBatch:
        """Tokenise cells; `start` is the position in the file of the first."""
        if start == 0:
            self._state, self._open = np.random.RandomState(self.seed), 0
        elif start != self._next:
            msg = "compat='official' draws as the official code does, cell after cell from the first of the file"
            raise OptionError(f"{msg}; it cannot begin at cell {start}.")
        elif self._open:
            raise OptionError(
                f"compat='official' pads each batch of {self.batch_size} cells to its longest, and a batch does not end "
                f"where a chunk of {start:,} cells does. Set cfm.settings.chunk_cells to all cells of the file."
            )
        rows = sp.csr_array(counts, copy=True)
        rows.sum_duplicates()  # sorts the columns too
        wanted = enough_genes(counts, self.min_genes)
        sentences, lengths = empty_sentences(counts.shape[0], self.atlas, self.sample_size, self.pad_length)
        for cell in range(counts.shape[0]):
            part = slice(rows.indptr[cell], rows.indptr[cell + 1])
            genes = self.columns[rows.indices[part]]
            known = (genes >= 0) & (rows.data[part] != 0)
            if known.any() and wanted[cell]:
                lengths[cell] = self._sentence(genes[known], rows.data[part][known], sentences[cell])
        self._next = start + counts.shape[0]
        return batch_of(*self._padded(sentences, lengths), start)

    def _sentence(self, genes: NDArray[np.int32], counts: NDArray[np.floating], out: NDArray[np.int32]) -> int:
        """Draw genes and the order of chromosomes, and write the sentence; its length."""
        atlas = self.atlas
        drawn = drawn_genes(weights(counts), self._state.random_sample(self.sample_size))
        numbers, times = np.unique(genes[drawn], return_counts=True)
        codes = np.unique(atlas.chromosomes[numbers])
        self._state.shuffle(codes)
        scores = np.zeros(len(atlas.names))
        scores[codes] = np.arange(len(codes))
        return int(write_sentence(
            numbers, times, scores, atlas.rows, atlas.chromosomes, atlas.names, self.pad_length, out
        ))  # fmt: skip

    def _padded(
        self, sentences: NDArray[np.int32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Sentences with pads, as many as make those of a batch equally long."""
        filled = np.flatnonzero(lengths)
        longest = lengths.copy()
        for first in range(0, len(filled), self.batch_size):
            batch = filled[first : first + self.batch_size]
            longest[batch] = lengths[batch].max()
        within = np.arange(sentences.shape[1])
        sentences[(within >= lengths[:, None]) & (within < longest[:, None])] = PAD
        self._open = len(filled) % self.batch_size
        return sentences, longest


def weights(counts: NDArray[np.floating]) -> NDArray[np.float32]:
    """Probability of each gene to be drawn: log(1 + count) over its sum, and over its sum again, in single precision."""
    found = np.log1p(counts.astype(np.float32))
    found /= found.sum(dtype=np.float32)
    # Added up one after another, as Python's sum does.
    found /= np.cumsum(found, dtype=np.float32)[-1]
    return found


def drawn_genes(probabilities: NDArray[np.float32], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which gene each number in [0, 1) draws: what numpy's legacy ``choice`` does with it."""
    cumulated = np.cumsum(probabilities.astype(np.float64))
    found: NDArray[np.int64] = np.searchsorted(cumulated / cumulated[-1], uniforms, side="right")
    return found
