# mypy: disable-error-code="no-untyped-def"
"""The forward kernel once more, in Triton: a second implementation to check the first with, and the next in line.

Imported only where it is used: triton is not everywhere, and reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import contextlib
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backends import interpreted
from .errors import KernelError
from .ragged import NARROW

_KEYS = 64


@triton.jit
def _step(
    acc, top, summed, q, k_at, v_at, first, rows, end, known, k_row, v_row, scale_log2,
    WIDTH: tl.constexpr, KEYS: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """One tile of keys, the first of which is `first`: running result, largest score and sum of weights."""
    keys = first + tl.arange(0, KEYS)
    columns = tl.arange(0, WIDTH)
    inside = (keys < end)[:, None]
    # Rows past the end are other cells' or nobody's; 0 * NaN would be NaN.
    k = tl.load(k_at + keys[:, None].to(tl.int64) * k_row + columns[None, :], mask=inside, other=0.0)
    v = tl.load(v_at + keys[:, None].to(tl.int64) * v_row + columns[None, :], mask=inside, other=0.0)
    if UP:
        k, v = k.to(tl.float32), v.to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    sees = (keys[None, :] < known) | ((keys[None, :] == rows[:, None]) & inside.reshape(1, KEYS))
    scores = tl.where(sees, scores * scale_log2, float("-inf"))
    new = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet keeps -inf; 0 stands in so that no inf - inf is formed.
    base = tl.where(new == float("-inf"), 0.0, new)
    fade = tl.exp2(top - base)
    weights = tl.exp2(scores - base[:, None])
    acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return acc, new, summed * fade + tl.sum(weights, 1)


@triton.jit
def _forward(
    q_at, k_at, v_at, out_at, lse_at, offsets_at, q_offsets_at, known_at, cells_at, rows_at,
    q_row, q_head, k_row, k_head, v_row, v_head, out_row, out_head, n_queries, scale_log2,
    HAS_KNOWN: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """One tile of query rows of one cell and one head."""
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    cell = tl.load(cells_at + tile)
    begin = tl.load(offsets_at + cell).to(tl.int64)
    end = (tl.load(offsets_at + cell + 1) - begin).to(tl.int32)
    q_begin = tl.load(q_offsets_at + cell).to(tl.int64)
    q_end = (tl.load(q_offsets_at + cell + 1) - q_begin).to(tl.int32)
    known = end
    if HAS_KNOWN:
        known = tl.load(known_at + cell).to(tl.int32)
    first_row = tl.load(rows_at + tile)
    rows = first_row + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    k_at += begin * k_row + head * k_head
    v_at += begin * v_row + head * v_head
    asking = (q_begin + rows)[:, None]
    stored = (rows < q_end)[:, None]
    q = tl.load(q_at + asking * q_row + head * q_head + columns[None, :], mask=stored, other=0.0)
    if UP:
        q = q.to(tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    summed = tl.zeros((ROWS,), tl.float32)
    main = (known + KEYS - 1) // KEYS
    for i in range(0, main):
        acc, top, summed = _step(
            acc, top, summed, q, k_at, v_at, i * KEYS, rows, end, known, k_row, v_row, scale_log2, WIDTH, KEYS, UP
        )
    if HAS_KNOWN:
        # The tiles on the diagonal that are not among the known ones: unknown tokens see themselves there.
        for i in range(tl.maximum(first_row // KEYS, main), (tl.minimum(first_row + ROWS, end) + KEYS - 1) // KEYS):
            acc, top, summed = _step(
                acc, top, summed, q, k_at, v_at, i * KEYS, rows, end, known, k_row, v_row, scale_log2, WIDTH, KEYS, UP
            )
    whole = tl.where(summed > 0, summed, 1.0)
    out = (acc / whole[:, None]).to(out_at.dtype.element_ty)
    tl.store(out_at + asking * out_row + head * out_head + columns[None, :], out, mask=stored)
    lse = tl.where(summed > 0, (top + tl.log2(whole)) * 0.6931471805599453, float("inf"))
    tl.store(lse_at + head * n_queries + q_begin + rows, lse, mask=rows < q_end)


def forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, q_offsets: Tensor | None,
    n_known: Tensor | None, narrow: Tensor, scale: float,
) -> None:  # fmt: skip
    """Fill `out` and `lse`; parameters as in `cfm.kernels.ops.varlen_attention`."""
    strides = [stride for x in (q, k, v, out) for stride in x.stride()[:2]]
    asking = offsets if q_offsets is None else q_offsets
    known = offsets if n_known is None else n_known
    # The interpreter multiplies bfloat16 wrongly (triton 3.8).
    up = interpreted() and q.dtype == torch.bfloat16
    guard = torch.cuda.device(q.device) if q.device.type == "cuda" else contextlib.nullcontext()
    try:
        with guard:
            _forward[(narrow.shape[1], q.shape[1])](
                q, k, v, out, lse, offsets, asking, known, narrow[0], narrow[1], *strides, len(q), scale * math.log2(math.e),
                HAS_KNOWN=n_known is not None, WIDTH=q.shape[2], ROWS=NARROW, KEYS=_KEYS, UP=up,
            )  # fmt: skip
    except Exception as error:  # a compiler of its own, with errors of many kinds; the next backend takes over
        raise KernelError(f"Triton failed: {error}") from error
