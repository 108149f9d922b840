"""A layer of a transformer encoder, over ragged cells."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attention, biased_attention
from .rows import by_rows

NormOrder = Literal["post", "leading"]


class EncoderLayer(nn.Module):
    """Attention, then two linear layers with a ReLU between.

    With the order ``"post"``: x = norm1(x + attend(x)), x = norm2(x + feed(x)). With ``"leading"``, a variant of
    scGPT's flash layer, the norms come first and are part of the residual: x = norm1(x), x = x + attend(x),
    x = norm2(x), x = x + feed(x).

    Parameters
    ----------
    dim
        Length of a token vector.
    heads
        Number of attention heads; each is dim / heads wide.
    hidden
        Length of the layer between.
    eps
        Added to the variance in the norms.
    dropout
        Share set to 0 in training, after attention, inside and after the feed-forward part.
    attention_dropout
        The same for attention weights.
    order
        Where the norms stand.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        eps: float = 1e-5,
        dropout: float = 0.0,
        inner_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        order: NormOrder = "post",
    ) -> None:
        super().__init__()
        self.heads, self.order = heads, order
        # Three matrices and not one: files keep them apart or together, and a part of a mapped file needs no copy.
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.dropout, self.inner_dropout, self.attention_dropout = dropout, inner_dropout, attention_dropout

    def forward(
        self, x: Tensor, offsets: list[int], *, n_known: list[int] | None = None, key_bias: Tensor | None = None
    ) -> Tensor:
        """Token vectors of all cells after the layer, float[n_tokens, dim].

        Parameters
        ----------
        x
            float[n_tokens, dim].
        offsets, n_known
            As in `cfm.nn.attention.attention`. Unknown tokens skip the output projection: so does scGPT's code.
        key_bias
            float[n_tokens], added to the scores of each token as a key; not with `n_known`.
        """
        if self.order == "leading":
            x = by_rows(self.norm1, x)
        context = self._attend(x, x, offsets, n_known=n_known, key_bias=key_bias)
        if n_known is None:
            return by_rows(self._after, x, context)
        known = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        for start, n in zip(offsets, n_known, strict=False):
            known[start : start + n] = True
        return by_rows(self._after, x, context, known)

    def first_tokens(self, x: Tensor, offsets: list[int], *, key_bias: Tensor | None = None) -> Tensor:
        """What `forward` gives for the first token of each cell, float[n_cells, dim], without computing the rest."""
        if self.order == "leading":
            x = by_rows(self.norm1, x)
        asking, first = x[offsets[:-1]], list(range(len(offsets)))
        return by_rows(self._after, asking, self._attend(asking, x, offsets, q_offsets=first, key_bias=key_bias))

    def _attend(
        self,
        asking: Tensor,
        x: Tensor,
        offsets: list[int],
        *,
        q_offsets: list[int] | None = None,
        n_known: list[int] | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """What the tokens `asking` gather from those of their cell, float[n, dim]."""
        q, k, v = (
            by_rows(part, of).unflatten(1, (self.heads, -1))
            for part, of in ((self.query, asking), (self.key, x), (self.value, x))
        )
        dropout = self.attention_dropout if self.training else 0.0
        if key_bias is not None:
            return biased_attention(q, k, v, offsets, key_bias, q_offsets=q_offsets, dropout=dropout).flatten(1)
        return attention(q, k, v, offsets, q_offsets=q_offsets, n_known=n_known, dropout=dropout).flatten(1)

    def _after(self, x: Tensor, context: Tensor, known: Tensor | None = None) -> Tensor:
        """All that follows attention; it treats every token alike."""
        projected = self.out(context)
        if known is not None:
            projected = torch.where(known, projected, context)
        x = x + F.dropout(projected, self.dropout, self.training)
        x = (self.norm1 if self.order == "post" else self.norm2)(x)
        inner = F.dropout(F.relu(self.up(x)), self.inner_dropout, self.training)
        x = x + F.dropout(self.down(inner), self.dropout, self.training)
        return self.norm2(x) if self.order == "post" else x
