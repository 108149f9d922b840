"""The network of Geneformer: a BERT encoder over genes in rank order, and the heads of its fine-tuned models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.nn.encoder import EncoderLayer
from cfm.nn.rows import by_rows


@dataclass(frozen=True)
class BertShape:
    """Sizes of the encoder.

    Parameters
    ----------
    vocabulary, positions, dim, hidden, heads, layers
        Rows of the two embeddings, lengths of token vectors and of the layer between, numbers of heads and layers.
    eps
        Added to the variance in the norms.
    dropout, attention_dropout
        Shares set to 0 in training.
    """

    vocabulary: int
    positions: int
    dim: int
    hidden: int
    heads: int
    layers: int
    eps: float
    dropout: float
    attention_dropout: float


class BertEncoder(nn.Module):
    """Post-norm BERT over ragged cells; the position of a token is its rank.

    Parameters
    ----------
    shape
        Sizes.
    """

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.word = nn.Embedding(shape.vocabulary, shape.dim)
        self.position = nn.Embedding(shape.positions, shape.dim)
        self.token_type = nn.Embedding(2, shape.dim)
        self.norm = nn.LayerNorm(shape.dim, eps=shape.eps)
        self.layers = nn.ModuleList(
            EncoderLayer(
                shape.dim,
                shape.heads,
                shape.hidden,
                eps=shape.eps,
                dropout=shape.dropout,
                attention_dropout=shape.attention_dropout,
            )
            for _ in range(shape.layers)
        )

    def embed(self, ids: Tensor, offsets: list[int]) -> Tensor:
        """Sum of gene and position embeddings, normalised, float[n_tokens, dim]."""
        starts = torch.tensor(offsets[:-1], device=ids.device)
        lengths = torch.tensor(offsets, device=ids.device).diff()
        positions = torch.arange(len(ids), device=ids.device) - torch.repeat_interleave(starts, lengths)
        embedded = by_rows(self._embed, ids, positions)
        return F.dropout(embedded, self.dropout, self.training)

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.word(ids) + self.token_type.weight[0] + self.position(positions))
        return normed

    def forward(self, ids: Tensor, offsets: list[int], n_layers: int | None = None) -> Tensor:
        """Token vectors after `n_layers` layers (None: all), float[n_tokens, dim]."""
        x = self.embed(ids, offsets)
        for layer in self.layers[:n_layers]:
            x = layer(x, offsets)
        return x

    def first_tokens(self, ids: Tensor, offsets: list[int], n_layers: int) -> Tensor:
        """What `forward` gives for the first token of each cell, float[n_cells, dim]."""
        if n_layers == 0:
            return self.embed(ids, offsets)[offsets[:-1]]
        x = self(ids, offsets, n_layers - 1)
        last = self.layers[n_layers - 1]
        assert isinstance(last, EncoderLayer)
        return last.first_tokens(x, offsets)


class MaskedGeneHead(nn.Module):
    """Logits of every token from a token vector; the output layer shares the embedding of the encoder."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.dim, shape.dim)
        self.norm = nn.LayerNorm(shape.dim, eps=shape.eps)
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """float[n, tokens]: LN(relu(W x + b)) E' + bias."""
        return F.linear(self.norm(F.relu(self.dense(x))), embedding, self.bias)


class CellClassifierHead(nn.Module):
    """Class of a cell from the vector of its first token, through tanh."""

    def __init__(self, dim: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.pooler = nn.Linear(dim, dim)
        self.classifier = nn.Linear(dim, classes)
        self.dropout = dropout

    def forward(self, first: Tensor) -> Tensor:
        """float[n_cells, classes]."""
        logits: Tensor = self.classifier(F.dropout(torch.tanh(self.pooler(first)), self.dropout, self.training))
        return logits


class GeneClassifierHead(nn.Module):
    """Class of each gene in its cell."""

    def __init__(self, dim: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, classes)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """float[n_tokens, classes]."""
        logits: Tensor = self.classifier(F.dropout(x, self.dropout, self.training))
        return logits


class MultiTaskHead(nn.Module):
    """Classes of a cell for several tasks, from its first token or from all by learnt weights.

    Parameters
    ----------
    dim
        Length of a token vector.
    classes
        Number of classes of each task.
    pool
        Whether tokens are weighted by learnt attention; else the first is taken.
    dropout
        Share set to 0 in training.
    """

    def __init__(self, dim: int, classes: tuple[int, ...], pool: bool, dropout: float) -> None:
        super().__init__()
        self.pool = nn.Parameter(torch.zeros(dim, 1)) if pool else None
        self.heads = nn.ModuleList(nn.Linear(dim, n) for n in classes)
        self.dropout = dropout

    def forward(self, x: Tensor, offsets: list[int]) -> list[Tensor]:
        """A float[n_cells, classes] for each task. Weights are over the tokens of the cell alone."""
        if self.pool is None:
            pooled = x[offsets[:-1]]
        else:
            cells = [x[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]
            pooled = torch.stack([((cell @ self.pool).softmax(0) * cell).sum(0) for cell in cells])
        pooled = F.dropout(pooled, self.dropout, self.training)
        return [head(pooled) for head in self.heads]


Head = MaskedGeneHead | CellClassifierHead | GeneClassifierHead | MultiTaskHead


class Geneformer(nn.Module):
    """The encoder and, where the checkpoint has one, its head.

    Parameters
    ----------
    bert
        The encoder.
    head
        The head, or None.
    """

    def __init__(self, bert: BertEncoder, head: Head | None) -> None:
        super().__init__()
        self.bert = bert
        self.head = head

    def logits(self, ids: Tensor, offsets: list[int]) -> Tensor | list[Tensor]:
        """What the head says: per token for masked genes and gene classes, per cell for cell classes, per task a list."""
        if isinstance(self.head, CellClassifierHead):
            return self.head(self.bert.first_tokens(ids, offsets, len(self.bert.layers)))
        x = self.bert(ids, offsets)
        if isinstance(self.head, MaskedGeneHead):
            return self.head(x, self.bert.word.weight)
        if isinstance(self.head, MultiTaskHead):
            return self.head(x, offsets)
        assert self.head is not None
        return self.head(x)
