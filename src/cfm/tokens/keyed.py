"""Random numbers that depend on what a cell holds, and on nothing else.

A counter-based generator: a number is a hash of the seed, the cell and the gene. So it is the same wherever the cell
stands in a file, in whatever chunk, thread or order of genes, and there is no state to carry along.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from .pool import over_rows

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53
_BOXES = 256


def cell_keys(
    ids: NDArray[np.int32], counts: NDArray[np.float64], offsets: NDArray[np.int64], seed: int
) -> NDArray[np.uint64]:
    """A hash of each cell's pairs of token and count, in any order of the pairs.

    Parameters
    ----------
    ids
        int32, one per token; not negative.
    counts
        float64, one per token.
    offsets
        int64[n_cells + 1].
    seed
        Another seed, other keys.

    Returns
    -------
    uint64[n_cells].

    Examples
    --------
    >>> ids, counts = np.array([5, 9, 9, 5], np.int32), np.array([1.0, 2.0, 2.0, 1.0])
    >>> first, second = cell_keys(ids, counts, np.array([0, 2, 4]), seed=0)
    >>> bool(first == second)
    True
    """
    keys = np.empty(len(offsets) - 1, np.uint64)
    bits = np.ascontiguousarray(counts, np.float64).view(np.uint64)
    start = np.uint64(seed % 2**64)
    over_rows(lambda a, b: _key_rows(ids, bits, offsets, start, a, b, keys), offsets)
    return keys


def keyed_uniform(
    keys: NDArray[np.uint64], ids: NDArray[np.int32], offsets: NDArray[np.int64], purpose: int
) -> NDArray[np.float64]:
    """A number in [0, 1) for each token of each cell.

    Parameters
    ----------
    keys
        uint64[n_cells], from `cell_keys`.
    ids
        int32, one per token; not negative.
    offsets
        int64[n_cells + 1].
    purpose
        What the numbers are for; numbers for two purposes have nothing in common.

    Returns
    -------
    float64, one per token.
    """
    numbers = np.empty(len(ids), np.float64)
    over_rows(lambda a, b: _uniform_rows(keys, ids, offsets, np.uint64(purpose), a, b, numbers), offsets)
    return numbers


def lowest(
    scores: NDArray[np.float64], draws: NDArray[np.float64], offsets: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The `limit` tokens of each cell with the lowest scores, in the order in which they stand; all of a shorter cell.

    Parameters
    ----------
    scores
        float64, one per token.
    draws
        float64, one per token; the lower one wins where scores are equal.
    offsets
        int64[n_cells + 1].
    limit
        Most tokens of a cell.

    Returns
    -------
    Positions of the tokens that are kept, and the offsets of what is left.

    Examples
    --------
    >>> lowest(np.array([3.0, 1.0, 1.0]), np.array([0.5, 0.9, 0.1]), np.array([0, 3]), limit=1)
    (array([2]), array([0, 1]))
    """
    kept_offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.minimum(np.diff(offsets), limit))))
    kept = np.empty(kept_offsets[-1], np.int64)
    over_rows(lambda a, b: _lowest_rows(scores, draws, offsets, kept_offsets, a, b, kept), offsets)
    return kept, kept_offsets


@numba.njit(nogil=True, cache=True)
def _mixed(word):  # type: ignore[no-untyped-def]
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): every bit of the result hangs on every bit given."""
    word = (word ^ (word >> np.uint64(30))) * _FIRST
    word = (word ^ (word >> np.uint64(27))) * _SECOND
    return word ^ (word >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def _key_rows(ids, bits, offsets, seed, first, last, keys):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        total = np.uint64(0)
        for i in range(offsets[row], offsets[row + 1]):
            # A sum of hashes, so that the order of the pairs leaves no trace.
            total += _mixed(_mixed((np.uint64(ids[i]) + np.uint64(1)) * _STEP) ^ bits[i])
        keys[row] = _mixed(total + _mixed(seed + _STEP))


@numba.njit(nogil=True, cache=True)
def _uniform_rows(keys, ids, offsets, purpose, first, last, numbers):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        key = _mixed(keys[row] + (purpose + np.uint64(1)) * _STEP)
        for i in range(offsets[row], offsets[row + 1]):
            word = _mixed(key ^ _mixed((np.uint64(ids[i]) + np.uint64(1)) * _STEP))
            numbers[i] = np.float64(word >> np.uint64(11)) * _TO_UNIT


@numba.njit(nogil=True, cache=True)
def _lowest_rows(scores, draws, offsets, kept_offsets, first, last, kept):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        start, stop, out = offsets[row], offsets[row + 1], kept_offsets[row]
        n = kept_offsets[row + 1] - out
        if n == stop - start:
            for i in range(n):
                kept[out + i] = start + i
            continue
        if n == 0:
            continue
        highest = _nth(scores[start:stop], n - 1)
        n_tied = n
        for i in range(start, stop):
            n_tied -= scores[i] < highest
        # Of those whose score is the highest that stays, so many stay as there is room for.
        tied = draws[start:stop][scores[start:stop] == highest]
        last_draw = _nth(tied, n_tied - 1) if n_tied else -1.0
        for i in range(start, stop):
            stays = scores[i] < highest
            if scores[i] == highest and draws[i] <= last_draw and n_tied:
                stays = True
                n_tied -= 1
            if stays:
                kept[out] = i
                out += 1


@numba.njit(nogil=True, cache=True)
def _nth(numbers, n):  # type: ignore[no-untyped-def]
    """The number that sorting would put at place n: counted into boxes, of which only the right one is looked at again."""
    boxes = np.empty(_BOXES, np.int64)
    while True:
        low, high = numbers[0], numbers[0]
        for number in numbers:
            low, high = min(low, number), max(high, number)
        if low == high:
            return low
        scale = (_BOXES - 1) / (high - low)
        boxes[:] = 0
        for number in numbers:
            boxes[np.int64((number - low) * scale)] += 1
        box = 0
        while n >= boxes[box]:
            n -= boxes[box]
            box += 1
        inside, kept = np.empty(boxes[box], numbers.dtype), 0
        for number in numbers:
            if np.int64((number - low) * scale) == box:
                inside[kept] = number
                kept += 1
        numbers = inside
