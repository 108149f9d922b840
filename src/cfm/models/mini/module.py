"""The network of cfm-mini."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_NORM = 8.0
"""Length to which the input of every cell is scaled; about that of a unit-variance vector of 64 numbers."""

BASE_LOG_RATE = -7.0
"""Log rate of a gene for one visible count in a thousand before anything is learnt: 16,000 genes, mostly silent."""


class GeneBag(nn.Module):
    """Encodes the expressed genes of a cell into a vector, and decodes the rate of any gene from it.

    Encoder: h = sum over genes g of v_g E_g, with v the log-normalised counts scaled to length 8; two layers
    follow. Decoder: log rate of gene g = u(z) . O_g + b_g, z being the vector with mean 0 and variance 1.

    The first layer is a plain sum, so a cell costs its expressed genes times `width` multiplications and nothing
    is padded.

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    width
        Length of a gene embedding and of the hidden layers.
    dim
        Length of a cell vector.
    """

    def __init__(self, n_genes: int, width: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_genes, width)
        self.encoder = nn.Sequential(
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Linear(width, dim),
            nn.LayerNorm(dim, elementwise_affine=False),
        )
        self.decoder = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, dim))
        self.output = nn.Linear(dim, n_genes)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.output.bias, BASE_LOG_RATE)

    def forward(self, ids: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        """Vectors of mean 0 and variance 1, float32[n_cells, dim]; arguments as in `bag`."""
        vectors: Tensor = self.encoder(self.bag(ids, values, offsets))
        return vectors

    def bag(self, ids: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        """The sum of v_g E_g of each cell, float32[n_cells, width].

        Parameters
        ----------
        ids, values, offsets
            As in `cfm.models.Pack`.
        """
        squares = torch.segment_reduce(values * values, "sum", offsets=offsets)
        scaled = values * torch.repeat_interleave(INPUT_NORM * squares.clamp_min(1e-12).rsqrt(), offsets.diff())
        return F.embedding_bag(
            ids, self.embedding.weight, offsets, per_sample_weights=scaled, mode="sum", include_last_offset=True
        )

    def log_rates(self, vectors: Tensor, genes: Tensor) -> Tensor:
        """Log rate of genes for each cell, float32[n_cells, n_chosen], for a thousand visible counts."""
        return F.linear(self.decoder(vectors), self.output.weight[genes], self.output.bias[genes])
