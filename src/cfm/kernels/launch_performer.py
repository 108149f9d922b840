"""Starting the kernels of Performer attention, as `cfm.kernels.launch` starts the others."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import launch
from .launch import KIB
from .ragged import INT32_MAX, row_tiles
from .sources import unit

PADDED_TO = 96
"""Features go to the kernels in multiples of this; those that are added have only zeros."""

SPLIT_ROWS = 1024
"""Tokens whose keys one block sums, a multiple of 64: one cell of 17,000 tokens then fills a large GPU.

It is always the same, so that a cell alone has the same bits as among others.
"""

PARTS = {"bfloat16": 3, "float16": 2}
"""Numbers of 16 bits that together are one of the projection in float32."""

SHARED = {
    "bfloat16": {"performer_norms": 0, "performer_key_max": 24 * KIB, "performer_keys": 33_280,
                 "performer_queries": 40 * KIB},
    "float16": {"performer_norms": 0, "performer_key_max": 16 * KIB, "performer_keys": 33_280,
                "performer_queries": 32 * KIB},
}  # fmt: skip
"""Bytes of shared memory of a block; ``performer_summary`` takes more for more features."""

_ROOM = 2**28
"""Bytes that sums over keys may take at a time: more cells go in groups."""


class Group(NamedTuple):
    """Cells that go at once, none of them empty.

    Attributes
    ----------
    first
        Number of the first.
    offsets
        int32[n_cells + 1], places in all tokens.
    tiles
        int32[2, n], cell of the group and first row of every 64 tokens.
    splits
        int32[2, n], the same of every `SPLIT_ROWS` tokens, cell after cell.
    cell_split
        int32[n_cells + 1], where the splits of each cell begin.
    """

    first: int
    offsets: Tensor
    tiles: Tensor
    splits: Tensor
    cell_split: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, offsets: list[int], projection: Tensor, scope: str, eps: float) -> Tensor:
    """Parameters as in `cfm.kernels.ops.performer_attention`."""
    q, k, v = (launch.aligned(x) for x in (q, k, v))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if not q.numel():
        return out
    dtype, device, heads, features = launch.dtype_of(q), q.device, q.shape[1], len(projection)
    made, padded = unit("performer", dtype), -(-features // PADDED_TO) * PADDED_TO
    groups = plan(offsets, heads * padded, device)
    n_cells = groups[-1].first + len(groups[-1].offsets) - 1
    top_cell, top_head = {"head": (heads, 1), "cell": (1, 0), "batch": (0, 0)}[scope]
    # Zeros lie below every number in the form in which the kernels keep maxima.
    top = torch.zeros(max(1, n_cells * top_cell), dtype=torch.int32, device=device)
    given = {**launch.tokens(q=q, k=k, v=v, o=out), "w": split(projection.to(device), padded, PARTS[dtype], q.dtype),
             "total": len(q), "heads": heads, "features": features, "padded": padded, "split_rows": SPLIT_ROWS,
             "top_cell": top_cell, "top_head": top_head, "scale": q.shape[2] ** -0.25, "eps": eps}  # fmt: skip
    shared = SHARED[dtype] | {"performer_summary": 4 * (padded + launch.THREADS["performer_summary"])}

    def start(name: str, grid: tuple[int, int], **more: object) -> None:
        launch.start(made, name, grid, shared[name], device, {**given, **more})

    norms = {}
    for name, x in (("q", q), ("k", k)):
        norms[name] = q.new_empty((heads, len(q)), dtype=torch.float32)
        its = {"x": x, "x_row": x.stride(0), "x_head": x.stride(1)}
        start("performer_norms", (-(-len(q) // 16), heads), norm=norms[name], **its)
    of_group = [
        {"cu": group.offsets, "top": top[group.first * top_cell :], **launch.rows(group.tiles)} for group in groups
    ]
    # All of these first: the maximum of a batch has to be known before the first sum.
    for group, its in zip(groups, of_group, strict=True):
        start("performer_key_max", (group.tiles.shape[1], heads), **its)
    for group, its in zip(groups, of_group, strict=True):
        cells, splits = len(group.offsets) - 1, group.splits.shape[1]
        its = {
            **its,
            "cells": cells,
            "split_cell": group.splits[0],
            "split_row": group.splits[1],
            "cell_split": group.cell_split,
            "part_kv": q.new_empty((splits, heads, padded, 64), dtype=torch.float32),
            "part_sum": q.new_empty((splits, heads, padded), dtype=torch.float32),
            "mean": q.new_empty((2, cells, heads, padded, 64)),
            "ratio": q.new_empty((cells, heads, padded), dtype=torch.float32),
            "rest": q.new_empty((cells, heads, 65), dtype=torch.float32),
        }
        start("performer_keys", (splits, heads * padded // PADDED_TO), norm=norms["k"], **its)
        start("performer_summary", (cells, heads), **its)
        start("performer_queries", (group.tiles.shape[1], heads), norm=norms["q"], **its)
    return out


def split(projection: Tensor, padded: int, parts: int, dtype: torch.dtype) -> Tensor:
    """A projection as the sum of `parts` tensors of 16 bits, [parts, padded, width], with rows of zeros at the end."""
    left = projection.new_zeros((padded, projection.shape[1]), dtype=torch.float32)
    left[: len(projection)] = projection.detach()
    found = []
    for _ in range(parts):
        found.append(left.to(dtype))
        left = left - found[-1].float()
    return torch.stack(found)


def plan(offsets: list[int], per_cell: int, device: torch.device) -> list[Group]:
    """Groups of cells whose sums fit into `_ROOM`, `per_cell` being heads x features. They stay for the next layers."""
    # Memory that one stream filled is not ready for another one.
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _plan(tuple(offsets), max(1, _ROOM // (per_cell * 64 * 4)), device, stream)


@lru_cache(maxsize=16)
def _plan(offsets: tuple[int, ...], most: int, device: torch.device, stream: int) -> list[Group]:
    del stream
    starts = np.unique(np.array(offsets, dtype=np.int64))  # ascending already: cells without tokens fall out
    n_splits = -(-np.diff(starts) // SPLIT_ROWS)

    def there(x: object) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.int32)).to(device)

    groups, first = [], 0
    while first < len(n_splits):
        # A cell has as many sums as splits, and the one of them all.
        n = max(1, int(np.searchsorted(np.cumsum(n_splits[first:] + 1), most, side="right")))
        its, counts = starts[first : first + n + 1], n_splits[first : first + n]
        tiles = row_tiles(its, wide_from=INT32_MAX)
        begin = np.concatenate([[0], np.cumsum(counts)])
        cells = np.repeat(np.arange(len(counts)), counts)
        rows = (np.arange(len(cells)) - begin[cells]) * SPLIT_ROWS
        groups.append(
            Group(first, there(its), there(np.stack(tiles[:2])), there(np.stack([cells, rows])), there(begin))
        )
        first += n
    return groups
