"""The part of the parity report that knows UCE."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from parity import Report
from torch import Tensor
from torch.nn import functional as F

import cfm
from cfm import infer, models
from cfm.infer import Prepared
from cfm.models import Pack
from cfm.models.uce import UceModel
from cfm.models.uce.checkpoint import renamed
from cfm.models.uce.module import unit
from cfm.models.uce.official import drawn_genes, weights
from cfm.models.uce.species import CHROMOSOMES, PAD, chromosome_names, read_chromosomes
from cfm.models.uce.table import TrainedRows
from cfm.models.uce.tokenizer import Atlas, enough_genes
from cfm.tokens import TokenBatch

HIDDEN, VECTORS, LOGITS, GRADIENTS = 1e-5, 2e-6, 5e-6, 2e-5
EXCLUDED = -1e9
"""Added to a score, it leaves a key out."""
OTHER_SEED = 100
CELL = frozenset({"cell"})


@dataclass(frozen=True)
class Preparation:
    """Cells as the official preparation leaves them, and the model that reads them.

    Parameters
    ----------
    model
        The model.
    prepared
        How counts and genes were found.
    cells
        Rows of the cells that stay.
    columns
        Columns, of those left by the filter, that are genes of the model.
    counts
        CSR of these cells and columns.
    genes
        Position in the vocabulary of each.
    """

    model: UceModel
    prepared: Prepared
    cells: NDArray[np.int64]
    columns: NDArray[np.int64]
    counts: sp.csr_array
    genes: NDArray[np.int64]

    @classmethod
    def of(cls, report: Report, cells: ad.AnnData, **options: Any) -> Preparation:
        """Load, filter and match."""
        species = options.pop("species", "human")
        model = models.load(report.folder, device="cpu", species=species, compat="official", **options)
        assert isinstance(model, UceModel)
        found = infer.prepare(cells, model, layer=None, gene_column="var_names", species=species, gene_table=None)
        counts = sp.csr_array(found.source.read(0, cells.n_obs))
        kept = np.flatnonzero(enough_genes(counts, model.choices.min_genes))
        # By exact name but for case: the official code knows no other.
        place = {symbol: i for i, symbol in enumerate(model.genes.symbols)}
        tokens = np.array([place.get(str(name).upper(), -1) for name in found.found.names])
        columns = np.flatnonzero(tokens >= 0)
        part = sp.csr_array(counts[kept][:, columns])
        part.sort_indices()
        return cls(model, found, kept, columns, part, tokens[columns])

    def sentences(self) -> TokenBatch:
        """Sentences of all cells of the object, padded batch by batch."""
        return next(iter(self.prepared.stream)).take(self.cells)

    def names(self) -> NDArray[np.str_]:
        """Names of the columns."""
        return self.prepared.source.var.index.to_numpy(str)[self.columns]


def compare(report: Report, cells: ad.AnnData) -> None:
    """Every array of a UCE fixture folder."""
    if report.has("sentences/tokens"):
        sentences(report, cells)
        embeddings(report, cells)
    if report.has("hidden/tokens"):
        hidden(report, cells)


def square(batch: TokenBatch, width: int = 0) -> NDArray[np.int64]:
    """One row a cell, filled up with padding."""
    out = np.full((batch.n_cells, max(width, int(batch.lengths.max(initial=0)))), PAD)
    out[np.arange(out.shape[1]) < batch.lengths[:, None]] = batch.ids
    return out


def flat(ids: NDArray[np.integer]) -> TokenBatch:
    """Rows as cells, padding included."""
    offsets = np.arange(len(ids) + 1) * ids.shape[1]
    return TokenBatch(ids.astype(np.int32).ravel(), None, offsets, np.arange(len(ids)))


# --- sentences


def sentences(report: Report, cells: ad.AnnData) -> None:
    """From counts to tokens, draw by draw."""
    at = "sentences/"
    human = Preparation.of(report, cells, seed=(seed := int(report.input(at + "seed"))), batch_size=1)
    prepared_genes(report, at, human, cells)
    counts = human.counts
    for name, part in (("data", counts.data), ("indices", counts.indices), ("indptr", counts.indptr)):
        report.check(f"{at}counts_{name}", part)
    table = read_chromosomes(report.folder / CHROMOSOMES)
    report.check(at + "chrom_categories", chromosome_names(table))
    batch = human.sentences()
    report.check(at + "seq_len", batch.lengths)
    report.check(at + "tokens", square(batch))
    draws(report, at, human, seed, report.all[at + "uniforms"].shape[1])

    if report.has(at + "mouse_tokens"):
        renamed_cells = cells.copy()
        renamed_cells.var_names = cells.var_names.str.capitalize()
        mouse = Preparation.of(
            report, renamed_cells, species="mouse", seed=int(report.input(at + "mouse_seed")), batch_size=1
        )
        prepared_genes(report, at + "mouse_", mouse, renamed_cells)
        first(report, at + "mouse_", mouse.sentences())
    if report.has(at + "nofilter_tokens"):
        # The README says so, and no array: the first 10 cells.
        plain = Preparation.of(report, cells[:10].copy(), filter="none", seed=seed, batch_size=1)
        report.check(at + "nofilter_genes_kept", plain.names())
        first(report, at + "nofilter_", plain.sentences())


def prepared_genes(report: Report, at: str, found: Preparation, cells: ad.AnnData) -> None:
    """What the preparation keeps, and what is known of each gene."""
    genes = found.model.genes
    report.check(at + "cells_kept", cells.obs_names.to_numpy(str)[found.cells])
    report.check(at + "genes_kept", found.names())
    report.check(at + "pe_idx", genes.rows[found.genes])
    report.check(at + "chrom_code", genes.chromosomes[found.genes] - first_chromosome(report, found.model))
    report.check(at + "start", genes.starts[found.genes])


def first_chromosome(report: Report, model: UceModel) -> int:
    """The row at which chromosomes begin."""
    return len(model.table) - len(chromosome_names(read_chromosomes(report.folder / CHROMOSOMES)))


def first(report: Report, at: str, batch: TokenBatch) -> None:
    """The sentences of the first cells, as many as the fixture has."""
    tokens = report.all[at + "tokens"]
    some = batch.take(np.arange(len(tokens)))
    if report.has(at + "seq_len"):
        report.check(at + "seq_len", some.lengths)
    report.check(at + "tokens", square(some, tokens.shape[1]))


def draws(report: Report, at: str, found: Preparation, seed: int, sample_size: int) -> None:
    """The numbers of the generator and what they choose, cell after cell."""
    state, atlas = np.random.RandomState(seed), Atlas.of(found.model.genes)
    dense = found.counts.toarray()
    probabilities, uniforms, choices, orders = [], [], [], []
    for row in dense:
        probabilities.append(weights(row))
        uniforms.append(state.random_sample(sample_size))
        choices.append(drawn_genes(probabilities[-1], uniforms[-1]))
        order = np.unique(atlas.chromosomes[atlas.number[found.genes[choices[-1]]]])
        state.shuffle(order)
        orders.append(atlas.names[order] - first_chromosome(report, found.model))
    for name, rows, tolerance in (
        ("weights_f32", probabilities, 1e-6),
        ("uniforms", uniforms, 0.0),
        ("choice", choices, 0.0),
    ):
        if report.has(at + name):
            some = np.array(rows[: len(report.all[at + name])])
            report.check(at + name, some, tolerance, by="relative" if tolerance else "absolute")
    if report.has(at + "chrom_order"):
        width = report.all[at + "chrom_order"].shape[1]
        report.check(at + "chrom_order", [[*order, *[-1] * (width - len(order))] for order in orders])


# --- vectors


def embeddings(report: Report, cells: ad.AnnData) -> None:
    """What a user types, for every batch size; then the same sentences with a proper mask."""
    at = "embeddings/"
    seed = int(report.input("sentences/seed"))
    kept = Preparation.of(report, cells, seed=seed, batch_size=1)

    def embedded(of: int, batch_size: int) -> NDArray[np.float32]:
        adata = cells.copy()
        cfm.tl.embed(adata, model=report.folder, device="cpu", gene_column="var_names", compat="official", seed=of,
                     batch_size=batch_size)  # fmt: skip
        return adata.obsm["X_cfm"][kept.cells]

    for name in report.names(at + "emb_official_b"):
        if found := re.fullmatch(r"emb_official_b(\d+)(_seed_plus_100)?", name.removeprefix(at)):
            other = OTHER_SEED if found[2] else 0
            report.check(name, embedded(seed + other, int(found[1])), VECTORS)
    batch = kept.sentences()
    proper = models.load(report.folder, device="cpu")
    for name in report.names(at + "emb_proper"):
        report.check(name, proper.forward(Pack.of(batch, proper.device), CELL)["cell"], VECTORS)
    for name in report.names(at + "emb_official_pad"):
        length = int(re.search(r"pad(\d+)", name)[1])
        ids = square(batch.take(np.arange(len(report.all[name]))), length)
        report.check(name, kept.model.forward(Pack.of(flat(ids), kept.model.device), CELL)["cell"], VECTORS)
    for name in report.names(at + "max_len_per_batch"):
        size = int(re.search(r"(\d+)$", name)[1])
        lengths = [batch.lengths[i : i + size].max() for i in range(0, batch.n_cells, size)]
        report.check(name, lengths)


# --- inside the network


def hidden(report: Report, cells: ad.AnnData) -> None:
    """Each step of a batch of some cells, with padding; then a loss and its gradients."""
    at = "hidden/"
    tokens, uniforms = report.all[at + "tokens"], report.all[at + "uniforms"]
    n, seed = len(tokens), int(report.input(at + "seed"))
    found = Preparation.of(report, cells, seed=seed, batch_size=n, sample_size=uniforms.shape[1])
    alone = Preparation.of(report, cells, seed=seed, batch_size=1, sample_size=uniforms.shape[1])
    some = np.arange(n)
    batch = found.sentences().take(some)
    lengths = alone.sentences().lengths[some]
    report.check(at + "tokens", square(batch))
    report.check(at + "seq_len", lengths)
    report.check(at + "mask", np.arange(tokens.shape[1]) < lengths[:, None])
    draws(report, at, alone, seed, uniforms.shape[1])

    model = found.model
    run = Padded(model, batch)
    report.check(at + "encoder_out", run.square(run.vectors), 2e-5)
    report.check(at + "pos_out", run.square(run.placed), 2e-5)
    for kind, bias in (("official", run.pads), ("proper", EXCLUDED * run.pads)):
        layers, decoded = run.layers(bias)
        for i, layer in enumerate(layers):
            if report.has(f"{at}{kind}_layer{i}"):
                report.check(f"{at}{kind}_layer{i}", run.square(layer), HIDDEN)
        report.check(f"{at}{kind}_gene_output", run.square(decoded), HIDDEN)
        if kind == "proper":
            report.check(at + "proper_embedding", unit(run.square(decoded)[:, 0]), VECTORS)
    pack = Pack.of(batch, model.device)
    report.check(at + "official_embedding", model.forward(pack, CELL)["cell"], VECTORS)
    unpadded = Pack.of(alone.sentences().take(some), model.device)
    report.check(at + "embedding_b1", alone.model.forward(unpadded, CELL)["cell"], VECTORS)

    genes = report.input(at + "predict_tokens")
    report.check(at + "predict_logits", model.predict(report.all[at + "official_embedding"], genes), LOGITS)
    gradients(report, at, model, batch, genes)


class Padded:
    """A batch with its pads as tokens, step by step."""

    def __init__(self, model: UceModel, batch: TokenBatch) -> None:
        self.model, self.n = model, batch.n_cells
        ids, self.offsets = torch.from_numpy(batch.ids).long(), torch.from_numpy(batch.offsets)
        self.pads = (ids == PAD).float()
        table = model.table
        assert isinstance(table, TrainedRows)
        self.vectors = model.module.projection(table[ids])
        self.placed = model.module.place(self.vectors, self.offsets)

    def square(self, tokens: Tensor) -> Tensor:
        """[cells, length, ...] of what stands beside tokens."""
        return tokens.detach().view(self.n, -1, tokens.shape[-1])

    def layers(self, bias: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each layer gives, and what the decoder makes of the last."""
        x, out = self.placed, []
        for layer in self.model.module.layers:
            x = layer(x, self.offsets.tolist(), key_bias=bias)
            out.append(x)
        return out, self.model.module.decoder(x)


def gradients(report: Report, at: str, model: UceModel, batch: TokenBatch, genes: NDArray[np.integer]) -> None:
    """The loss of telling expressed genes from others, and what it hangs on."""
    labels = torch.from_numpy(report.input(at + "predict_labels"))
    network = model.module.requires_grad_(True)
    try:
        run = Padded(model, batch)
        _, decoded = run.layers(run.pads)
        cells = unit(decoded.view(run.n, -1, decoded.shape[-1])[:, 0])
        logits = network.predict(cells, model.table[torch.from_numpy(genes.astype(np.int64))])
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        report.check(at + "predict_loss", loss.detach(), VECTORS)
        network.zero_grad()
        loss.backward()
        parameters = dict(network.named_parameters())
        for name in report.names(at + "grad/"):
            parts = renamed(name.removeprefix(at + "grad/"), torch.from_numpy(report.all[name]))
            found = torch.cat([parameters[part].grad for part in parts])
            report.check(name, found, GRADIENTS, by="largest")
        network.zero_grad()
    finally:
        network.requires_grad_(False)
