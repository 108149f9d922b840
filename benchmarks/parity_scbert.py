"""The part of the parity report that knows scBERT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray
from parity import Report
from torch import Tensor
from torch.nn import functional as F

import cfm
from cfm import models
from cfm.genes import Vocabulary, match
from cfm.kernels import performer
from cfm.models.scbert import ScbertModel, checkpoint
from cfm.models.scbert.checkpoint import official_name
from cfm.models.scbert.genes import columns_of, read_genes
from cfm.models.scbert.model import MIN_GENES, pooled
from cfm.models.scbert.module import ScbertNetwork, dense_bins
from cfm.models.scbert.tokenizer import ScbertTokenizer, log_values
from cfm.nn import received
from cfm.nn.attention import Scope, performer_attention
from cfm.nn.performer import PerformerLayer
from cfm.tokens import gene_rows

STATES, HEAD, GRADIENTS = 5e-6, 1e-5, 1e-5
PRETRAINED, FINE_TUNED = "panglao_pretrain.pth", "finetune_best.pth"
LEARNING_RATE = 1e-4


def compare(report: Report, cells: AnnData) -> None:
    """Every array of an scBERT fixture folder."""
    for name, genes in (("preprocess", "genes.txt"), ("preprocess_wide", "genes_wide.txt")):
        if report.has(f"{name}/kept"):
            preprocess(report, cells, name, genes)
    bins = _tokens(report)
    if report.has("model/positions"):
        states(report, bins)
        features(report, bins)
        pooled_cells(report, cells, bins)
    if report.has("attention/cells"):
        attention(report, bins)
    if report.has("pretrain/loss"):
        pretraining(report)
    if report.has("finetune/logits"):
        fine_tuning(report, bins)
        prediction(report, bins)
        for name in report.names("finetune/redraw/"):
            report.not_covered(
                name, "the projections of a checkpoint are kept; none are drawn (README: no numbers to match)"
            )
        report.not_covered("finetune/lr_schedule", "no trainer for this family yet")


def _model(report: Report, weights: str = PRETRAINED, **options: str) -> ScbertModel:
    model = models.load(report.folder, device="cpu", weights=weights, **options)
    assert isinstance(model, ScbertModel)
    return model


def _trainable(report: Report, weights: str = PRETRAINED) -> ScbertNetwork:
    """A network of our own: that of a loaded model is kept, and shared."""
    return checkpoint.read(report.folder / weights, report.all["preprocess/tokens"].shape[1] - 1).network


def _tokens(report: Report) -> Tensor:
    """Bins of the kept cells as the official code has them, which `preprocess` compares with ours."""
    return torch.from_numpy(report.all["preprocess/tokens"].astype(np.int64))


# --- tokens


def preprocess(report: Report, cells: AnnData, name: str, genes: str) -> None:
    """Values and tokens, by the official rule for columns and by our own."""
    names = read_genes(report.folder, report.folder / genes, None)
    vocabulary = Vocabulary.of_symbols(names)
    found = match(cells.var, vocabulary, gene_column="var_names")
    n_bins = _model(report).module.layout.n_bins
    counts = sp.csr_matrix(cells.X)
    kinds = {}
    for official in (True, False):
        columns = columns_of(found, vocabulary, official=official)
        batch = ScbertTokenizer(columns, len(names), n_bins)(counts, 0)
        kept = np.flatnonzero(batch.lengths >= MIN_GENES)
        some = batch.take(kept)
        assert some.values is not None
        parts = (torch.from_numpy(part) for part in (some.ids.astype(np.int64), some.values, some.offsets))
        kinds[official] = (columns, kept, some, dense_bins(*parts, len(names) + 1).numpy())
    columns, kept, some, dense = kinds[True]
    same = np.array_equal(kept, kinds[False][1]) and np.array_equal(dense, kinds[False][3])
    print(f"{name}: our rule for columns gives {'the same tokens' if same else 'other tokens'}")
    report.check(f"{name}/kept", np.asarray(cells.obs_names[kept]))
    report.check(f"{name}/tokens", dense)
    if report.has(f"{name}/n_genes"):
        report.check(f"{name}/n_genes", some.lengths)
    report.check(f"{name}/values_data", log_values(gene_rows(counts[kept], columns, len(names))), 1e-6)
    report.check(f"{name}/values_indices", some.ids)
    report.check(f"{name}/values_indptr", some.offsets)


# --- the network


@torch.inference_mode()
def states(report: Report, bins: Tensor) -> None:
    """Hidden states at some positions of some cells, alone and as one batch."""
    network = _model(report).module
    positions = report.input("model/positions").astype(np.int64)
    selected = bins[report.input("model/cells_sel").astype(np.int64)]
    runs: dict[str, tuple[list[Tensor], Scope]] = {
        "single": ([cell[None] for cell in selected], "cell"),
        "batch": ([selected], "batch"),
    }
    for kind, (groups, scope) in runs.items():
        found: dict[str, list[Tensor]] = {}
        for group in groups:
            for name, x in _trace(network, group, scope):
                found.setdefault(name, []).append(x.unflatten(0, group.shape)[:, positions])
        for name, parts in found.items():
            if report.has(array := f"model/{kind}_{name}"):
                report.check(array, torch.cat(parts), STATES)


def _trace(network: ScbertNetwork, bins: Tensor, scope: Scope) -> Iterator[tuple[str, Tensor]]:
    """Names of the README and states of a pass, float[n_cells * n_positions, any]."""
    x, offsets = network.embed(bins), network.offsets(len(bins))
    for i, layer in enumerate(network.layers):
        assert isinstance(layer, PerformerLayer)
        yield f"x_in{i}", x
        x = layer.attended(x, offsets, scope)
        yield f"x_mid{i}", x
        x = layer.fed(x)
    yield "x_last", x
    encodings = network.encode(bins, scope).flatten(0, 1)
    yield "encodings", encodings
    yield "logits", network.logits(encodings)


@torch.inference_mode()
def features(report: Report, bins: Tensor) -> None:
    """Inside the first attention, of the first selected cell."""
    network = _model(report).module
    selected = bins[report.input("model/cells_sel").astype(np.int64)]
    layer, n = network.layers[0], network.layout.n_positions
    assert isinstance(layer, PerformerLayer)
    q, k, v = layer.heads_of(network.embed(selected))
    n_shown = report.all["model/q_l0"].shape[1]
    for name, x in (("q", q), ("k", k), ("v", v)):
        report.check(f"model/{name}_l0", x[:n_shown].transpose(0, 1), STATES)
    context = performer_attention(q[:n], k[:n], v[:n], [0, n], layer.projection)
    report.check("model/fa_out_l0", context[:n_shown].transpose(0, 1), STATES)
    scale = network.layout.n_features**-0.5  # a factor that cancels, and that our features leave out
    made = performer.features_of(q, layer.projection)
    for kind, n_cells in (("single", 1), ("batch", len(selected))):
        largest = performer.top_of_all(made, k, network.offsets(n_cells))
        key = _features(made, k[:n], largest)
        report.check(f"model/{kind}_kmax", largest, 1e-6)
        report.check(f"model/{kind}_qfeat", _features(made, q[:n_shown], None) * scale, STATES)
        report.check(f"model/{kind}_kfeat", key[:, :n_shown] * scale, STATES)
        report.check(f"model/{kind}_ksum", key.sum(1) * scale, STATES)


@torch.inference_mode()
def pooled_cells(report: Report, cells: AnnData, bins: Tensor) -> None:
    """Vectors of all kept cells: alone through cfm.tl.embed, and in groups as the official code takes them."""
    network = _model(report).module
    kept = report.all["preprocess/kept"].astype(str)
    for pool in ("mean", "last", "max"):
        if report.has(array := f"model/enc_{pool}_b1"):
            adata = AnnData(cells.X, obs=cells.obs[[]].copy(), var=cells.var[[]].copy())
            cfm.tl.embed(adata, model=report.folder, weights=PRETRAINED, pool=pool, device="cpu")
            report.check(array, np.asarray(adata[kept].obsm["X_cfm"]), STATES)
        for group, size in (("b3", 3), ("ball", len(bins))):
            if report.has(array := f"model/enc_{pool}_{group}"):
                found = [pooled(network.encode(part, "batch"), pool) for part in bins.split(size)]
                report.check(array, torch.cat(found), STATES)


@torch.inference_mode()
def attention(report: Report, bins: Tensor) -> None:
    """Who attends to whom, in rows and in sum; the official export takes the state after the residual."""
    network = _model(report).module
    selected = bins[report.input("attention/cells").astype(np.int64)]
    report.check("attention/official_vector", network.attention_received(selected, after=True), 3e-3, by="relative")
    n_rows = report.all["attention/official_rows"].shape[1]
    before: dict[int, list[tuple[Tensor, Tensor]]] = {}
    after: list[Tensor] = []
    for cell in selected:
        x, offsets = network.embed(cell[None]), network.offsets(1)
        official = []
        for i, layer in enumerate(network.layers):
            assert isinstance(layer, PerformerLayer)
            middle = layer.attended(x, offsets)
            before.setdefault(i, []).append((_rows(layer, x, n_rows), layer.received(x, offsets)))
            official.append(_rows(layer, middle, n_rows))
            x = layer.fed(middle)
        after.append(torch.stack(official).mean(0))
    report.check("attention/official_rows", torch.stack(after), 3e-3, by="relative")
    for i, found in before.items():
        report.check(f"attention/layer{i}_rows", torch.stack([rows for rows, _ in found]), 1e-7)
        report.check(f"attention/layer{i}_colmean", torch.stack([mean for _, mean in found]), 1e-7)


def _features(made: performer.Features, x: Tensor, top: Tensor | None) -> Tensor:
    """Features of tokens, [heads, n, n_features], all at once."""
    return torch.cat([received.features(made, part, top).clone() for part in x.split(made.rows)], 1)


def _rows(layer: PerformerLayer, x: Tensor, n_rows: int) -> Tensor:
    """Attention of the first positions of a cell to all, mean over heads; by the features, for a few rows only."""
    q, k, _ = layer.heads_of(x)
    made = performer.features_of(q, layer.projection)
    query = _features(made, q[:n_rows], None).double()
    key = _features(made, k, performer.top_of_all(made, k, [0, len(k)])).double()
    weights = torch.einsum("hqm,hkm->hqk", query, key) / torch.einsum("hqm,hm->hq", query, key.sum(1))[..., None]
    return weights.mean(0)


# --- training


def pretraining(report: Report) -> None:
    """Loss and gradients of a masked batch; the draw of the mask went in."""
    network = _trainable(report).requires_grad_(True)
    masked, labels = (_long(report.input(f"pretrain/{name}")) for name in ("masked_input", "labels"))
    report.input("pretrain/cells")
    logits = network.logits(network.encode(masked, "batch").flatten(0, 1))
    loss = F.cross_entropy(logits, labels.flatten(), ignore_index=network.layout.mask)
    report.check("pretrain/loss", loss.detach(), 2e-6)
    gradients(report, "pretrain/grad/", network, loss)
    for name in ("calls_before", "calls_after"):
        report.not_covered(f"pretrain/{name}", "counts calls until projections are drawn anew; ours are kept")


def fine_tuning(report: Report, bins: Tensor) -> None:
    """Logits, loss and gradients of a batch with the classifier, and what is trained."""
    network = _trainable(report, FINE_TUNED)
    network.thaw()
    batch = bins[report.input("finetune/cells").astype(np.int64)]
    labels = _long(report.input("finetune/labels"))

    def logits() -> Tensor:
        found: Tensor = network.head(network.encode(batch, "batch").flatten(0, 1))
        return found

    first = logits()
    report.check("finetune/logits", first.detach(), HEAD)
    loss = F.cross_entropy(first, labels)
    report.check("finetune/loss", loss.detach(), HEAD)
    trained = [official_name(name) for name, weight in network.named_parameters() if weight.requires_grad]
    report.check("finetune/trainable", np.array(trained))
    gradients(report, "finetune/grad/", network, loss)
    optimizer = torch.optim.Adam([w for w in network.parameters() if w.requires_grad], lr=LEARNING_RATE)
    # The fixture's first step went by twice the gradient: that of the arrays above was still there.
    F.cross_entropy(logits(), labels).backward()
    losses = []
    for _ in report.all["finetune/adam_losses_lr1e-4"]:
        loss = F.cross_entropy(logits(), labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    report.check("finetune/adam_losses_lr1e-4", losses, HEAD)


def gradients(report: Report, at: str, network: ScbertNetwork, loss: Tensor) -> None:
    """Compare with all arrays of that beginning, each relative to its largest entry."""
    weights = {official_name(name): weight for name, weight in network.named_parameters() if weight.requires_grad}
    found = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    for array in report.names(at):
        name, _, cut = array.removeprefix(at).partition("[:, :")
        gradient = found[name]
        if cut:
            gradient = gradient[:, : int(cut.rstrip("]"))]
        largest = float(np.abs(report.all[array]).max(initial=0))
        report.check(array, gradient.reshape(report.all[array].shape), GRADIENTS * largest)


@torch.inference_mode()
def prediction(report: Report, bins: Tensor) -> None:
    """Classes of all kept cells: cell by cell, and in groups as the official code takes them."""
    model = _model(report, FINE_TUNED)
    network = model.module
    alone = torch.cat([network.head(network.encode(cell[None]).flatten(0, 1)) for cell in bins])
    report.check("finetune/predict_logits_b1", alone, HEAD)
    for group, size in (("b3", 3), ("ball", len(bins))):
        found = [network.head(network.encode(part, "batch").flatten(0, 1)) for part in bins.split(size)]
        report.check(f"finetune/predict_logits_{group}", torch.cat(found), HEAD)
    probabilities = torch.softmax(alone, 1)
    report.check("finetune/predict_prob_b1", probabilities, HEAD)
    report.check("finetune/predict_argmax_b1", probabilities.argmax(1))
    for name in report.names("finetune/predict_names_thr"):
        strict = replace(model, threshold=float(name.rpartition("thr")[2]))
        report.check(name, np.array([*model.classes, "Unassigned"])[strict.classify(alone.numpy())[0]])


def _long(array: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
