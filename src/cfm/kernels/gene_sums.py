"""Attention summed into a table of genes by genes, on any device that torch has."""

from __future__ import annotations

import torch
from torch import Tensor

from . import composite

UNIT = 2.0**-40
"""What 1 stands for in the sums. Whole numbers add up to the same bits in any order; eight million cells fit."""

_ROWS = 128
"""Rows of a cell whose weights are in memory at a time."""


def add(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    offsets: list[int],
    n_known: list[int] | None,
    genes: Tensor,
    scale: float,
    sums: Tensor,
    counts: Tensor,
    bad: Tensor,
) -> None:
    """Add the mean over heads of each cell's weights; parameters as in `cfm.kernels.ops.gene_attention_sum`."""
    n_genes = len(sums)
    # The tables as one row each, and the same memory: what index_add_ takes.
    flat_sums, flat_counts = sums.view(-1), counts.view(-1)
    for i, cell, _ in composite.spans(offsets, offsets):
        rows_of = genes[cell].long()
        used = (rows_of >= 0).nonzero().flatten()
        columns = rows_of[used]
        keys = k[cell][used]
        for rows in used.split(_ROWS):
            scores = composite._scores(q[cell][rows], keys, scale)
            weights = (scores - lse[:, cell][:, rows, None]).exp().mean(0).double()
            # A weight above 2 comes of numbers that are none, as much as NaN does.
            right = (weights >= 0) & (weights <= 2)
            seen = torch.ones_like(right)
            if n_known is not None:
                seen = (used[None] < n_known[i]) | (used[None] == rows[:, None])
            places = (rows_of[rows][:, None] * n_genes + columns[None]).flatten()
            fixed = torch.where(right & seen, weights / UNIT, 0.0).round().long()
            flat_sums.index_add_(0, places, fixed.flatten())
            flat_counts.index_add_(0, places, seen.to(counts.dtype).flatten())
            bad += (seen & ~right).sum()


def mean(sums: Tensor, counts: Tensor) -> Tensor:
    """Mean attention of each pair of genes, float64[n_genes, n_genes]; NaN where no gene saw the other in any cell."""
    return sums.double() * UNIT / counts
