"""Encoders over ragged rows: what turns expression values into an order or into bins.

All take ``values`` and ``offsets`` as in `TokenBatch` and give an array of the length of ``values``. They work
cell by cell, so a cell's result depends on that cell alone, with any number of threads.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from .pool import over_rows


def rank_order(values: NDArray[np.floating], offsets: NDArray[np.int64]) -> NDArray[np.int32]:
    """Positions within each cell from the highest value to the lowest; ties keep their order.

    Equal to ``np.argsort(-row, kind="stable")`` for every row, bit for bit, by a radix sort over the bits of the
    float. Values must be numbers: NaN is refused.

    Parameters
    ----------
    values
        float32 or float64, one per token.
    offsets
        int64[n_cells + 1].

    Returns
    -------
    int32, one per token: position within the cell.

    Examples
    --------
    >>> rank_order(np.array([1.0, 3.0, 3.0, 2.0, 5.0]), np.array([0, 3, 5]))
    array([1, 2, 0, 1, 0], dtype=int32)
    """
    return _ranked(values, offsets, np.empty(0, np.int32))


def rank_ids(ids: NDArray[np.int32], values: NDArray[np.floating], offsets: NDArray[np.int64]) -> NDArray[np.int32]:
    """Token ids of each cell from the highest value to the lowest; ties keep their order.

    The same as taking `ids` in the order of `rank_order`, in one pass.

    Parameters
    ----------
    ids
        int32, one per token.
    values
        float32 or float64, one per token; NaN is refused.
    offsets
        int64[n_cells + 1].

    Examples
    --------
    >>> rank_ids(np.array([7, 8, 9], np.int32), np.array([1.0, 3.0, 3.0]), np.array([0, 3]))
    array([8, 9, 7], dtype=int32)
    """
    if len(ids) != len(values):
        raise ValueError(f"{len(ids)} ids do not go with {len(values)} values")
    return _ranked(values, offsets, np.ascontiguousarray(ids, np.int32))


def _ranked(values: NDArray[np.floating], offsets: NDArray[np.int64], ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """`ids` in rank order; positions where there are none."""
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    nan = bits.dtype.type(0x7F800000) if bits.dtype == np.uint32 else bits.dtype.type(0x7FF0000000000000)
    ranked = np.empty(len(values), np.int32)
    refused = np.zeros(1, np.bool_)
    over_rows(lambda a, b: _radix_rank(bits, nan, ids, offsets, a, b, ranked, refused), offsets)
    if refused[0]:
        raise ValueError("NaN cannot be ranked")
    return ranked


@numba.njit(nogil=True, cache=True)
def _radix_rank(bits, infinity, ids, offsets, first, last, ranked, refused):  # type: ignore[no-untyped-def]
    longest = 0
    for row in range(first, last):
        longest = max(longest, offsets[row + 1] - offsets[row])
    n_digits = bits.itemsize
    zero, one, eight, window = bits.dtype.type(0), bits.dtype.type(1), bits.dtype.type(8), bits.dtype.type(24)
    sign = bits.dtype.type(1) << bits.dtype.type(8 * n_digits - 1)
    keys_a, keys_b = np.empty(longest, bits.dtype), np.empty(longest, bits.dtype)
    order_a, order_b = np.empty(longest, np.int32), np.empty(longest, np.int32)
    places = np.empty(256, np.int32)
    for row in range(first, last):
        start, n = offsets[row], offsets[row + 1] - offsets[row]
        if n == 0:
            continue
        any_bit, all_bits = zero, ~zero
        for i in range(n):
            key = bits[start + i]
            if key & ~sign > infinity:
                refused[0] = True
            # Unsigned integers whose ascending order is the descending order of the floats. -0.0 ranks as 0.0.
            key = key if key & sign and key != sign else ~(key | sign)
            keys_a[i] = key
            order_a[i] = ids[start + i] if len(ids) else i
            any_bit |= key
            all_bits &= key
        # Only the bits that vary sort anything. Of these the highest 24 leave few keys equal that are not, and those few
        # stand beside each other: putting them right costs less than sorting by all bits.
        varying = any_bit ^ all_bits
        width = zero
        while width < bits.dtype.type(8 * n_digits) and varying >> width:
            width += one
        for attempt in range(2):
            shift = width - window if attempt == 0 and width > window else zero
            digits = bits.dtype.type(0)
            while shift + digits < width:
                _by_digit(keys_a, order_a, n, shift + digits, places, keys_b, order_b)
                keys_a, keys_b = keys_b, keys_a
                order_a, order_b = order_b, order_a
                digits += eight
            if shift == zero or _straighten(keys_a, order_a, n, shift):
                break
        for i in range(n):
            ranked[start + i] = order_a[i]


@numba.njit(nogil=True, cache=True)
def _by_digit(keys, order, n, shift, places, new_keys, new_order):  # type: ignore[no-untyped-def]
    """Sort by the eight bits from `shift` on; keys whose bits are equal keep their order."""
    low = keys.dtype.type(255)
    places[:] = 0
    for i in range(n):
        places[(keys[i] >> shift) & low] += 1
    total = 0
    for value in range(256):
        total, places[value] = total + places[value], total
    for i in range(n):
        key = keys[i]
        value = (key >> shift) & low
        place = places[value]
        places[value] = place + 1
        new_keys[place] = key
        new_order[place] = order[i]


@numba.njit(nogil=True, cache=True)
def _straighten(keys, order, n, shift):  # type: ignore[no-untyped-def]
    """Sort runs of keys that agree above `shift`, by insertion; False, and not done, where that would take long."""
    moves = 0
    for i in range(1, n):
        key, which, j = keys[i], order[i], i
        while j > 0 and keys[j - 1] > key:
            keys[j], order[j] = keys[j - 1], order[j - 1]
            j -= 1
        keys[j], order[j] = key, which
        moves += i - j
        if moves > 4 * n:
            return False
    return True


def bin_values(
    values: NDArray[np.floating],
    offsets: NDArray[np.int64],
    n_bins: int,
    draws: NDArray[np.float64] | None = None,
) -> NDArray[np.int32]:
    """Bin each value by the quantiles of its own cell; a value on an edge takes the upper bin, or a random one.

    The edges of a cell are the ``n_bins`` quantiles ``linspace(0, 1, n_bins)`` of its values, so bins run from 1 to
    ``n_bins`` and any strictly increasing transform of a cell (library size, log) leaves them as they are. Equal to
    ``np.digitize(row, np.quantile(row, np.linspace(0, 1, n_bins)))``.

    Several edges fall on one value where many counts are equal. With `draws`, such a value takes one of its bins at
    random: with ``left = np.digitize(row, edges)`` and ``right = np.digitize(row, edges, right=True)``, the bin is
    ``ceil(draw * (right - left) + left)``, and a value on no edge keeps its own.

    Parameters
    ----------
    values
        One per token, zeros left out.
    offsets
        int64[n_cells + 1].
    n_bins
        Number of bins.
    draws
        float64, one per token, from 0 to below 1; None for the upper bin.

    Raises
    ------
    ValueError
        A value is NaN, or there are not as many draws as values.

    Examples
    --------
    >>> values, offsets = np.array([1.0, 1.0, 2.0, 9.0]), np.array([0, 4])
    >>> bin_values(values, offsets, 3)
    array([1, 1, 2, 3], dtype=int32)
    >>> bin_values(values, offsets, 3, draws=np.array([0.0, 0.9, 0.5, 0.5]))
    array([1, 1, 2, 3], dtype=int32)
    """
    values = _binnable(values)
    if draws is not None and len(draws) != len(values):
        raise ValueError(f"{len(draws)} draws do not go with {len(values)} values")
    bins = np.empty(len(values), np.int32)
    quantiles = np.linspace(0, 1, n_bins)
    given = np.empty(0, np.float64) if draws is None else np.ascontiguousarray(draws, np.float64)
    over_rows(lambda a, b: _bin_rows(values, offsets, quantiles, given, a, b, bins), offsets)
    return bins


def quantile_edges(values: NDArray[np.floating], offsets: NDArray[np.int64], n_bins: int) -> NDArray[np.float64]:
    """The edges between the bins of `bin_values`; zeros for a cell without values.

    Parameters
    ----------
    values, offsets, n_bins
        As in `bin_values`.

    Returns
    -------
    float64[n_cells, n_bins].

    Examples
    --------
    >>> quantile_edges(np.array([1.0, 1.0, 2.0, 9.0]), np.array([0, 4]), 3)
    array([[1. , 1.5, 9. ]])
    """
    values = _binnable(values)
    edges = np.zeros((len(offsets) - 1, n_bins))
    quantiles = np.linspace(0, 1, n_bins)
    over_rows(lambda a, b: _edge_rows(values, offsets, quantiles, a, b, edges), offsets)
    return edges


def _binnable(values: NDArray[np.floating]) -> NDArray[np.floating]:
    if np.isnan(values).any():
        raise ValueError("NaN cannot be binned")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    return np.ascontiguousarray(values)


_SMALL = 1024
"""Whole numbers below this are counted, and not sorted: nearly all counts of a cell."""


@numba.njit(nogil=True, cache=True)
def _bin_rows(values, offsets, quantiles, draws, first, last, bins):  # type: ignore[no-untyped-def]
    edges = np.empty(len(quantiles), np.float64)
    times = np.zeros(_SMALL, np.int64)
    lefts, rights = np.empty(_SMALL, np.int64), np.empty(_SMALL, np.int64)
    for row in range(first, last):
        start, stop = offsets[row], offsets[row + 1]
        if start == stop:
            continue
        whole = _count(values[start:stop], times)
        _find_edges(_ordered(values[start:stop], times, whole), quantiles, edges)
        if whole:
            for value in range(_SMALL):
                if times[value]:
                    lefts[value] = np.searchsorted(edges, np.float64(value), side="right")
                    rights[value] = np.searchsorted(edges, np.float64(value), side="left")
        for i in range(start, stop):
            if whole:
                left, right = lefts[np.int64(values[i])], rights[np.int64(values[i])]
            else:
                left = np.searchsorted(edges, values[i], side="right")
                right = np.searchsorted(edges, values[i], side="left") if len(draws) else left
            bins[i] = np.ceil(draws[i] * (right - left) + left) if len(draws) else left


@numba.njit(nogil=True, cache=True)
def _edge_rows(values, offsets, quantiles, first, last, edges):  # type: ignore[no-untyped-def]
    times = np.zeros(_SMALL, np.int64)
    for row in range(first, last):
        part = values[offsets[row] : offsets[row + 1]]
        if len(part):
            _find_edges(_ordered(part, times, _count(part, times)), quantiles, edges[row])


@numba.njit(nogil=True, cache=True)
def _count(row, times):  # type: ignore[no-untyped-def]
    """How often each whole number stands in a row; False where there are other numbers."""
    times[:] = 0
    for value in row:
        if not 0 <= value < _SMALL or value != np.floor(value):
            return False
        times[np.int64(value)] += 1
    return True


@numba.njit(nogil=True, cache=True)
def _ordered(row, times, whole):  # type: ignore[no-untyped-def]
    """The values in ascending order: written out from their numbers where these are known, else sorted."""
    if not whole:
        return np.sort(row)
    ordered = np.empty_like(row)
    place = 0
    for value in range(_SMALL):
        for _ in range(times[value]):
            ordered[place] = value
            place += 1
    return ordered


@numba.njit(nogil=True, cache=True)
def _find_edges(ordered, quantiles, edges):  # type: ignore[no-untyped-def]
    for e in range(len(quantiles)):
        position = quantiles[e] * (len(ordered) - 1)
        below = int(np.floor(position))
        above = min(below + 1, len(ordered) - 1)
        part = position - below
        gap = ordered[above] - ordered[below]
        # numpy interpolates from the nearer side; so must we, or an edge may miss its own value by a bit.
        edges[e] = ordered[below] + gap * part if part < 0.5 else ordered[above] - gap * (1 - part)
