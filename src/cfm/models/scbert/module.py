"""The network of scBERT: a Performer over all positions of a cell, expressed or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cfm.nn.attention import Scope
from cfm.nn.performer import PerformerLayer
from cfm.nn.rows import by_rows

from .heads import Classifier


@dataclass(frozen=True)
class Layout:
    """Sizes of a network.

    Parameters
    ----------
    n_positions
        Genes of the list, and one position more that is always in bin 0.
    n_tokens
        Rows of the embedding: bins from 0 on, and the mask.
    dim, heads, width, hidden, layers, n_features
        Sizes of the Performer; `width` is that of a head.
    classes
        Lengths of the layers of the classifier, that of the classes last; None for the language-model head.
    """

    n_positions: int
    n_tokens: int
    dim: int
    heads: int
    width: int
    hidden: int
    layers: int
    n_features: int
    classes: tuple[int, int, int] | None = None

    @property
    def n_bins(self) -> int:
        """The highest bin."""
        return self.n_tokens - 2

    @property
    def mask(self) -> int:
        """What stands for a hidden bin."""
        return self.n_tokens - 1


class ScbertNetwork(nn.Module):
    """All cells have the same number of positions, one cell after another.

    Parameters
    ----------
    layout
        Its sizes.
    positions
        float64[n_positions, dim]: what is added at each position, the gene vectors of gene2vec; None adds nothing.
    """

    def __init__(self, layout: Layout, positions: Tensor | None = None) -> None:
        super().__init__()
        self.layout = layout
        dim = layout.dim
        self.tokens = nn.Embedding(layout.n_tokens, dim)
        # Not among the weights that are filled in: those become float32, and this sum is one of float64.
        self.positions: Tensor | None
        self.register_buffer("positions", positions, persistent=False)
        self.layers = nn.ModuleList(
            PerformerLayer(dim, layout.heads, layout.width, layout.n_features, layout.hidden, bias=False)
            for _ in range(layout.layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head: Classifier | nn.Linear = nn.Linear(dim, layout.n_tokens)
        if layout.classes is not None:
            self.head = Classifier(dim, layout.n_positions, layout.classes[:2], layout.classes[2])

    def embed(self, bins: Tensor) -> Tensor:
        """What goes into the first layer, float[n_cells * n_positions, dim], for int64[n_cells, n_positions]."""
        x: Tensor = self.tokens(bins)
        if self.positions is not None:
            x = (x.double() + self.positions).float()
        return x.flatten(0, 1)

    def offsets(self, n_cells: int) -> list[int]:
        """Where each cell begins among the positions."""
        return [i * self.layout.n_positions for i in range(n_cells + 1)]

    def encode(self, bins: Tensor, scope: Scope = "cell") -> Tensor:
        """Vectors of all positions after the last norm, float[n_cells, n_positions, dim].

        Parameters
        ----------
        bins
            int64[n_cells, n_positions].
        scope
            As in `cfm.nn.attention.performer_attention`.
        """
        x, offsets = self.embed(bins), self.offsets(len(bins))
        for layer in self.layers:
            x = layer(x, offsets, scope)
        return by_rows(self.norm, x).unflatten(0, bins.shape)

    def attention_received(self, bins: Tensor, scope: Scope = "cell", *, after: bool = False) -> Tensor:
        """Share of the attention that each position gets from all, float[n_cells, n_positions]; sums to 1 in a cell.

        The mean over layers and heads of the mean over queries.

        Parameters
        ----------
        bins, scope
            As in `encode`.
        after
            Take the attention that a layer would pay to its own outcome (the state after its attention was added), as the
            official export does, instead of that which it pays.
        """
        x, offsets = self.embed(bins), self.offsets(len(bins))
        total = x.new_zeros(len(x))
        for layer in self.layers:
            assert isinstance(layer, PerformerLayer)
            middle = layer.attended(x, offsets, scope)
            total += layer.received(middle if after else x, offsets, scope)
            x = layer.fed(middle)
        shares = total.view(bins.shape)
        return shares / shares.sum(1, keepdim=True)

    def logits(self, vectors: Tensor) -> Tensor:
        """What the language-model head says of positions, float[n, n_tokens], for float[n, dim]."""
        return by_rows(self.head, vectors)

    def thaw(self) -> None:
        """Let gradients into what the official fine-tuning trains, and nothing else: the last layer but one, norm and head."""
        self.requires_grad_(False)
        for part in (self.layers[-2], self.norm, self.head):
            part.requires_grad_(True)


def dense_bins(ids: Tensor, values: Tensor, offsets: Tensor, n_positions: int) -> Tensor:
    """Bins of all positions, int64[n_cells, n_positions], from those of the tokens."""
    n_cells = len(offsets) - 1
    bins = torch.zeros((n_cells, n_positions), dtype=torch.int64, device=ids.device)
    cells = torch.arange(n_cells, device=ids.device).repeat_interleave(offsets.diff())
    bins[cells, ids] = values.long()
    return bins
