"""The heads of scGPT: what is read off the encoded tokens and the cell vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.nn.rows import by_rows

from .ragged import repeated, summed

QueryStyle = Literal["inner product", "concat query", "sum query"]


@dataclass(frozen=True)
class Predicted:
    """Expression as a head predicts it.

    Parameters
    ----------
    values
        float[n_tokens].
    non_zero
        float[n_tokens]: probability that the value is **not** zero; the official name is zero_probs, and the likelihood
        that trains it takes the opposite of that name. None for heads without it.
    """

    values: Tensor
    non_zero: Tensor | None = None


class ExpressionDecoder(nn.Module):
    """Three linear layers with leaky ReLUs, from a token to its value.

    Parameters
    ----------
    dim
        Length of a token vector and of the hidden layers.
    in_dim
        Length of the input: more than `dim` where labels stand beside the token.
    with_zeros
        Whether a second stack predicts whether the value is zero.
    """

    def __init__(self, dim: int, in_dim: int, *, with_zeros: bool) -> None:
        super().__init__()
        self.fc = _stack(in_dim, dim)
        self.zero_logit = _stack(in_dim, dim) if with_zeros else None

    def forward(self, x: Tensor) -> Predicted:
        """For the tokens float[n, in_dim]."""
        values = by_rows(self.fc, x).squeeze(1)
        if self.zero_logit is None:
            return Predicted(values)
        return Predicted(values, torch.sigmoid(by_rows(self.zero_logit, x).squeeze(1)))


def _stack(in_dim: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, dim), nn.LeakyReLU(), nn.Linear(dim, dim), nn.LeakyReLU(), nn.Linear(dim, 1))


class AffineDecoder(nn.Module):
    """A line for each token, of its value before: prediction = slope(x) * value + offset(x).

    Parameters
    ----------
    dim
        Length of a token vector.
    with_zeros
        Whether to predict also which values are zero.
    activation
        Put on slope and offset.
    adaptive
        Whether the offset is multiplied by the mean of the cell's values that are not zero.
    """

    def __init__(
        self,
        dim: int,
        *,
        with_zeros: bool = False,
        activation: Callable[[Tensor], Tensor] | None = None,
        adaptive: bool = False,
    ) -> None:
        super().__init__()
        self.coeff_decoder = ExpressionDecoder(dim, dim, with_zeros=with_zeros)
        self.bias_decoder = ExpressionDecoder(dim, dim, with_zeros=with_zeros)
        self.activation, self.adaptive = activation, adaptive

    def forward(self, x: Tensor, values: Tensor, offsets: Tensor) -> Predicted:
        """For the tokens float[n, dim] of cells that begin at `offsets`, with their values float[n]."""
        slope, offset = self.coeff_decoder(x), self.bias_decoder(x)
        steep, high = slope.values, offset.values
        if self.activation is not None:
            steep, high = self.activation(steep), self.activation(high)
        if self.adaptive:
            means = summed(values[:, None], offsets)[:, 0] / summed((values != 0)[:, None].float(), offsets)[:, 0]
            high = high * repeated(means, offsets)
        return Predicted(steep * values + high, slope.non_zero)


class CellExpressionDecoder(nn.Module):
    """The value of any gene from the cell vector (MVC, masked value prediction for cells).

    Parameters
    ----------
    gene_dim
        Length of a gene vector, labels included where they stand beside it.
    cell_dim
        The same for the cell.
    style
        ``"inner product"`` (all published models), ``"concat query"`` or ``"sum query"``.
    with_zeros
        Whether a second product predicts whether the value is zero.
    """

    def __init__(self, gene_dim: int, cell_dim: int, *, style: QueryStyle, with_zeros: bool = False) -> None:
        super().__init__()
        self.style = style
        if style == "inner product":
            self.gene2query = nn.Linear(gene_dim, gene_dim)
            self.W = nn.Linear(gene_dim, cell_dim, bias=False)
            self.W_zero_logit = nn.Linear(gene_dim, cell_dim) if with_zeros else None
            return
        width = _QUERY if style == "concat query" else gene_dim
        self.gene2query = nn.Linear(gene_dim, width)
        self.fc1 = nn.Linear(cell_dim + width if style == "concat query" else width, _QUERY)
        self.hidden_activation = nn.PReLU()
        self.fc2 = nn.Linear(_QUERY, 1)

    def forward(self, cells: Tensor, genes: Tensor, offsets: Tensor) -> Predicted:
        """For the cells float[n_cells, cell_dim] and their genes float[n_tokens, gene_dim]."""
        found = by_rows(self._rows, genes, repeated(cells, offsets))
        return Predicted(found[:, 0], torch.sigmoid(found[:, 1]) if found.shape[1] > 1 else None)

    def _rows(self, genes: Tensor, cells: Tensor) -> Tensor:
        query = torch.sigmoid(self.gene2query(genes))
        if self.style == "inner product":
            columns = [(self.W(query) * cells).sum(1)]
            if self.W_zero_logit is not None:
                columns.append((self.W_zero_logit(query) * cells).sum(1))
            return torch.stack(columns, 1)
        joined = torch.cat([cells, query], 1) if self.style == "concat query" else cells + query
        scores: Tensor = self.fc2(self.hidden_activation(self.fc1(joined)))
        return scores


_QUERY = 64
"""Length of the hidden layer of the styles that are no inner product."""


class Classifier(nn.Module):
    """Classes of a cell from its vector: linear layers, each with an activation and a norm, then one more.

    Parameters
    ----------
    dim
        Length of a cell vector.
    n_classes
        Number of classes.
    n_layers
        Linear layers, the last one included.
    adversary
        Whether this is the discriminator of batches: leaky ReLUs, and a gradient that goes back reversed, so that
        what feeds it learns to hide the batch.
    """

    def __init__(self, dim: int, n_classes: int, n_layers: int, *, adversary: bool = False) -> None:
        super().__init__()
        activation = nn.LeakyReLU if adversary else nn.ReLU
        parts = [part for _ in range(n_layers - 1) for part in (nn.Linear(dim, dim), activation(), nn.LayerNorm(dim))]
        self._decoder = nn.Sequential(*parts)
        self.out_layer = nn.Linear(dim, n_classes)
        self.adversary = adversary

    def forward(self, cells: Tensor) -> Tensor:
        """float[n_cells, n_classes]: logits."""
        if self.adversary:
            cells = _Reversed.apply(cells)
        return by_rows(self._rows, cells)

    def _rows(self, cells: Tensor) -> Tensor:
        logits: Tensor = self.out_layer(self._decoder(cells))
        return logits


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        return -gradients[0]


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1."""
    return F.normalize(vectors, dim=-1)
