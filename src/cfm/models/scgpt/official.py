"""The random numbers of the official code, in its order: for comparing with its results, not for use.

There, bins and samples come from two generators with a state, so that they hang on all cells that went before. Here is
that state without torch: its generator on the CPU is the Mersenne Twister that numpy's legacy one is, seeded alike.
"""

from __future__ import annotations

import numba
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm._core.errors import OptionError
from cfm.tokens import TokenBatch, bin_values

from .tokenizer import with_first


class TorchWords:
    """The 32-bit words of torch's CPU generator after ``torch.manual_seed``.

    Parameters
    ----------
    seed
        Seed.
    """

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed % 2**32)

    def words(self, n: int) -> NDArray[np.uint32]:
        """The next n words."""
        return self._state.randint(0, 2**32, n, dtype=np.uint32)

    def skip_int64(self) -> None:
        """What drawing one int64 takes: making the iterator of a DataLoader does so."""
        self.words(2)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """What ``torch.randperm(n)`` gives; right for the lengths of cells, not for millions.

        Examples
        --------
        >>> TorchWords(0).permutation(5)
        array([4, 0, 1, 3, 2])
        """
        return _shuffled(self.words(max(n - 1, 0)), n)


@numba.njit(nogil=True, cache=True)
def _shuffled(words, n):  # type: ignore[no-untyped-def]
    order = np.arange(n)
    for i in range(n - 1):
        other = i + np.int64(words[i]) % (n - i)
        order[i], order[other] = order[other], order[i]
    return order


def in_column_order(
    counts: sp.csr_matrix | sp.csr_array, tokens: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
    """Ids, counts and offsets of the known genes of each cell, by column; a gene in two columns stays two tokens."""
    rows = sp.csr_array(counts, copy=True)
    rows.sum_duplicates()  # sorts the columns too
    ids = tokens[rows.indices]
    kept = (ids >= 0) & (rows.data != 0)
    offsets = np.concatenate(([0], np.cumsum(kept)))[rows.indptr].astype(np.int64)
    return ids[kept], rows.data[kept].astype(np.float32), offsets


class OfficialTokenizer:
    """Tokens as the official ``embed_data`` makes them in one process, with the state of its two generators.

    The cells have to come in order from the first; the first one seeds the generators anew.

    Parameters
    ----------
    tokens
        int32[genes of the file]: token of each column by its exact name, -1 for none.
    cls, cls_value
        Token that stands first, and its value.
    n_edges
        Number of quantiles between which bins lie.
    max_length
        Most tokens of a cell.
    seeds
        Of numpy's generator and of torch's.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        cls: int,
        cls_value: float,
        n_edges: int,
        max_length: int,
        seeds: tuple[int, int],
    ) -> None:
        self.tokens, self.cls, self.cls_value = tokens, cls, cls_value
        self.n_edges, self.max_length, self.seeds = n_edges, max_length, seeds
        self._next = -1

    def __call__(self, counts: sp.csr_matrix | sp.csr_array, start: int) -> TokenBatch:
        """Tokenise cells; `start` is the position in the file of the first."""
        if start == 0:
            self._draws, self._samples = np.random.RandomState(self.seeds[0]), TorchWords(self.seeds[1])
            self._samples.skip_int64()
        elif start != self._next:
            msg = "compat='official' draws as the official code does, cell after cell from the first of the file"
            raise OptionError(f"{msg}; it cannot begin at cell {start}.")
        ids, values, offsets = in_column_order(counts, self.tokens)
        bins = bin_values(values, offsets, self.n_edges, self._draws.random_sample(len(values))).astype(np.float32)
        parts = [self._sampled(int(a), int(b)) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        lengths = np.array([len(part) for part in parts], np.int64)
        kept = np.concatenate([*parts, np.zeros(0, np.int64)])
        left = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        self._next = start + len(parts)
        return with_first(ids[kept], bins[kept], left, self.cls, self.cls_value, start)

    def _sampled(self, start: int, stop: int) -> NDArray[np.int64]:
        """Positions of the tokens of one cell that stay, in the order in which they come out."""
        limit = self.max_length - 1
        if stop - start <= limit:
            return np.arange(start, stop)
        return start + self._samples.permutation(stop - start)[:limit]
