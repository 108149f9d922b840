"""The network of scFoundation: an encoder of the expressed genes of a cell, and a decoder of all its genes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cfm.nn.attention import Scope
from cfm.nn.encoder import EncoderLayer
from cfm.nn.performer import PerformerLayer
from cfm.nn.rows import by_rows
from cfm.nn.values import SoftBins

Pool = Literal["all", "max"]

N_DEPTHS = 2
"""Tokens after the genes of a cell: the depth that is asked for, and the depth that it has."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the network.

    Parameters
    ----------
    positions
        Genes, and the two depths after them.
    dim, layers, heads
        Of the encoder.
    n_bins, alpha
        As in `cfm.nn.values.SoftBins`.
    decoder_dim, decoder_layers, decoder_heads, decoder_width
        Of the decoder; the last is that of a head.
    n_features
        Random features of the decoder's attention.
    """

    positions: int
    dim: int
    layers: int
    heads: int
    n_bins: int
    alpha: float
    decoder_dim: int
    decoder_layers: int
    decoder_heads: int
    decoder_width: int
    n_features: int

    @property
    def genes(self) -> int:
        """Number of genes."""
        return self.positions - N_DEPTHS


class Encoder(nn.Module):
    """Vectors of the expressed genes of each cell and of its two depths.

    A token is the vector of its value and that of its position. Layers of a transformer follow, and a norm.

    Parameters
    ----------
    shape
        Sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.values = SoftBins(shape.n_bins, shape.dim, alpha=shape.alpha)
        self.positions = nn.Embedding(shape.positions + 1, shape.dim)  # the last row is for padding
        self.layers = nn.ModuleList(EncoderLayer(shape.dim, shape.heads, 4 * shape.dim) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.dim)

    def forward(self, ids: Tensor, values: Tensor, offsets: list[int]) -> Tensor:
        """float[n_tokens, dim]; arguments as in `cfm.models.Pack`."""
        x = self.embed(ids, values)
        for layer in self.layers:
            x = layer(x, offsets)
        return by_rows(self.norm, x)

    def embed(self, ids: Tensor, values: Tensor) -> Tensor:
        """What goes into the first layer, float[n_tokens, dim]."""
        return by_rows(lambda v, i: self.values(v) + self.positions(i), values, ids)


class Decoder(nn.Module):
    """Vectors of all genes of a cell, and what it predicts for each.

    Parameters
    ----------
    shape
        Sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim = shape.decoder_dim
        self.embed = nn.Linear(shape.dim, dim)
        self.layers = nn.ModuleList(
            PerformerLayer(dim, shape.decoder_heads, shape.decoder_width, shape.n_features, 4 * dim, bias=True)
            for _ in range(shape.decoder_layers)
        )
        self.norm, self.last_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_value = nn.Linear(dim, 1)

    def forward(self, x: Tensor, offsets: list[int], scope: Scope) -> Tensor:
        """float[n, dim]; `offsets` and `scope` as in `cfm.nn.attention.performer_attention`."""
        for layer in self.layers:
            x = layer(x, offsets, scope)
        return by_rows(lambda rows: self.last_norm(self.norm(rows)), x)

    def expression(self, vectors: Tensor) -> Tensor:
        """Predicted value of each gene, float[n], in logarithms of counts per ten thousand; it may be below 0."""
        return by_rows(self.to_value, vectors)[:, 0]


class ScfoundationNetwork(nn.Module):
    """Encoder and decoder.

    Parameters
    ----------
    shape
        Sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self._silent: Tensor | None = None

    def decode(self, tokens: Tensor, ids: Tensor, offsets: list[int], scope: Scope) -> Iterator[Tensor]:
        """Vectors of all positions of each cell, float[positions, decoder_dim], one cell after another.

        Only one cell is in memory at a time, unless `scope` is ``"batch"``.

        Parameters
        ----------
        tokens
            float[n_tokens, dim], from the encoder.
        ids, offsets
            Their positions, and where each cell begins.
        scope
            As in `cfm.nn.attention.performer_attention`.
        """
        # The position is added a second time, also where the encoder has read it: so the model was trained.
        expressed = by_rows(lambda rows, i: self._into(rows, i), tokens, ids)
        n, silent = self.shape.positions, self.silent()
        n_cells = len(offsets) - 1
        step = max(n_cells, 1) if scope == "batch" else 1
        for first in range(0, n_cells, step):
            cells = range(first, min(first + step, n_cells))
            x = silent.repeat(len(cells), 1)
            for place, cell in enumerate(cells):
                span = slice(offsets[cell], offsets[cell + 1])
                x[place * n + ids[span]] = expressed[span]
            yield from self.decoder(x, [place * n for place in range(len(cells) + 1)], scope).split(n)

    def silent(self) -> Tensor:
        """What goes into the decoder for a gene that is not expressed, float[positions, decoder_dim].

        It is the same in every cell, and kept.
        """
        if self._silent is None:
            ids = torch.arange(self.shape.positions, device=self.encoder.positions.weight.device)
            zero = self.encoder.values(ids.new_zeros(1, dtype=torch.float32))
            self._silent = by_rows(lambda i: self._into(zero, i), ids)
        return self._silent

    def _into(self, rows: Tensor, ids: Tensor) -> Tensor:
        # Half precision is for products: what the layers add up stays in float32.
        return self.decoder.embed(rows + self.encoder.positions(ids)).float()


def pooled(tokens: Tensor, offsets: list[int], pool: Pool) -> Tensor:
    """The vector of each cell from its tokens, the last two of which are its depths.

    Parameters
    ----------
    tokens
        float[n_tokens, dim].
    offsets
        Where each cell begins.
    pool
        ``"all"``: own depth, depth asked for, maximum and mean over the genes, float[n_cells, 4 dim]; ``"max"``: maximum
        over all tokens, float[n_cells, dim].
    """
    cells = [tokens[a:b].float() for a, b in zip(offsets, offsets[1:], strict=False)]
    if pool == "max":
        return torch.stack([cell.amax(0) for cell in cells])
    return torch.stack(
        [torch.cat([cell[-1], cell[-2], (genes := cell[:-N_DEPTHS]).amax(0), genes.mean(0)]) for cell in cells]
    )
