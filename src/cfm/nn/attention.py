"""Attention over ragged cells. Nothing else in the package computes a softmax over keys."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cfm._core.settings import settings
from cfm.kernels import backends, composite, ops
from cfm.kernels.ops import varlen_attention
from cfm.kernels.plan import plan

Scope = Literal["head", "cell", "batch"]

_BIAS_WIDTH = 8
"""Components that make room for one more: kernels want multiples of 8."""

FEATURE_EPS = 1e-4
"""What published Performers add to every feature."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: list[int],
    *,
    q_offsets: list[int] | None = None,
    n_known: list[int] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention within each cell, without padding: softmax(q k^T / sqrt(width)) v.

    `cfm.settings.attention` chooses who computes it; what cannot is passed over.

    Parameters
    ----------
    q, k, v
        float[n_tokens, heads, width], the tokens of all cells one after another. Strides are free but that of the last
        dimension, which is 1.
    offsets
        ``n_cells + 1`` places: cell i has the keys ``offsets[i]`` to ``offsets[i + 1]``.
    q_offsets
        The same for queries, where only some tokens of a cell ask; None takes `offsets`.
    n_known
        For generative models, of each cell how many tokens are known; these stand first. Every token sees the known
        ones, and an unknown token also itself, but no other unknown one. None: all tokens see all.
    dropout
        Share of the weights that is set to 0, in training. Torch's own operations do this, whatever the setting.

    Returns
    -------
    float, of the shape of `q`.

    Raises
    ------
    OptionError
        Offsets, shapes, dtypes or strides that cannot be, or a GPU kernel asked for on the CPU.

    References
    ----------
    Vaswani et al. 2017, equation 1; the rule for unknown tokens is that of scGPT (Cui et al. 2024, Methods).
    """
    device = q.device
    if torch.is_autocast_enabled(device.type):
        half = torch.get_autocast_dtype(device.type)
        with torch.autocast(device.type, enabled=False):
            q, k, v = (x.to(half) for x in (q, k, v))
            return attention(q, k, v, offsets, q_offsets=q_offsets, n_known=n_known, dropout=dropout)
    gradients = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    scale = composite.default_scale(q.shape[-1])
    if dropout:
        return composite.by_sdpa(q, k, v, offsets, q_offsets or offsets, n_known, scale, dropout)
    call = backends.Call(device, q.dtype, q.shape[-1], n_known is not None, q_offsets is not None, gradients)
    return backends.run(
        call, settings.attention, lambda backend: _by(backend, q, k, v, offsets, q_offsets, n_known, scale, gradients)
    )


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: list[int],
    key_bias: Tensor,
    *,
    q_offsets: list[int] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention with a number added to the scores of each key: softmax(q k^T / sqrt(width) + bias) v.

    The number goes into the product as a further component of the vectors, so that whoever computes attention can do
    this too; these are some wider for it, and the values there are 0.

    Parameters
    ----------
    q, k, v, offsets, q_offsets, dropout
        As in `attention`.
    key_bias
        float[n_tokens], one number for each key.

    Returns
    -------
    float, of the shape of `q`.
    """
    width, heads = q.shape[-1], q.shape[1]
    wider = width + _BIAS_WIDTH
    # Attention divides by the root of the width that it sees.
    q = F.pad(q * math.sqrt(wider / width), (0, _BIAS_WIDTH))
    q[..., width] = math.sqrt(wider)
    k, v = F.pad(k, (0, _BIAS_WIDTH)), F.pad(v, (0, _BIAS_WIDTH))
    k[..., width] = key_bias[:, None].expand(-1, heads)
    return attention(q, k, v, offsets, q_offsets=q_offsets, dropout=dropout)[..., :width]


def _by(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: list[int],
    q_offsets: list[int] | None,
    n_known: list[int] | None,
    scale: float,
    gradients: bool,
) -> Tensor:
    if gradients and backend == "sdpa" and q.device.type != "cpu":
        return composite.by_sdpa(q, k, v, offsets, q_offsets or offsets, n_known, scale)
    made = plan(offsets, q_offsets, n_known, len(q), len(k), q.device, backend)
    if backend == "varlen":
        from torch.nn.attention.varlen import varlen_attn

        asking = made.offsets if made.q_offsets is None else made.q_offsets
        return varlen_attn(  # type: ignore[return-value]
            q, k, v, asking, made.offsets, made.max_queries, made.max_tokens, scale=scale
        )
    out, _ = varlen_attention(
        q, k, v, made.offsets, made.q_offsets, made.n_known, made.tiles, made.narrow, made.n_wide, scale, gradients,
        backend,
    )  # fmt: skip
    return out


def performer_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: list[int], projection: Tensor, *, scope: Scope = "cell"
) -> Tensor:
    """Attention within each cell with random features in the place of the softmax; time grows with the tokens.

    Parameters
    ----------
    q, k, v
        float[n_tokens, heads, width], the tokens of all cells one after another.
    offsets
        As in `attention`.
    projection
        float32[n_features, width], the random directions; they belong to a checkpoint.
    scope
        Over what the largest key feature is taken: ``"cell"``, all heads of a cell, which is what published code gives
        for a cell alone; ``"head"``, each head of a cell by itself; ``"batch"``, all there is, which is what published code
        gives for several cells at once. It matters, since a small number is added after the exponential.

    Returns
    -------
    float, of the shape of `q`.

    References
    ----------
    Choromanski et al. 2021, equations 4 and 5, with the constants of the authors' code.
    """
    device = q.device
    if torch.is_autocast_enabled(device.type):
        half = torch.get_autocast_dtype(device.type)
        with torch.autocast(device.type, enabled=False):
            q, k, v = (x.to(half) for x in (q, k, v))
            return performer_attention(q, k, v, offsets, projection, scope=scope)
    found: Tensor = ops.performer_attention(
        q, k, v, torch.tensor(offsets, dtype=torch.int32), projection, scope, FEATURE_EPS
    )
    return found
