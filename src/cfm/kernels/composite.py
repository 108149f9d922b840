"""Attention made of torch's own operations, cell by cell: what runs on the CPU, and what GPU kernels are compared with.

Each cell goes through on its own, so its result depends on that cell alone. On a CPU this is also the fastest way:
padding to one length was measured at 2.5 times the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

_GROUP = 16
_ROWS = 256
"""Rows of scores that are in memory at a time where they have to be written out."""


def default_scale(width: int) -> float:
    """1 / sqrt(width), as `scaled_dot_product_attention` takes it."""
    return 1.0 / math.sqrt(width)


def lse_dtype(q: Tensor) -> torch.dtype:
    """float32, and float64 where the tokens are."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def spans(offsets: list[int], q_offsets: list[int]) -> Iterator[tuple[int, slice, slice]]:
    """Number of a cell, its queries and its keys, for cells in which something is asked."""
    for i in range(len(offsets) - 1):
        if q_offsets[i + 1] > q_offsets[i]:
            yield i, slice(q_offsets[i], q_offsets[i + 1]), slice(offsets[i], offsets[i + 1])


def by_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: list[int],
    q_offsets: list[int],
    n_known: list[int] | None,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attention through ``scaled_dot_product_attention``; autograd sees all of it."""
    parts = []
    for i, asked, seen in spans(offsets, q_offsets):
        if n_known is None:
            parts.append(_one_cell(q[asked], k[seen], v[seen], scale, dropout))
        else:
            parts.append(_known_first(q[asked], k[seen], v[seen], n_known[i], scale, dropout))
    return torch.cat(parts) if parts else torch.empty_like(q)


def _one_cell(q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
    n = len(q)
    if q.device.type == "cpu":
        # torch shares few queries out over its threads in a way that changes their last bits; whole groups it does not.
        q = F.pad(q, (0, 0, 0, 0, 0, -n % _GROUP))
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)[0, :, :n].transpose(0, 1)


def _known_first(q: Tensor, k: Tensor, v: Tensor, n_known: int, scale: float, dropout: float) -> Tensor:
    """One cell whose first `n_known` tokens are known. The unknown ones have one more key each: their own."""
    known = _one_cell(q[:n_known], k[:n_known], v[:n_known], scale, dropout) if n_known else q[:0]
    asking, own_v = q[n_known:], v[n_known:]
    if not len(asking):
        return known
    weights = (_unknown_scores(q, k, n_known) * scale).softmax(-1).to(q.dtype)
    weights = F.dropout(weights, dropout)
    unknown = torch.einsum("uhk,khd->uhd", weights[..., :-1], v[:n_known]) + weights[..., -1:] * own_v
    return torch.cat([known, unknown])


def _unknown_scores(q: Tensor, k: Tensor, n_known: int) -> Tensor:
    """q.k of unknown tokens with the known ones and, last, themselves: float32[n_unknown, heads, n_known + 1]."""
    # Widened before the products: scores rounded to 16 bits are wrong in the third digit.
    q, k = q[n_known:].to(lse_dtype(q)), k.to(lse_dtype(k))
    to_known = torch.einsum("uhd,khd->uhk", q, k[:n_known])
    to_self = (q * k[n_known:]).sum(-1, keepdim=True)
    return torch.cat([to_known, to_self], dim=-1)


def with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: list[int],
    q_offsets: list[int],
    n_known: list[int] | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`by_sdpa` and the logarithm of each query's sum of exponentials, [heads, n_queries]. Gradients do not pass."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full((q.shape[1], len(q)), torch.inf, dtype=lse_dtype(q))
    for i, asked, seen in spans(offsets, q_offsets):
        one_q, one_k, one_v = q[asked], k[seen], v[seen]
        known = len(one_k) if n_known is None else n_known[i]
        n = len(one_q) if n_known is None else known
        if n:
            out[asked][:n], lse[:, asked][:, :n] = _one_with_lse(one_q[:n], one_k[:known], one_v[:known], scale)
        if n < len(one_q):
            scores = _unknown_scores(one_q, one_k, known) * scale
            weights = scores.softmax(-1).to(q.dtype)
            summed = torch.einsum("uhk,khd->uhd", weights[..., :-1], one_v[:known])
            out[asked][n:] = summed + weights[..., -1:] * one_v[known:]
            lse[:, asked][:, n:] = scores.logsumexp(-1).T
    return out, lse


def _one_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One cell in which every query sees every key: [n, heads, width] and [heads, n]."""
    n = len(q)
    if q.device.type == "cpu" and len(k):
        padded = F.pad(q, (0, 0, 0, 0, 0, -n % _GROUP))
        heads_first = (part.transpose(0, 1)[None] for part in (padded, k, v))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads_first, scale=scale)
        return out[0, :, :n].transpose(0, 1), lse[0, :, :n]
    lse = torch.cat([_scores(part, k, scale).logsumexp(-1) for part in q.split(_ROWS)], dim=-1)
    return _one_cell(q, k, v, scale, 0.0), lse


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """[heads, n_queries, n_keys], in float32 or better."""
    return torch.einsum("qhd,khd->hqk", q.to(lse_dtype(q)), k.to(lse_dtype(q))) * scale


