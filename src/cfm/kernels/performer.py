"""FAVOR+ attention (Choromanski et al. 2021) with the features of the published softmax kernel, on any device of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from . import composite

_ROWS = 1024
"""Tokens whose features are in memory at a time."""


def attend(q: Tensor, k: Tensor, v: Tensor, offsets: list[int], projection: Tensor, scope: str, eps: float) -> Tensor:
    """Parameters as in `cfm.kernels.ops.performer_attention`. Memory: a few times 1,024 x heads x features."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    wide = composite.lse_dtype(q)
    projection = projection.to(q.device, wide)
    largest = None
    if scope == "batch" and len(k):
        largest = torch.stack([_projected(part, projection).amax() for part in k.split(_ROWS)]).amax()
    for _, cell, _ in composite.spans(offsets, offsets):
        keys, values = k[cell], v[cell]
        top = largest
        if top is None:
            parts = [_projected(part, projection).amax((0, 2)) for part in keys.split(_ROWS)]
            top = torch.stack(parts).amax(0)[None, :, None]
        summed = keys.new_zeros((q.shape[1], len(projection), v.shape[2]), dtype=wide)
        total = keys.new_zeros((q.shape[1], len(projection)), dtype=wide)
        for one_k, one_v in zip(keys.split(_ROWS), values.split(_ROWS), strict=True):
            features = _features(one_k, projection, top, eps)
            summed += torch.einsum("nhm,nhd->hmd", features, one_v.to(wide))
            total += features.sum(0)
        for start in range(cell.start, cell.stop, _ROWS):
            rows = slice(start, min(start + _ROWS, cell.stop))
            features = _features(q[rows], projection, None, eps)
            weight = torch.einsum("nhm,hm->nh", features, total)[..., None]
            out[rows] = (torch.einsum("nhm,hmd->nhd", features, summed) / weight).to(q.dtype)
    return out


def _projected(x: Tensor, projection: Tensor) -> Tensor:
    """w.x / width^(1/4), float32[n, heads, n_features]."""
    return torch.einsum("nhd,md->nhm", x.to(projection.dtype) * x.shape[-1] ** -0.25, projection)


def _features(x: Tensor, projection: Tensor, largest: Tensor | None, eps: float) -> Tensor:
    """exp(w.x - |x|^2 / 2 - largest) + eps; None takes the largest of each token. Constant factors cancel."""
    projected = _projected(x, projection)
    largest = projected.amax(-1, keepdim=True) if largest is None else largest
    half = x.to(projected.dtype).square().sum(-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5)
    return (projected - half - largest).exp() + eps
