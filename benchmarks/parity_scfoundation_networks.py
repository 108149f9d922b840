"""Hidden states, gene outputs, the fine-tuned classifier and the encoder of GEARS; run through parity.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from parity_scfoundation_bench import Bench, depths_of, padded
from torch import Tensor
from torch.nn import functional as F

from cfm.models.contract import Pack
from cfm.models.scfoundation import names
from cfm.models.scfoundation.classifier import Classifier
from cfm.models.scfoundation.module import Encoder, ScfoundationNetwork
from cfm.nn.attention import FEATURE_EPS, Scope, performer_attention

TOLERANCE, STATISTICS = 1e-5, 1e-4
GEARS_MULTIPLE = 16


def compare(bench: Bench) -> None:
    """All arrays of networks."""
    report = bench.report
    for name, part in (
        ("hidden/enc_out", hidden),
        ("gene_outputs/five_rows", gene_outputs),
        ("finetune/rows", finetune),
        ("gears/batch5_ntokens_padded", gears),
        ("edge/collide_input", collide),
    ):
        if report.has(name):
            part(bench)


# --- hidden states


def hidden(bench: Bench) -> None:
    """One cell through the encoder, and through the decoder alone and beside others."""
    report, at = bench.report, "hidden/"
    row = [int(report.input(at + "cell_row"))]
    model, pack = bench.pack(row, weights="cell")
    encoder = model.networks["cell"].encoder
    with torch.inference_mode():
        report.check(at + "enc_value_emb", encoder.values(pack.values), TOLERANCE)
        report.check(at + "enc_bin_weights", encoder.values.shares(pack.values), TOLERANCE)
        x = encoder.embed(pack.ids, pack.values)
        for i, layer in enumerate(encoder.layers):
            x = layer(x, pack.offsets.tolist())
            report.check(f"{at}enc_layer{i}", x, TOLERANCE)
        report.check(at + "enc_out", encoder.norm(x), TOLERANCE)
        decoder_states(bench, row)
        many = report.input("tokens/batch5_rows").astype(int)
        report.check(at + "dec_key_max_batch5", list(key_maxima(*decoder_input(bench, many), "batch")), TOLERANCE)


def decoder_input(bench: Bench, rows: Any) -> tuple[ScfoundationNetwork, Tensor, list[int]]:
    """The network, what goes into the first layer of its decoder, and where each cell begins."""
    model, pack = bench.pack(rows, weights="gene", depth="f1")
    network = model.networks["gene"]
    tokens = network.encoder(pack.ids, pack.values, pack.offsets.tolist())
    caught: list[Tensor] = []
    handle = network.decoder.layers[0].register_forward_pre_hook(lambda _, given: caught.append(given[0].clone()))
    list(network.decode(tokens, pack.ids, pack.offsets.tolist(), "batch"))
    handle.remove()
    places = [i * network.shape.positions for i in range(len(rows) + 1)]
    return network, caught[0], places


def key_maxima(network: ScfoundationNetwork, x: Tensor, places: list[int], scope: Scope) -> Iterator[float]:
    """The largest key feature of each layer, over all there is."""
    for layer in network.decoder.layers:
        yield float(logits_of(layer.heads_of(x)[1], layer.projection).max())
        x = layer(x, places, scope)


def logits_of(x: Tensor, projection: Tensor) -> Tensor:
    """The random directions times each token, [n, heads, n_features]."""
    return torch.einsum("nhd,md->nhm", x * x.shape[-1] ** -0.25, projection)


def features_of(x: Tensor, projection: Tensor, largest: Tensor | None) -> Tensor:
    """Features as the official code writes them out; what runs in cfm never does."""
    logits = logits_of(x, projection)
    largest = logits.amax(-1, keepdim=True) if largest is None else largest
    half = x.square().sum(-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5)
    return ((logits - half - largest).exp() + FEATURE_EPS) * len(projection) ** -0.5


def decoder_states(bench: Bench, row: list[int]) -> None:
    """Every step of the decoder for a cell alone."""
    report, at = bench.report, "hidden/"
    rows = report.input(at + "dec_rows").astype(int)
    network, x, places = decoder_input(bench, row)
    report.check(at + "dec_key_max_batch1", list(key_maxima(network, x, places, "batch")), TOLERANCE)

    def check(name: str, found: Tensor) -> None:
        if report.has(at + name):
            report.check(at + name, found, TOLERANCE)

    check("dec_in", x[rows])
    for i, layer in enumerate(network.decoder.layers):
        q, k, v = layer.heads_of(x)
        check(f"dec_l{i}_norm", layer.norm1(x)[rows])
        largest = logits_of(k, layer.projection).amax()
        for name, one, top in (("qprime", q, None), ("kprime", k, largest)):
            check(f"dec_l{i}_{name}_head0", features_of(one, layer.projection, top)[rows, 0])
        context = performer_attention(q, k, v, places, layer.projection)
        check(f"dec_l{i}_fast_attention", context[rows].transpose(0, 1))
        attended = layer.out(context.flatten(1))
        check(f"dec_l{i}_attn", attended[rows])
        check(f"dec_l{i}_ff", layer.down(F.gelu(layer.up(layer.norm2(x + attended))))[rows])
        x = layer(x, places)
    decoder = network.decoder
    check("dec_performer_norm", decoder.norm(x)[rows])
    check("dec_norm", decoder.last_norm(decoder.norm(x))[rows])
    check("dec_final", decoder.expression(decoder.last_norm(decoder.norm(x))))


# --- genes


def outputs_of(bench: Bench, rows: Any, *, alone: bool = True, **options: Any) -> dict[str, np.ndarray]:
    """Both outputs of the decoder, for each cell alone or for all as one batch of the official code."""
    model, pack = bench.pack(rows, compat=None if alone else "official", **options)
    found = model.forward(pack, frozenset({"gene", "gene_expression"}))
    return {name: tensor.numpy() for name, tensor in found.items()}


def gene_outputs(bench: Bench) -> None:
    """Vectors and expression of all genes, one by one and as a batch."""
    report, at = bench.report, "gene_outputs/"
    five = report.input(at + "five_rows").astype(int)
    alone, together = (outputs_of(bench, five, alone=alone, depth="f1") for alone in (True, False))
    report.check(at + "gene_f1_two", alone["gene"][:2], TOLERANCE)
    report.check(at + "gene_batch_f1_two_of_five", together["gene"][:2], TOLERANCE)
    gap = np.abs(together["gene"] - alone["gene"]).max((1, 2))
    report.check(at + "gene_batch_minus_gene_maxabs_per_cell", gap, TOLERANCE)
    report.check(at + "gene_f1_one_gene_cell_every10th", alone["gene"][-1, ::10], TOLERANCE)
    report.check(at + "expr_f1_five", alone["gene_expression"], TOLERANCE)
    network, x, places = decoder_input(bench, five)
    with torch.inference_mode():
        values = network.decoder.expression(network.decoder(x, places, "batch")).view(len(five), -1)
    report.check(at + "expr_f1_five_as_one_batch_with_T_S", values, TOLERANCE)
    subset = report.input("cell_embeddings/rows_subset").astype(int)
    report.check(at + "expr_t4", outputs_of(bench, subset, depth="t4")["gene_expression"], TOLERANCE)


# --- padded batches, as the official code runs them


def through_padded(encoder: Encoder, x: Tensor, valid: Tensor) -> Tensor:
    """Vectors of all places of a padded batch, [n_cells, length, dim]. Places that are not valid ask, and are not seen."""
    n_cells, length = valid.shape
    keys = F.pad(valid.sum(1).cumsum(0), (1, 0)).tolist()
    places = [i * length for i in range(n_cells + 1)]
    x, seen = x.flatten(0, 1), valid.flatten()
    for layer in encoder.layers:
        x = layer._after(x, layer._attend(x, x[seen], keys, q_offsets=places))
    return encoder.norm(x).view(n_cells, length, -1)


def embedded(encoder: Encoder, values: Tensor, positions: Tensor, special: dict[int, Tensor]) -> Tensor:
    """What goes into the first layer, with vectors of their own for some values."""
    x = encoder.values(values.flatten()).view(*values.shape, -1)
    for value, vector in special.items():
        x = torch.where((values == value)[..., None], vector, x)
    return x + encoder.positions(positions)


def collide(bench: Bench) -> None:
    """Values that happen to be the numbers of padding and of hidden values: official code takes them for these."""
    report, at = bench.report, "edge/collide_"
    rows = report.input(at + "input")
    network = bench.model(weights="cell").networks["cell"]
    encoder, n_genes = network.encoder, network.shape.genes
    special = {bench.pad: encoder.values.padding.weight[0], bench.hidden: encoder.values.hidden.weight[0]}
    found = []
    for i, row in enumerate(rows.astype(np.float64)):
        values = torch.from_numpy(np.concatenate((row, [row.sum()] * 2)).astype(np.float32))
        positions = values.nonzero()[:, 0][None]
        values = values[positions]
        valid = values != bench.pad
        if i == 0:
            report.check(at + "padmask_first", ~valid)
        with torch.inference_mode():
            found.append(through_padded(encoder, embedded(encoder, values, positions, special), valid).amax(1)[0])
    assert positions.max() == n_genes + 1
    report.check(at + "bulk_T_max", torch.stack(found), TOLERANCE)


# --- the fine-tuned classifier


def finetune(bench: Bench) -> None:
    """Logits of a cell alone and in a padded batch, losses, gradients, and the statistics of a norm."""
    report, at = bench.report, "finetune/"
    rows = report.input(at + "rows").astype(int)
    head = "finetune_head.safetensors"
    model, pack = bench.pack(rows, weights="gene", head=head)
    alone = model.forward(pack, frozenset({"logits"}))["logits"]
    report.check(at + "logits_eval_one_by_one", alone, TOLERANCE)
    report.check(at + "logits_eval_batch6", padded_logits(bench, model.classifier, pack).detach(), TOLERANCE)
    labels = torch.from_numpy(report.input(at + "labels").astype(np.int64))
    for run, tolerance in (("eval", TOLERANCE), ("train_nodropout", STATISTICS), ("all_trainable_eval", TOLERANCE)):
        classifier = bench.model(weights="gene", head=head).classifier.requires_grad_(True)
        classifier.norm.reset_running_stats()  # loaded models are kept, and another run may have changed them
        classifier.norm.train(run.startswith("train"))
        classifier.zero_grad()
        with torch.enable_grad():
            logits = padded_logits(bench, classifier, pack)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
        report.check(f"{at}{run}_logits", logits.detach(), tolerance)
        report.check(f"{at}{run}_loss", loss.detach(), tolerance)
        gradients(bench, classifier, f"{at}{run}_", tolerance)
        if run.startswith("train"):
            report.check(at + "bn_running_mean_after", classifier.norm.running_mean, tolerance)
            report.check(at + "bn_running_var_after", classifier.norm.running_var, tolerance)
    for name in ("trainable", "x_dtype_note"):
        report.input(at + name)


def padded_logits(bench: Bench, classifier: Classifier, pack: Pack) -> Tensor:
    """Logits of a padded batch: pads bear the position of a gene, and take part in the maximum."""
    genes = pack.ids < classifier.encoder.positions.num_embeddings - 3
    lengths = torch.segment_reduce(genes.float(), "sum", offsets=pack.offsets).long().tolist()
    values, positions = (
        torch.nn.utils.rnn.pad_sequence(list(x[genes].split(lengths)), batch_first=True, padding_value=bench.pad)
        for x in (pack.values, pack.ids)
    )
    encoder = classifier.encoder
    x = embedded(encoder, values, positions, {bench.pad: encoder.values.padding.weight[0]})
    return classifier.logits(through_padded(encoder, x, values != bench.pad).amax(1))


def gradients(bench: Bench, classifier: Classifier, start: str, tolerance: float) -> None:
    """Gradients by their official names: some in full, and the lengths of all."""
    report = bench.report
    ours = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in classifier.named_parameters()}
    own = {"linear1.": "fc1.0.", "linear2.": "fc1.2."}
    found = names.to_official({name: g for name, g in ours.items() if name.startswith("encoder.")})
    for mine, theirs in own.items():
        found |= {theirs + name.removeprefix(mine): g for name, g in ours.items() if name.startswith(mine)}
    wanted = [str(name) for name in report.input(start + "gradnorm_names")]
    report.check(start + "gradnorm", [float(found[name].norm()) for name in wanted], tolerance)
    table = found["pos_emb.weight"]
    some = {"pos_emb.weight_rows0_8_103_last": lambda: table[[*range(8), bench.pad, -1]]}
    for name in report.names(start + "grad|"):
        part = name.removeprefix(start + "grad|")
        pick: Callable[[], Tensor] = some.get(part, lambda part=part: found[part])
        report.check(name, pick(), tolerance)


# --- GEARS


def gears(bench: Bench) -> None:
    """The vectors of genes that GEARS reads, from a batch padded to a multiple of 16."""
    report, at = bench.report, "gears/"
    rows = report.input("tokens/batch5_rows").astype(int)
    cells = bench.normalized
    for name in report.names(at + "enc_highres"):
        more = int(name.removeprefix(at + "enc_highres").split("_")[0])
        options = {"weights": "gene", "input": "normalized", "total_key": "total", "depth": f"a{more}"}
        model, pack = bench.pack(rows, cells, **options)
        found = model.forward(pack, frozenset({"gene"}))["gene"]
        report.check(name, found[:2, ::4], TOLERANCE)
        if more == 0:
            batch = bench.tokens(model, cells, rows)
            last = model.networks["gene"].shape.positions
            positions = padded(batch, batch.ids, last, GEARS_MULTIPLE)
            report.check(at + "batch5_ntokens_padded", positions.shape[1])
            report.check(at + "batch5_positions_last20", positions[:, -20:])
            report.check(at + "TS", depths_of(model, cells[rows]).astype(np.float32))
    for name in report.names(at):
        if name.startswith((at + "G_", at + "gears_")):
            report.not_covered(
                name, "the perturbation network behind the encoder is another model, which cfm has not yet"
            )