def by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: list[int],
    q_offsets: list[int],
    n_known: list[int] | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The formula itself with the rule as a mask, in float32 or better: what everything else is compared with."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full((q.shape[1], len(q)), torch.inf, dtype=lse_dtype(q))
    for i, asked, seen in spans(offsets, q_offsets):
        for start in range(asked.start, asked.stop, _ROWS):
            rows = slice(start, min(start + _ROWS, asked.stop))
            scores = _scores(q[rows], k[seen], scale)
            if n_known is not None:
                scores = scores.masked_fill(
                    ~visible(scores.shape[1:], start - asked.start, n_known[i], q.device), -torch.inf
                )
            lse[:, rows] = scores.logsumexp(-1)
            out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[seen].to(scores.dtype)).to(q.dtype)
    return out, lse


def visible(shape: torch.Size, first: int, n_known: int, device: torch.device) -> Tensor:
    """Who sees whom, bool[n_rows, n_keys], for the rows from `first` of a cell: known tokens, and each one itself."""
    keys = torch.arange(shape[1], device=device)
    rows = torch.arange(first, first + shape[0], device=device)
    return (keys[None] < n_known) | (keys[None] == rows[:, None])


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: list[int],
    q_offsets: list[int],
    n_known: list[int] | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. Each weight is computed again from `lse`; rows of scores are in memory 256 at a time."""
    d_q, d_k, d_v = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for i, asked, seen in spans(offsets, q_offsets):
        known = seen.stop - seen.start if n_known is None else n_known[i]
        n = asked.stop - asked.start if n_known is None else known
        near, far = slice(asked.start, asked.start + n), slice(seen.start, seen.start + known)
        if n and known:
            found = _one_backward(grad[near], q[near], k[far], v[far], out[near], lse[:, near], scale)
            d_q[near], d_k[far], d_v[far] = found
        own = slice(near.stop, asked.stop)
        if n_known is not None and own.stop > own.start:
            _unknown_backward(grad, q, k, v, out, lse, own, far, scale, (d_q, d_k, d_v))
    return d_q, d_k, d_v


def _one_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    if q.device.type == "cpu":
        heads_first = [part.transpose(0, 1)[None] for part in (grad, q, k, v, out)]
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *heads_first, lse[None], 0.0, False, scale=scale
        )
        d_q, d_k, d_v = (part[0].transpose(0, 1) for part in found)
        return d_q, d_k, d_v
    wide = lse_dtype(q)
    d_q, d_k, d_v = torch.empty_like(q), k.new_zeros(k.shape, dtype=wide), v.new_zeros(v.shape, dtype=wide)
    for start in range(0, len(q), _ROWS):
        rows = slice(start, start + _ROWS)
        weights = (_scores(q[rows], k, scale) - lse[:, rows, None]).exp()
        one = grad[rows].to(wide)
        d_v += torch.einsum("hqk,qhd->khd", weights, one)
        mean = (one * out[rows].to(wide)).sum(-1).T[..., None]
        d_scores = weights * (torch.einsum("qhd,khd->hqk", one, v.to(wide)) - mean) * scale
        d_q[rows] = torch.einsum("hqk,khd->qhd", d_scores, k.to(wide)).to(q.dtype)
        d_k += torch.einsum("hqk,qhd->khd", d_scores, q[rows].to(wide))
    return d_q, d_k.to(k.dtype), d_v.to(v.dtype)


def _unknown_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    own: slice,
    far: slice,
    scale: float,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Add what the unknown tokens `own` of a cell give to the gradients; the known ones are at `far`."""
    wide = lse_dtype(q)
    d_q, d_k, d_v = into
    one, asking, mine, value = (x[own].to(wide) for x in (grad, q, k, v))
    known_k, known_v = k[far].to(wide), v[far].to(wide)
    at = lse[:, own].T[..., None]
    to_known = (torch.einsum("uhd,khd->uhk", asking, known_k) * scale - at).exp()
    to_self = ((asking * mine).sum(-1, keepdim=True) * scale - at).exp()
    mean = (one * out[own].to(wide)).sum(-1, keepdim=True)
    d_known = to_known * (torch.einsum("uhd,khd->uhk", one, known_v) - mean) * scale
    d_self = to_self * ((one * value).sum(-1, keepdim=True) - mean) * scale
    d_q[own] = (torch.einsum("uhk,khd->uhd", d_known, known_k) + d_self * mine).to(q.dtype)
    d_k[own] = (d_self * asking).to(k.dtype)
    d_v[own] = (to_self * one).to(v.dtype)
    d_k[far] += torch.einsum("uhk,uhd->khd", d_known, asking).to(k.dtype)
    d_v[far] += torch.einsum("uhk,uhd->khd", to_known, one).to(v.dtype)
