"""Parity of scGPT's rarer modules, each with its own small weights, and of the recipes for gene networks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from padded import Padded
from parity import Report
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from cfm.models.scgpt import losses
from cfm.models.scgpt.checkpoint import network_of
from cfm.models.scgpt.heads import AffineDecoder, CellExpressionDecoder, Classifier
from cfm.models.scgpt.layout import layout_of, our_name
from cfm.models.scgpt.module import Inputs, ScgptNetwork
from cfm.models.weights import fill
from cfm.nn.rows import by_rows

TOLERANCE = 2e-5
ECS_THRESHOLD = 0.3
Weights = dict[str, Tensor]


def compare(report: Report) -> None:
    """All arrays of variants."""
    weights = _weights(report)
    heads = _heads(report, weights)
    for tag in ("base", "pre_norm", "batchnorm", "batchnorm_train", "scaling", "category"):
        if report.has(f"variants/{tag}/hidden"):
            whole_model(report, tag, _network(weights, tag, heads))
    base(report, _network(weights, "base", heads))
    modules(report, weights)


def _weights(report: Report) -> dict[str, Weights]:
    found: dict[str, Weights] = {}
    for name, tensor in load_file(report.folder / "variants.safetensors").items():
        tag, _, key = name.partition("::")
        found.setdefault(tag, {})[key] = tensor
    return found


def _network(weights: dict[str, Weights], tag: str, heads: int) -> ScgptNetwork:
    """The base model, with what the tag has of its own; scaling and category have no value encoder of the base's."""
    tensors = dict(weights["base"])
    if tag in ("scaling", "category"):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("value_encoder.")}
    tensors = {our_name(name): tensor for name, tensor in (tensors | weights.get(tag, {})).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layout = layout_of(shapes, heads=heads, order="leading" if tag == "pre_norm" else "post")
    return network_of(layout, tensors, where="variants.safetensors").train(tag == "batchnorm_train")


def _padded(report: Report, net: ScgptNetwork) -> Padded:
    genes = torch.from_numpy(report.input("variants/gene").astype(np.int64))
    values = torch.from_numpy(report.input("variants/values").astype(np.float32))
    valid = values != -2
    if net.layout.values == "category":
        values = torch.where(valid, values, net.layout.n_values - 2.0)
    return Padded(genes, values, valid)


def _heads(report: Report, weights: dict[str, Weights]) -> int:
    """The divisor of the width with which the first hidden states agree best: no file tells the number of heads."""
    dim = weights["base"]["encoder.embedding.weight"].shape[1]
    gaps = {}
    for heads in (n for n in range(1, dim + 1) if dim % n == 0):
        net = _network(weights, "base", heads)
        found = _padded(report, net).run(net).layers[-1]
        gaps[heads] = float(np.abs(found.numpy() - report.all["variants/base/hidden"]).max())
    best = min(gaps, key=gaps.__getitem__)
    print(f"variants: {best} heads, whose base/hidden is off by {gaps[best]:.0e}")
    return best


def whole_model(report: Report, tag: str, net: ScgptNetwork) -> None:
    """Hidden states and cell vectors, and the state of a norm after a step of training."""
    with torch.no_grad():
        hidden = _padded(report, net).run(net).layers[-1]
    at = f"variants/{tag}/"
    report.check(at + "hidden", hidden[: len(report.all[at + "hidden"])], TOLERANCE, by="scale")
    report.check(at + "cls", hidden[:, 0], TOLERANCE, by="scale")
    for name in ("running_mean", "running_var"):
        if report.has(f"{at}{name}_after"):
            report.check(f"{at}{name}_after", getattr(net.bn, name), TOLERANCE, by="scale")


def base(report: Report, net: ScgptNetwork) -> None:
    """Pooling, losses of cell vectors, and prediction from a given cell vector."""
    at, padded = "variants/base/", _padded(report, net)
    hidden = padded.run(net).layers[-1].flatten(0, 1)
    for style in ("avg-pool", "w-pool"):
        # Pads count: the official pooling runs over the padded length.
        pooled = _with_cell(net, style).cell_vectors(hidden, padded.inputs)
        report.check(at + style, pooled, TOLERANCE, by="scale")
    cells = padded.run(net).outputs.cells
    report.check(at + "loss_ecs", losses.elastic_similarity(cells, ECS_THRESHOLD), TOLERANCE, by="scale")
    report.check(at + "loss_cce", losses.contrastive(cells, cells), TOLERANCE, by="scale")
    given = torch.from_numpy(report.input("variants/cell_emb"))
    found = padded.run(net, given_cells=given).outputs.expression.values
    report.check(at + "generate", padded.square(found), TOLERANCE, by="scale")
    genes = net.encoder(padded.inputs.ids)
    every = Padded(padded.square(padded.inputs.ids), padded.square(padded.inputs.values), torch.ones(padded.shape) > 0)
    found = every.encode(net, genes, genes, given_cells=given).outputs.expression.values
    report.check(at + "generate_no_values", padded.square(found), TOLERANCE, by="scale")


def _with_cell(net: ScgptNetwork, style: str) -> ScgptNetwork:
    other = ScgptNetwork(replace(net.layout, cell=style))
    other.load_state_dict(net.state_dict())
    return other


def modules(report: Report, weights: dict[str, Weights]) -> None:
    """Single modules: decoders from the cell, affine decoders, the discriminator."""
    cells = torch.from_numpy(report.input("variants/cell_emb"))
    genes = torch.from_numpy(report.input("variants/gene_embs"))
    n_cells, n_genes, dim = genes.shape
    offsets = torch.arange(n_cells + 1) * n_genes
    tokens = genes.flatten(0, 1)
    made = {
        "mvc_inner_product": CellExpressionDecoder(dim, dim, style="inner product"),
        "mvc_inner_product_zero": CellExpressionDecoder(dim, dim, style="inner product", with_zeros=True),
        "mvc_concat_query": CellExpressionDecoder(dim, dim, style="concat query"),
        "mvc_sum_query": CellExpressionDecoder(dim, dim, style="sum query"),
        "affine": AffineDecoder(dim),
        "affine_adaptive": AffineDecoder(dim, adaptive=True),
        "affine_softplus_zero": AffineDecoder(dim, with_zeros=True, activation=F.softplus),
    }
    for tag, module in made.items():
        fill(module, weights[tag], where="variants.safetensors", advice="")
        if tag.startswith("mvc"):
            found = module(cells, tokens, offsets)
        else:
            found = module(tokens, torch.from_numpy(report.input(f"variants/{tag}/values")).flatten(), offsets)
        report.check(f"variants/{tag}/pred", found.values.detach().view(n_cells, n_genes), TOLERANCE, by="scale")
        if report.has(f"variants/{tag}/zero_probs"):
            zeros = found.non_zero.detach().view(n_cells, n_genes)
            report.check(f"variants/{tag}/zero_probs", zeros, TOLERANCE, by="scale")
    logits = report.all["variants/dab/logits"]
    linear = sum(name.startswith("_decoder") and weights["dab"][name].ndim == 2 for name in weights["dab"])
    discriminator = Classifier(dim, logits.shape[1], linear + 1, adversary=True)
    fill(discriminator, weights["dab"], where="variants.safetensors", advice="")
    given = cells.clone().requires_grad_(True)
    found = discriminator(given)
    F.cross_entropy(found, torch.arange(len(given)) % logits.shape[1]).backward()  # labels of the README
    report.check("variants/dab/logits", found.detach(), TOLERANCE, by="scale")
    report.check("variants/dab/grad_input", given.grad, TOLERANCE, by="scale")


@torch.no_grad()
def gene_network(report: Report, net: ScgptNetwork) -> None:
    """Similar genes by their vectors, and who attends to whom in the last layer."""
    vocabulary = json.loads((report.folder / "human" / "vocab.json").read_text())
    vectors = net.gene_vectors()[[vocabulary[name] for name in report.input("grn/genes").tolist()]]
    report.check("grn/gene_emb", vectors, TOLERANCE, by="scale")
    cosines = (F.normalize(vectors, dim=1) @ F.normalize(vectors, dim=1).T).numpy()
    report.check("grn/cosine", cosines, TOLERANCE)
    for name in report.names("grn/edges_threshold_"):
        threshold = float(name.removeprefix("grn/edges_threshold_").replace("_", "."))
        report.check(name, np.argwhere(np.triu(cosines >= threshold)))
    attention(report, net)


def attention(report: Report, net: ScgptNetwork) -> None:
    """Scores of the last layer without scale, their ranks, and the ranks of these over the queries."""
    genes = torch.from_numpy(report.input("grn/gene").astype(np.int64))
    values = torch.from_numpy(report.input("grn/expr").astype(np.float32))
    n_cells, length = genes.shape
    offsets = torch.arange(n_cells + 1) * length
    inputs = Inputs(genes.flatten(), values.flatten(), offsets)
    x = net.embed(net.encoder(inputs.ids), inputs)
    for layer in net.layers[:-1]:
        x = layer(x, offsets.tolist())
    last = net.layers[-1]
    q, k = (by_rows(part, x).view(n_cells, length, net.layout.heads, -1) for part in (last.query, last.key))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).numpy()
    report.check("grn/qk_head_first_row", scores[:, 0, 0], TOLERANCE, by="scale")
    ranks = _ranks(scores[0], -1, like=report.all["grn/row_rank"])
    report.check("grn/row_rank", ranks)
    final = _ranks(ranks / length, -2) / length
    report.check("grn/final_cell0_stable", final.mean(0), TOLERANCE)


def _ranks(scores: NDArray[np.floating], axis: int, like: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
    """Ranks from 0 on, ties in their order; where ranks `like` these differ by near-ties alone, those."""
    order = scores.argsort(axis, kind="stable")
    ranks = order.argsort(axis, kind="stable")
    if like is None:
        return ranks
    sorted_by_them = np.take_along_axis(scores, like.astype(np.int64).argsort(axis, kind="stable"), axis)
    as_good = (np.diff(sorted_by_them, axis=axis) >= -TOLERANCE * max(1.0, np.abs(scores).max())).all(
        axis, keepdims=True
    )
    return np.where(as_good, like, ranks)
