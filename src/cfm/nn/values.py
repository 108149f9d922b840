"""Vectors for the values beside tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .rows import by_rows

_SLOPE = 0.1
"""Of the published model, below 0."""


class ContinuousValue(nn.Module):
    """A vector for any number: LayerNorm(W2 relu(W1 min(v, largest) + b1) + b2).

    Parameters
    ----------
    dim
        Length of a vector.
    largest
        Numbers above count as this one; there is no lower bound.
    dropout
        Share of the vector that is set to 0, in training.
    """

    def __init__(self, dim: int, *, largest: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, dim)
        self.linear2 = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.largest, self.dropout = largest, dropout

    def forward(self, values: Tensor) -> Tensor:
        """float[n, dim] for the numbers float[n]."""
        if torch.is_grad_enabled():
            return F.dropout(self._vectors(values), self.dropout, self.training)
        # Bins are few: each is computed once, whatever the number of tokens.
        distinct, which = values.unique(return_inverse=True)
        return F.dropout(by_rows(self._vectors, distinct)[which], self.dropout, self.training)

    def _vectors(self, values: Tensor) -> Tensor:
        column = values.clamp(max=self.largest).unsqueeze(1)
        found: Tensor = self.norm(self.linear2(F.relu(self.linear1(column))))
        return found


class SoftBins(nn.Module):
    """A vector for any number: bins to which it belongs in part, each with a vector.

    h = LeakyReLU(x a + b), p = softmax(alpha h + W h + c), and the vector is p E. Two more vectors stand in for values that
    are hidden, or that are padding.

    Parameters
    ----------
    n_bins
        Number of bins.
    dim
        Length of a vector.
    alpha
        Weight of the first layer beside the second.

    References
    ----------
    Gong et al. 2023, "xTrimoGene", auto-discretization.
    """

    def __init__(self, n_bins: int, dim: int, *, alpha: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, n_bins)
        self.linear2 = nn.Linear(n_bins, n_bins)
        self.bins = nn.Embedding(n_bins, dim)
        self.hidden, self.padding = nn.Embedding(1, dim), nn.Embedding(1, dim)
        self.alpha = alpha

    def forward(self, values: Tensor) -> Tensor:
        """float[n, dim] for the numbers float[n]."""
        found: Tensor = self.shares(values) @ self.bins.weight
        return found

    def shares(self, values: Tensor) -> Tensor:
        """How much of each number belongs to each bin, float[n, n_bins]; they add up to 1."""
        inner = F.leaky_relu(self.linear1(values.unsqueeze(1)), _SLOPE)
        return (self.alpha * inner + self.linear2(inner)).softmax(-1)


class NormedEmbedding(nn.Module):
    """A table of vectors, each normed when it is looked up: genes, batches, or values that are categories.

    Parameters
    ----------
    n
        Number of rows.
    dim
        Length of a vector.
    """

    def __init__(self, n: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n, dim)
        self.enc_norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor) -> Tensor:
        """float[n, dim] for the rows int64[n]."""
        found: Tensor = self.enc_norm(self.embedding(ids))
        return found
