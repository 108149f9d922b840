"""Going between cells and their tokens, which stand one after another."""

from __future__ import annotations

import torch
from torch import Tensor


def repeated(of_cells: Tensor, offsets: Tensor) -> Tensor:
    """What belongs to a cell, beside each of its tokens: [n_cells, ...] to [n_tokens, ...]."""
    return of_cells.repeat_interleave(offsets.diff(), dim=0)


def summed(of_tokens: Tensor, offsets: Tensor) -> Tensor:
    """Sums over the tokens of each cell: float[n_tokens, any] to float[n_cells, any]."""
    return torch.segment_reduce(of_tokens, "sum", offsets=offsets, axis=0)
