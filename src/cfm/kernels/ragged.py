"""Where cells begin and end: checked on the host, then cut into the tiles of rows that blocks of a GPU work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfm._core.errors import OptionError

NARROW, WIDE = 64, 128
"""Query rows of a tile."""

WIDE_FROM = 640
"""Tokens from which a cell is cut into wide tiles. In shorter cells too many rows of a wide one would be empty."""

INT32_MAX = 2**31 - 1


class Tiles(NamedTuple):
    """Tiles of query rows, those with the most work first, so that no block starts late on a long cell.

    Attributes
    ----------
    cells
        int32[n], the cell of each tile.
    rows
        int32[n], its first row inside the cell.
    n_wide
        So many tiles at the front have 128 rows; the others have 64.
    """

    cells: NDArray[np.int32]
    rows: NDArray[np.int32]
    n_wide: int


def checked_offsets(offsets: ArrayLike, n_tokens: int, name: str = "offsets") -> NDArray[np.int64]:
    """Offsets as int64[n_cells + 1], when they are what they have to be.

    Parameters
    ----------
    offsets
        Places where cells begin, and the end of the last.
    n_tokens
        Where they have to end.
    name
        What to call them in a message.

    Raises
    ------
    OptionError
        They do not start at 0, go back, or end elsewhere. A kernel would read the tokens of other cells, or leave rows
        unwritten.
    """
    array = np.asarray(offsets)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise OptionError(
            f"{name}: one whole number for each cell and one for the end are needed; these are {array.dtype} of shape "
            f"{array.shape}."
        )
    array = array.astype(np.int64)
    if array[0] != 0:
        raise OptionError(f"{name} start at {array[0]:,}. They have to start at 0.")
    falling = np.flatnonzero(np.diff(array) < 0)
    if len(falling):
        i = int(falling[0])
        raise OptionError(f"{name} do not ascend: number {i} is {array[i]:,}, the next one {array[i + 1]:,}.")
    if array[-1] != n_tokens:
        raise OptionError(f"{name} end at {array[-1]:,}, and there are {n_tokens:,} tokens. They have to end there.")
    if n_tokens > INT32_MAX:
        raise OptionError(f"{n_tokens:,} tokens at once are more than {INT32_MAX:,}. Pass fewer cells at a time.")
    return array


def checked_known(n_known: ArrayLike, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of known tokens as int64[n_cells], each between 0 and the length of its cell."""
    array, lengths = np.asarray(n_known), np.diff(offsets)
    if array.shape != lengths.shape or (array.size and array.dtype.kind not in "iu"):
        raise OptionError(
            f"n_known has shape {array.shape} and is {array.dtype}; there are {len(lengths):,} cells, and each needs one "
            "whole number."
        )
    array = array.astype(np.int64)
    wrong = np.flatnonzero((array < 0) | (array > lengths))
    if len(wrong):
        i = int(wrong[0])
        raise OptionError(f"n_known of cell {i} is {array[i]:,}, and the cell has {lengths[i]:,} tokens.")
    return array


def row_tiles(offsets: ArrayLike, n_known: ArrayLike | None = None, *, wide_from: int = WIDE_FROM) -> Tiles:
    """Tiles that cover every row of every cell once. Cells without tokens have none.

    Parameters
    ----------
    offsets
        ``n_cells + 1`` places of queries.
    n_known
        Of each cell, how many tokens are known: a tile has less work where these are few.
    wide_from
        Tokens from which a cell gets wide tiles.
    """
    lengths = np.diff(np.asarray(offsets, dtype=np.int64))
    keys = lengths if n_known is None else np.asarray(n_known, dtype=np.int64)
    parts = []
    for size, chosen in ((WIDE, lengths >= wide_from), (NARROW, lengths < wide_from)):
        counts = np.where(chosen, -(-lengths // size), 0)
        cells = np.repeat(np.arange(len(lengths)), counts)
        rows = (np.arange(len(cells)) - np.repeat(np.cumsum(counts) - counts, counts)) * size
        # A row past the known ones sees itself too, in a tile of its own.
        work = keys[cells] + (0 if n_known is None else np.where(rows + size > keys[cells], size, 0))
        order = np.argsort(-work, kind="stable")
        parts.append((cells[order], rows[order]))
    (wide_cells, wide_rows), (cells, rows) = parts
    return Tiles(
        np.concatenate([wide_cells, cells]).astype(np.int32),
        np.concatenate([wide_rows, rows]).astype(np.int32),
        len(wide_cells),
    )


def longest(offsets: Sequence[int] | NDArray[np.int64]) -> int:
    """Tokens of the longest cell."""
    return int(np.diff(np.asarray(offsets, dtype=np.int64)).max(initial=0))
