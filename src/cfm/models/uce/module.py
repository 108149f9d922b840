"""The network of UCE: projected protein vectors, a transformer over the sentence, and two decoders."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.nn.encoder import EncoderLayer
from cfm.nn.rows import by_rows


@dataclass(frozen=True)
class Shape:
    """Sizes of a network.

    Parameters
    ----------
    width
        Length of a protein vector.
    dim, heads, hidden, layers
        Length of a token vector, numbers of heads, length of the layer between, number of layers.
    positions
        Longest sentence.
    decoder, expressed
        Outputs of the linear layers of the decoder, and of the one that tells expressed genes.
    """

    width: int
    dim: int
    heads: int
    hidden: int
    layers: int
    positions: int
    decoder: tuple[int, ...]
    expressed: tuple[int, ...]


class Projection(nn.Module):
    """From protein vectors to token vectors: LN(GELU(W v / |v| + b)).

    Parameters
    ----------
    width, dim
        Lengths of the two.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, proteins: Tensor) -> Tensor:
        """float[n, dim] for vectors float[n, width] of any length; a vector of zeros stays one before the projection."""
        return by_rows(self._projected, proteins)

    def _projected(self, proteins: Tensor) -> Tensor:
        projected: Tensor = self.norm(F.gelu(self.linear(F.normalize(proteins, dim=1))))
        return projected


class Block(nn.Module):
    """GELU(LN(W x + b))."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """float[n, outputs]."""
        return F.gelu(self.norm(self.linear(x)))


class Decoder(nn.Module):
    """Blocks, then a linear layer.

    Parameters
    ----------
    inputs
        Numbers that go in.
    outputs
        Numbers that come out of each.
    """

    def __init__(self, inputs: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (inputs, *outputs)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip(sizes[:-2], outputs[:-1], strict=True))
        self.out = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        """float[n, last of the outputs]."""
        return by_rows(self._decoded, x)

    def _decoded(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        decoded: Tensor = self.out(x)
        return decoded


class UceNetwork(nn.Module):
    """UCE over ragged cells, from projected token vectors on. The table of protein vectors is no part of it.

    Parameters
    ----------
    shape
        Sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.projection = Projection(shape.width, shape.dim)
        self.positions = nn.Buffer(torch.empty(shape.positions, 1, shape.dim))
        self.layers = nn.ModuleList(EncoderLayer(shape.dim, shape.heads, shape.hidden) for _ in range(shape.layers))
        self.decoder = Decoder(shape.dim, shape.decoder)
        self.gene_projection = Projection(shape.width, shape.dim)
        self.expressed = Decoder(shape.decoder[-1] + shape.dim, shape.expressed)

    def place(self, vectors: Tensor, offsets: Tensor) -> Tensor:
        """Token vectors at their places in the sentence, float[n_tokens, dim].

        Parameters
        ----------
        vectors
            float[n_tokens, dim], projected.
        offsets
            int64[n_cells + 1].
        """
        within = torch.arange(len(vectors), device=vectors.device) - offsets[:-1].repeat_interleave(offsets.diff())
        return vectors * math.sqrt(self.shape.dim) + self.positions[within, 0]

    def encode(self, x: Tensor, offsets: list[int], key_bias: Tensor | None = None) -> Tensor:
        """All tokens after the last layer, float[n_tokens, dim]; `key_bias` as in `cfm.nn.encoder.EncoderLayer`."""
        for layer in self.layers:
            x = layer(x, offsets, key_bias=key_bias)
        return x

    def first_tokens(self, x: Tensor, offsets: list[int], key_bias: Tensor | None = None) -> Tensor:
        """What `encode` gives for the first token of each cell, without what only other tokens need."""
        for layer in self.layers[:-1]:
            x = layer(x, offsets, key_bias=key_bias)
        last = self.layers[-1]
        assert isinstance(last, EncoderLayer)
        return last.first_tokens(x, offsets, key_bias=key_bias)

    def predict(self, cells: Tensor, genes: Tensor) -> Tensor:
        """Whether each cell expresses each gene, as logits.

        Parameters
        ----------
        cells
            float[n_cells, dim of a cell vector].
        genes
            float[n_genes, width], protein vectors.

        Returns
        -------
        float[n_cells, n_genes].
        """
        projected = self.gene_projection(genes)
        # All pairs at once would be the largest tensor by far.
        rows = [self.expressed(torch.cat([cell.expand(len(genes), -1), projected], dim=1))[:, 0] for cell in cells]
        return torch.stack(rows) if rows else cells.new_empty(0, len(genes))


def unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return F.normalize(x, dim=-1)
