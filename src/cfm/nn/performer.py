"""Layers of a Performer, a transformer with random features in the place of the softmax, over ragged cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Scope, performer_attention
from .received import attention_received
from .rows import by_rows

_ROWS = 1024
"""Rows of a matrix product. Cells of a Performer are long and its layers narrow: larger products than elsewhere pay."""


class PerformerLayer(nn.Module):
    """Attention with random features, then two linear layers with a GELU between; norms stand before each.

    x = x + attend(norm1(x)), x = x + feed(norm2(x)).

    Parameters
    ----------
    dim
        Length of a token vector.
    heads
        Number of attention heads.
    width
        Numbers of a head; heads x width need not be `dim`.
    n_features
        Number of random features.
    hidden
        Length of the layer between.
    bias
        Whether queries, keys and values have one.

    References
    ----------
    Choromanski et al. 2021, "Rethinking attention with Performers".
    """

    def __init__(self, dim: int, heads: int, width: int, n_features: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.projection = nn.Buffer(torch.empty(n_features, width))
        self.query, self.key, self.value = (nn.Linear(dim, heads * width, bias=bias) for _ in range(3))
        self.out = nn.Linear(heads * width, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, offsets: list[int], scope: Scope = "cell") -> Tensor:
        """Token vectors of all cells after the layer, float[n_tokens, dim].

        Parameters
        ----------
        x
            float[n_tokens, dim].
        offsets, scope
            As in `cfm.nn.attention.performer_attention`.
        """
        return by_rows(self._after, x, self._context(x, offsets, scope), rows=_ROWS)

    def attended(self, x: Tensor, offsets: list[int], scope: Scope = "cell") -> Tensor:
        """The first half of the layer: the tokens with their attention added. Parameters as in `forward`."""
        return by_rows(self._joined, x, self._context(x, offsets, scope), rows=_ROWS)

    def fed(self, x: Tensor) -> Tensor:
        """The second half, from what `attended` gives."""
        return by_rows(self._fed, x, rows=_ROWS)

    def received(self, x: Tensor, offsets: list[int], scope: Scope = "cell") -> Tensor:
        """Attention that each token gets in this layer, float[n_tokens]: the mean over heads and over the cell's queries."""
        query, key, _ = self.heads_of(x)
        return attention_received(query, key, offsets, self.projection, scope=scope).mean(1)

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the normed tokens, each float[n_tokens, heads, width]."""
        normed = by_rows(self.norm1, x, rows=_ROWS)
        query, key, value = (
            by_rows(part, normed, rows=_ROWS).unflatten(1, (self.heads, -1))
            for part in (self.query, self.key, self.value)
        )
        return query, key, value

    def _context(self, x: Tensor, offsets: list[int], scope: Scope) -> Tensor:
        return performer_attention(*self.heads_of(x), offsets, self.projection, scope=scope).flatten(1)

    def _after(self, x: Tensor, context: Tensor) -> Tensor:
        return self._fed(self._joined(x, context))

    def _joined(self, x: Tensor, context: Tensor) -> Tensor:
        joined: Tensor = x + self.out(context)
        return joined

    def _fed(self, x: Tensor) -> Tensor:
        fed: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return fed
