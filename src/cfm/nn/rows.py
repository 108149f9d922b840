"""Applying row-wise parts of a network so that a row's bits do not depend on the rows beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 512
"""Rows that go through a matrix product together, the last group padded. BLAS takes other paths for other numbers of
rows and rounds differently; with one number for all, the bits of a row are its own. It also bounds the memory of wide
layers, and keeps what follows the product in the cache."""


def by_rows(part: Callable[..., Tensor], *inputs: Tensor, rows: int = ROWS) -> Tensor:
    """``part(*inputs)`` for a part that treats every row alike, `rows` rows at a time.

    With gradients, the whole is computed at once: training has no use for equal bits.

    Parameters
    ----------
    part
        From tensors of n rows to one of n rows.
    inputs
        Tensors of equally many rows.
    rows
        Rows at a time.
    """
    if torch.is_grad_enabled() or inputs[0].device.type != "cpu":
        return part(*inputs)
    n = len(inputs[0])
    out: Tensor | None = None
    for start in range(0, n, rows):
        piece = [x[start : start + rows] for x in inputs]
        filled = len(piece[0])
        if filled < rows:
            piece = [F.pad(x, (0, 0) * (x.ndim - 1) + (0, rows - filled)) for x in piece]
        found = part(*piece)
        if out is None:
            out = found.new_empty((n, *found.shape[1:]))
        out[start : start + filled] = found[:filled]
    return part(*inputs) if out is None else out
