"""The network of scGPT, in all its published forms, over ragged cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cfm.nn.encoder import EncoderLayer
from cfm.nn.rows import by_rows
from cfm.nn.values import ContinuousValue, NormedEmbedding

from .heads import AffineDecoder, CellExpressionDecoder, Classifier, ExpressionDecoder, Predicted, unit
from .layout import Layout
from .norms import DomainNorm, InputNorm, normed
from .ragged import repeated, summed

LARGEST_VALUE = 512.0
"""Values above enter as this one; bins stay far below, and expression does in practice."""


@dataclass(frozen=True)
class Inputs:
    """Cells as the network takes them: tokens one after another.

    Parameters
    ----------
    ids
        int64[n_tokens]: genes.
    values
        float[n_tokens]: a value beside each; what it is for tokens that are not known plays no part.
    offsets
        int64[n_cells + 1].
    batches
        int64[n_cells]: batch of each cell, for networks with batch labels or a norm for each batch.
    modalities
        int64[n_tokens], for networks with modalities.
    flags
        int64[n_tokens]: 1 for a perturbed gene, else 0; for networks that predict perturbations.
    n_known
        int64[n_cells], for generative passes: the first so many tokens of a cell are known, the others are asked for.
    """

    ids: Tensor
    values: Tensor
    offsets: Tensor
    batches: Tensor | None = None
    modalities: Tensor | None = None
    flags: Tensor | None = None
    n_known: Tensor | None = None

    def known(self) -> Tensor | None:
        """bool[n_tokens], or None where all are known."""
        if self.n_known is None:
            return None
        places = torch.arange(len(self.ids), device=self.ids.device) - repeated(self.offsets[:-1], self.offsets)
        return places < repeated(self.n_known, self.offsets)


@dataclass(frozen=True)
class Outputs:
    """What all heads say.

    Parameters
    ----------
    tokens
        float[n_tokens, dim]: the last layer.
    cells
        float[n_cells, dim]: cell vectors as the heads take them, not scaled to length 1.
    expression
        Of each token, from the token.
    from_cell
        Of each token, from the cell vector and the gene alone; None without that head, as the following.
    classes
        float[n_cells, n_classes]: logits.
    batches
        float[n_cells, n_batches]: logits of the discriminator.
    """

    tokens: Tensor
    cells: Tensor
    expression: Predicted
    from_cell: Predicted | None
    classes: Tensor | None
    batches: Tensor | None


class ScgptNetwork(nn.Module):
    """Gene vectors plus value vectors, encoder layers, and heads.

    Parameters are named as in official files, but for the layers.

    Parameters
    ----------
    layout
        Which parts there are, and their sizes.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout, dim = layout, layout.dim
        self.encoder = NormedEmbedding(layout.n_tokens, dim)
        self.value_encoder: nn.Module | None = None
        if layout.values == "continuous":
            self.value_encoder = ContinuousValue(dim, largest=LARGEST_VALUE, dropout=layout.dropout)
        elif layout.values == "category":
            self.value_encoder = NormedEmbedding(layout.n_values, dim)
        self.flag_encoder = nn.Embedding(2, dim) if layout.flags else None
        self.batch_encoder = NormedEmbedding(layout.n_batches, dim) if layout.n_batches else None
        self.mod_encoder = NormedEmbedding(layout.n_modalities, dim) if layout.n_modalities else None
        # A gene that is not perturbed adds a vector that is never trained; the official one stays at zero.
        self.pert_encoder = nn.Embedding(layout.n_perturbations, dim, padding_idx=0) if layout.n_perturbations else None
        self.bn = InputNorm(dim) if layout.input_norm else None
        self.dsbn = DomainNorm(dim, layout.n_domains, affine=layout.domain_affine) if layout.n_domains else None
        self.layers = nn.ModuleList(
            EncoderLayer(
                dim,
                layout.heads,
                layout.hidden,
                dropout=layout.dropout,
                inner_dropout=layout.dropout,
                attention_dropout=layout.dropout,
                order=layout.order,
            )
            for _ in range(layout.layers)
        )
        self._make_heads(layout)

    def _make_heads(self, layout: Layout) -> None:
        dim = layout.dim
        labelled = dim * (1 + layout.decoder_labels)
        self.decoder: nn.Module = (
            AffineDecoder(dim, with_zeros=layout.decoder_zeros)
            if layout.affine
            else ExpressionDecoder(dim, labelled, with_zeros=layout.decoder_zeros)
        )
        self.mvc_decoder = self.cls_decoder = self.grad_reverse_discriminator = None
        if layout.query is not None:
            gene_dim, cell_dim = dim * (1 + layout.query_genes_labelled), dim * (1 + layout.query_cells_labelled)
            self.mvc_decoder = CellExpressionDecoder(
                gene_dim, cell_dim, style=layout.query, with_zeros=layout.query_zeros
            )
        if layout.n_classes:
            self.cls_decoder = Classifier(dim, layout.n_classes, layout.class_layers)
        if layout.n_adversary:
            self.grad_reverse_discriminator = Classifier(
                dim, layout.n_adversary, layout.adversary_layers, adversary=True
            )

    def forward(self, inputs: Inputs, given_cells: Tensor | None = None) -> Outputs:
        """Everything that the network has a head for.

        Parameters
        ----------
        inputs
            The cells.
        given_cells
            float[n_cells, dim]: put in the place of the first token of each cell, to ask what such a cell expresses.
        """
        genes = self.encoder(inputs.ids)
        x = self.embed(genes, inputs)
        if given_cells is not None:
            x = x.index_copy(0, inputs.offsets[:-1], given_cells.to(x.dtype))
        return self.read(self.encode(x, inputs), genes, inputs)

    def embed(self, genes: Tensor, inputs: Inputs) -> Tensor:
        """What goes into the first layer, float[n_tokens, dim]; `genes` are the gene vectors of the tokens."""
        known = inputs.known()
        x = self._with_values(genes, inputs, known)
        if self.pert_encoder is not None:
            if inputs.flags is None:
                raise ValueError("this network predicts perturbations: the flags have to be given")
            x = x + self.pert_encoder(inputs.flags)
        norm = self.dsbn if self.dsbn is not None else self.bn
        if norm is None:
            return x
        domains = None if inputs.batches is None else repeated(inputs.batches, inputs.offsets)
        if known is None or not self.training:
            return normed(norm, x, domains)
        # The statistics of a mini-batch are taken apart: known and unknown tokens do not look alike.
        out = torch.empty_like(x)
        for part in (known, ~known):
            out[part] = normed(norm, x[part], None if domains is None else domains[part])
        return out

    def _with_values(self, genes: Tensor, inputs: Inputs, known: Tensor | None) -> Tensor:
        if self.layout.values == "scaling":
            return genes * inputs.values[:, None]
        assert self.value_encoder is not None
        values = inputs.values if self.layout.values == "continuous" else inputs.values.long()
        if known is None:
            return genes + self.value_encoder(values)
        if self.flag_encoder is None:
            raise ValueError("this network has no vector for an unknown value: it was not trained to generate")
        stand_in = self.flag_encoder(torch.ones_like(inputs.ids))
        # Unknown tokens may carry any number, a category may not.
        return genes + torch.where(known[:, None], self.value_encoder(values * known), stand_in)

    def encode(self, x: Tensor, inputs: Inputs) -> Tensor:
        """Token vectors after the last layer, float[n_tokens, dim]."""
        offsets = inputs.offsets.tolist()
        n_known = None if inputs.n_known is None else inputs.n_known.tolist()
        for layer in self.layers:
            x = layer(x, offsets, n_known=n_known)
        return x

    def first_tokens(self, x: Tensor, inputs: Inputs) -> Tensor:
        """The first token of each cell after the last layer, which is computed for it alone; float[n_cells, dim]."""
        offsets = inputs.offsets.tolist()
        for layer in self.layers[:-1]:
            x = layer(x, offsets)
        last = self.layers[-1]
        assert isinstance(last, EncoderLayer)
        return last.first_tokens(x, offsets)

    def cell_vectors(self, tokens: Tensor, inputs: Inputs) -> Tensor:
        """Vectors of the cells from the last layer, float[n_cells, dim]."""
        if self.layout.cell == "cls":
            return tokens[inputs.offsets[:-1]]
        if self.layout.cell == "avg-pool":
            return summed(tokens, inputs.offsets) / inputs.offsets.diff()[:, None]
        return unit(summed(tokens * inputs.values[:, None], inputs.offsets))

    def read(self, tokens: Tensor, genes: Tensor, inputs: Inputs) -> Outputs:
        """What all heads say about encoded tokens."""
        cells = self.cell_vectors(tokens, inputs)
        return Outputs(
            tokens=tokens,
            cells=cells,
            expression=self.expression(tokens, inputs),
            from_cell=None if self.mvc_decoder is None else self.expression_from_cell(cells, genes, inputs),
            classes=None if self.cls_decoder is None else self.cls_decoder(cells),
            batches=None if self.grad_reverse_discriminator is None else self.grad_reverse_discriminator(cells),
        )

    def expression(self, tokens: Tensor, inputs: Inputs) -> Predicted:
        """The value of each token from its vector."""
        if isinstance(self.decoder, AffineDecoder):
            return self.decoder(tokens, inputs.values, inputs.offsets)
        if self.layout.decoder_labels:
            tokens = torch.cat([tokens, self._labels(inputs)], 1)
        found: Predicted = self.decoder(tokens)
        return found

    def expression_from_cell(self, cells: Tensor, genes: Tensor, inputs: Inputs) -> Predicted:
        """The value of each token from the vector of its cell."""
        assert self.mvc_decoder is not None
        if self.layout.query_genes_labelled:
            genes = torch.cat([genes, self._labels(inputs)], 1)
        if self.layout.query_cells_labelled:
            # The label of a cell is that of its first token, whose modality is one of its own.
            cells = torch.cat([cells, self._labels(inputs)[inputs.offsets[:-1]]], 1)
        found: Predicted = self.mvc_decoder(cells, genes, inputs.offsets)
        return found

    def _labels(self, inputs: Inputs) -> Tensor:
        """Sum of the vectors of batch and modality, float[n_tokens, dim]."""
        labels = None
        if self.batch_encoder is not None:
            if inputs.batches is None:
                raise ValueError("this network has batch labels: the batches have to be given")
            labels = repeated(self.batch_encoder(inputs.batches), inputs.offsets)
        if self.mod_encoder is not None:
            if inputs.modalities is None:
                raise ValueError("this network has modalities: they have to be given")
            of_modality = self.mod_encoder(inputs.modalities)
            labels = of_modality if labels is None else labels + of_modality
        assert labels is not None
        return labels

    def gene_vectors(self) -> Tensor:
        """The normed vector of each token of the vocabulary, float[n_tokens, dim]."""
        return by_rows(self.encoder.enc_norm, self.encoder.embedding.weight)
