"""The part of the parity report that knows scGPT: networks here, tokens and variants in modules beside."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import parity_scgpt_tokens
import parity_scgpt_variants
import torch
from numpy.typing import NDArray
from padded import Padded
from parity import Report
from torch import Tensor

import cfm
from cfm.models.scgpt import ScgptModel, checkpoint, losses, perturbation
from cfm.models.scgpt.layout import FUSED, THIRDS, our_name
from cfm.models.scgpt.module import Inputs, ScgptNetwork
from cfm.models.scgpt.objective import Weights, loss_parts
from cfm.models.scgpt.official import TorchWords

PAD_VALUE = -2
GRADIENTS = 2e-4
# Of the README: no array holds them.
FULL_LENGTH, CELLS_AT_A_TIME = 1200, {"full": 64, "max150": 16}
LOSSES = {
    "expression": "loss_mse", "zeros": "loss_nzlp", "cell_expression": "loss_mvc", "cell_zeros": "loss_mvc_nzlp",
    "similarity": "loss_ecs", "batches": "loss_dab", "loss": "loss_total",
}  # fmt: skip
"""Names of the arrays for the parts of the objective."""


def compare(report: Report, cells: ad.AnnData) -> None:
    """Every array of an scGPT fixture folder."""
    parity_scgpt_tokens.compare(report, cells)
    for name, part in (
        ("embed/emb_full", lambda: embed(report, cells)),
        ("human_forward/gene", lambda: human_forward(report)),
        ("generative/pcpt_gene", lambda: generative(report)),
        ("integration/gene", lambda: integration(report)),
        ("annotation/gene", lambda: annotation(report)),
        ("perturbation/control", lambda: perturbed(report)),
        ("multiomic/gene", lambda: multiomic(report)),
        ("variants/gene", lambda: parity_scgpt_variants.compare(report)),
        ("grn/gene", lambda: parity_scgpt_variants.gene_network(report, network(report, "human")[0])),
    ):
        if report.has(name):
            part()
    for name in report.names():
        if name.endswith(("/cells", "/genes", "/features")):
            report.input(name)


# --- networks and gradients


def network(report: Report, name: str, heads: int | None = None) -> tuple[ScgptNetwork, int]:
    """The network of a folder, ready for gradients and without dropout; the id of its padding token."""
    found = checkpoint.read(report.folder / name, heads)
    net = found.network.requires_grad_(True)
    for part in net.modules():
        for rate in ("dropout", "inner_dropout", "attention_dropout"):
            if isinstance(getattr(part, rate, None), float):
                setattr(part, rate, 0.0)
    return net, found.tokens.index(found.pad)


def fitting_network(report: Report, name: str, hidden: str, run) -> tuple[ScgptNetwork, int]:
    """The network with that number of heads whose hidden states agree best, where no args.json tells it."""
    if (report.folder / name / "args.json").is_file():
        return network(report, name)
    dim = network(report, name, 1)[0].layout.dim
    gaps = {}
    for heads in (n for n in range(1, dim + 1) if dim % n == 0):
        net, pad = network(report, name, heads)
        with torch.no_grad():
            found = run(net, pad).numpy()
        gaps[heads] = float(np.abs(found - report.all[hidden]).max())
    best = min(gaps, key=gaps.__getitem__)
    print(f"{name}: {best} heads, whose {hidden} is off by {gaps[best]:.0e}")
    return network(report, name, best)


def vocabulary_of(report: Report, name: str) -> dict[str, int]:
    """Token ids of a folder."""
    return json.loads((report.folder / name / "vocab.json").read_text())


def check_gradients(report: Report, start: str, net: ScgptNetwork, loss: Tensor) -> None:
    """Gradients of a loss; a parameter that it does not reach has gradient 0."""
    net.zero_grad()
    loss.backward()
    parameters = dict(net.named_parameters())
    for name in report.names(start):
        ours = our_name(name.removeprefix(start))
        parts = [ours] if FUSED not in ours else [ours.replace(FUSED, third) for third in THIRDS]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in (parameters[part] for part in parts)]
        report.check(name, torch.cat(gradients), GRADIENTS, by="scale")


def tensor(report: Report, name: str) -> Tensor:
    """An input as a tensor: whole numbers as int64, others as they are."""
    array = np.asarray(report.input(name))
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array)


def kept(expected: NDArray[np.generic], n_cells: int) -> list[int]:
    """The cells of which an array keeps the numbers: all, or the first ones and the last."""
    n = len(expected)
    return list(range(n)) if n == n_cells else [*range(max(1, n - 1)), -1][:n]


def ends(found: Tensor, expected: NDArray[np.generic]) -> Tensor:
    """Of cells, those that an array keeps."""
    return found.detach()[kept(expected, len(found))]


# --- the fixtures


def embed(report: Report, cells: ad.AnnData) -> None:
    """What a user types, in the mode that draws as the official code does."""
    rows = report.input("embed/cells")
    seeds = (int(report.input("embed/np_seed")), int(report.input("embed/torch_seed")))
    adata = cells[rows].copy()
    options = {"model": report.folder / "human", "compat": "official", "seed": seeds}
    for kind in ("full", "max150"):
        genes = report.all[f"embed/gene_{kind}"]
        length = max(FULL_LENGTH, genes.shape[1]) if kind == "full" else genes.shape[1]
        cfm.tl.embed(adata, **options, device="cpu", gene_column="var_names", max_length=length)
        report.check(f"embed/emb_{kind}", adata.obsm["X_cfm"], 1e-5)
        cfm.pp.tokenize(adata, **options, gene_column="var_names", max_length=length)
        lengths = adata.obs["cfm_n_tokens"].to_numpy()
        pad = checkpoint.read(report.folder / "human").tokens.index("<pad>")
        valid = np.arange(genes.shape[1]) < lengths[:, None]
        for name, key, filling in (("gene", "cfm_tokens", pad), ("expr", "cfm_values", PAD_VALUE)):
            found = np.full(genes.shape, filling, np.float32)
            found[valid] = adata.obsm[key].data
            report.check(f"embed/{name}_{kind}", found)
        at_a_time = CELLS_AT_A_TIME[kind]
        if -(-len(rows) // at_a_time) != len(report.all[f"embed/batch_len_{kind}"]):
            at_a_time = -(-len(rows) // len(report.all[f"embed/batch_len_{kind}"]))
        longest = [lengths[i : i + at_a_time].max() for i in range(0, len(lengths), at_a_time)]
        report.check(f"embed/batch_len_{kind}", longest)
        if kind == "full":
            whole = lengths
    sampled = whole[whole > report.all["embed/gene_max150"].shape[1]] - 1
    words = TorchWords(seeds[1])
    words.skip_int64()
    report.check("embed/perm_lengths", sampled)
    for name in report.names("embed/perm_first"):
        first = report.all[name].shape[1]
        report.check(name, np.reshape([words.permutation(int(n))[:first] for n in sampled], (-1, first)))
    report.not_covered("embed/cosine_two_seeds", "the seeds of the second run are in no file")


def human_forward(report: Report) -> None:
    """One masked pass of the pretrained layout, its losses and their gradients."""
    net, pad = network(report, "human")
    genes, values, target = (tensor(report, f"human_forward/{name}") for name in ("gene", "masked_expr", "expr"))
    at = "human_forward/"
    padded = Padded(genes, values.float(), genes != pad)
    out = padded.run(net)
    for name, found in (
        ("encoder_out", out.genes),
        ("value_out", padded.square(net.value_encoder(padded.inputs.values))),
        ("hidden_last", out.layers[-1]),
        *((f"hidden_layer{i}", layer) for i, layer in enumerate(out.layers)),
    ):
        if report.has(at + name):
            report.check(at + name, ends(found, report.all[at + name]), 2e-5, by="scale")
    if report.has(at + "torch_slow_last_pads"):
        slow = padded.run(net, slow_pads=True).layers[-1][-1]
        report.check(at + "torch_slow_last_pads", slow[-len(report.all[at + "torch_slow_last_pads"]) :].detach(), 2e-5,
                     by="scale")  # fmt: skip
    heads = out.outputs
    report.check(at + "cell_emb", heads.cells.detach(), 2e-5, by="scale")
    report.check(at + "mlm_output", padded.square(heads.expression.values).detach(), 2e-5, by="scale")
    report.check(at + "mvc_output", padded.square(heads.from_cell.values).detach(), 2e-5, by="scale")
    mask, goal = values.flatten() == -1, target.flatten().float()
    parts = loss_parts(heads, goal, mask, weights=Weights(threshold=0.3))
    total = parts["loss"]
    found = {LOSSES[part]: loss for part, loss in parts.items()}
    # This array holds the part without its weight.
    check_losses(report, at, found | {"loss_ecs": found["loss_ecs"] / Weights().similarity})
    report.check(
        at + "mre", losses.masked_relative_error(heads.expression.values, goal, mask).detach(), 2e-5, by="scale"
    )
    check_gradients(report, at + "grad:", net, total)


def check_losses(report: Report, at: str, found: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    """Losses by the names of the arrays."""
    for name, loss in found.items():
        report.check(at + name, loss.detach(), tolerance, by="scale")


def generative(report: Report) -> None:
    """Known and unknown genes, and a second pass from the vectors of the first."""
    at = "generative/"
    net, pad = network(report, "human")
    known, bins = tensor(report, at + "pcpt_gene"), tensor(report, at + "pcpt_expr").float()
    unknown, target = tensor(report, at + "gen_gene"), tensor(report, at + "gen_expr_target").float()
    has_known, has_unknown = known != pad, unknown != pad
    n_known = has_known.sum(1)
    valid = torch.cat([has_known, has_unknown], 1)
    inputs = Inputs(
        torch.cat([known, unknown], 1)[valid],
        torch.cat([bins, torch.zeros_like(target)], 1)[valid],
        torch.nn.functional.pad(valid.sum(1).cumsum(0), (1, 0)),
        n_known=n_known,
    )
    first = net(inputs)
    second = net(inputs, first.cells.detach())

    def square(ragged: Tensor, name: str, part: slice) -> NDArray[np.float32]:
        """Ours where there are tokens; at pads, which mean nothing, the official numbers."""
        expected = torch.from_numpy(report.all[name].copy())
        full = torch.zeros(*valid.shape, *ragged.shape[1:])
        full[valid] = ragged.detach()
        for i, row in enumerate(kept(expected, len(valid))):
            chosen = valid[row, part]
            expected[i][chosen] = full[row, part][chosen]
        return expected.numpy()

    is_known, is_unknown = slice(None, known.shape[1]), slice(known.shape[1], None)
    for name, ragged, part in (
        ("pcpt_hidden", first.tokens, is_known),
        ("gen_hidden", first.tokens, is_unknown),
        ("pcpt_preds", first.expression.values, is_known),
        ("gen_preds", first.expression.values, is_unknown),
        ("gen_preds_second_pass", second.expression.values, is_unknown),
        ("mvc_output", first.from_cell.values, slice(None)),
    ):
        report.check(at + name, square(ragged, at + name, part), 2e-5, by="scale")
    report.check(at + "cell_emb", first.cells.detach(), 2e-5, by="scale")
    asked = ~inputs.known()
    goal = torch.cat([bins, target], 1)[valid]
    found = {
        "loss_gen_mse": losses.masked_mse(first.expression.values, goal, asked),
        "loss_mvc": losses.masked_mse(first.from_cell.values, goal, asked),
        "loss_second": losses.masked_mse(second.expression.values, goal, asked),
    }
    check_losses(report, at, found)
    check_gradients(report, at + "grad:", net, sum(found.values()))


def integration(report: Report) -> None:
    """Batch labels, a norm for each batch, zero probabilities, a discriminator: trained and evaluated."""
    at = "integration/"
    genes, masked = tensor(report, at + "gene"), tensor(report, at + "masked_values").float()
    plain, label = tensor(report, at + "values").float(), int(report.input(at + "batch_label"))
    batches = torch.full((len(genes),), label)

    ids = vocabulary_of(report, "integration")
    row = [ids["<cls>"], *(ids[name] for name in report.input(at + "genes").tolist())]
    report.check(at + "gene", np.tile(row, (len(genes), 1)))

    def unmasked(net: ScgptNetwork, pad: int) -> Tensor:
        return Padded(genes, plain, genes != pad, batches=batches).run(net).layers[-1][:2]

    net, pad = fitting_network(report, "integration", at + "eval_hidden_first2", unmasked)
    heads = net.layout.heads
    report.check(at + "eval_hidden_first2", unmasked(net, pad).detach(), 5e-5, by="scale")
    padded = Padded(genes, masked, genes != pad, batches=batches)
    check_heads(report, at + "eval_", padded, padded.run(net).outputs, 5e-5)

    n = int("".join(c for c in report.names(at + "encode_batch_bs")[0] if c.isdigit()))
    labels = tensor(report, at + "encode_batch_labels")
    # The official loop takes the label of the first cell of each chunk for all of them; so must we, to compare.
    first_labels = labels[torch.arange(len(labels)) // n * n]
    cells = Padded(genes, plain, genes != pad, batches=first_labels).run(net).outputs.cells
    report.check(f"{at}encode_batch_bs{n}", torch.nn.functional.normalize(cells.detach(), dim=1), 5e-5, by="scale")

    net.train()
    out = padded.run(net).outputs
    check_heads(report, at + "train_", padded, out, 5e-5)
    mask, goal = masked.flatten() == -1, plain.flatten()
    found = loss_parts(out, goal, mask, tensor(report, at + "dab_labels"))
    total = found["loss"]
    check_losses(report, at, {LOSSES[part]: loss for part, loss in found.items()}, 5e-5)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    check_gradients(report, at + "grad:", net, total)
    for name in report.names(at + "after_"):
        report.check(name, state[name.removeprefix(at + "after_")], 5e-5, by="scale")
    pads_in_training(report, heads)


def pads_in_training(report: Report, heads: int) -> None:
    """The official statistics count pads as tokens; ours do not, unless pads are handed over as tokens, as here."""
    at = "integration/"
    genes, values = tensor(report, at + "pad_gene"), tensor(report, at + "pad_values").float()
    found = {}
    for label in range(network(report, "integration", heads)[0].layout.n_domains):
        net, pad = network(report, "integration", heads)
        net.train()
        padded = Padded(genes, values, genes != pad, batches=torch.full((len(genes),), label))
        with torch.no_grad():
            cls = padded.run(net).outputs.cells.numpy()
        norm = net.dsbn.bns[label]
        found[label] = (cls, norm.running_mean.numpy(), norm.running_var.numpy())
    # No array holds the label of this pass. In training it decides which state changes, and nothing else.
    expected = report.all[at + "pad_after_running_mean"]
    best = min(found, key=lambda label: np.abs(found[label][1] - expected).max())
    for name, ours in zip(
        ("pad_train_cls", "pad_after_running_mean", "pad_after_running_var"), found[best], strict=True
    ):
        report.check(at + name, ours, 5e-5, by="scale")


def check_heads(report: Report, start: str, padded: Padded, out, tolerance: float) -> None:
    """All outputs of a pass that has them all."""
    for name, found in (
        ("mlm_output", padded.square(out.expression.values)),
        ("mlm_zero_probs", padded.square(out.expression.non_zero)),
        ("mvc_output", padded.square(out.from_cell.values)),
        ("mvc_zero_probs", padded.square(out.from_cell.non_zero)),
        ("cell_emb", out.cells),
        ("dab_output", out.batches),
        ("loss_ecs", losses.elastic_similarity(out.cells, 0.8)),
    ):
        report.check(start + name, found.detach(), tolerance, by="scale")


def annotation(report: Report) -> None:
    """Classes of cells."""
    at = "annotation/"
    genes, values = tensor(report, at + "gene"), tensor(report, at + "values").float()

    def run(net: ScgptNetwork, pad: int) -> Tensor:
        return Padded(genes, values, genes != pad).run(net).outputs.classes

    net, pad = fitting_network(report, "annotation", at + "cls_output", run)
    net.train()
    padded = Padded(genes, values, genes != pad)
    out = padded.run(net).outputs
    report.check(at + "cls_output", out.classes.detach(), 2e-5, by="scale")
    report.check(at + "mlm_output", padded.square(out.expression.values).detach(), 2e-5, by="scale")
    loss = torch.nn.functional.cross_entropy(out.classes, tensor(report, at + "labels"))
    check_losses(report, at, {"loss_cls": loss})
    check_gradients(report, at + "grad:", net, loss)


def perturbed(report: Report) -> None:
    """Expression after a perturbation."""
    at = "perturbation/"
    ids, control, flags = (tensor(report, at + name) for name in ("vocab_ids", "control", "flags"))
    vocabulary = vocabulary_of(report, "perturbation")
    names = report.input(at + "genes").tolist()
    report.check(at + "vocab_ids", [vocabulary.get(name, vocabulary["<pad>"]) for name in names])
    genes = ids.expand(len(control), -1)
    everywhere = torch.ones_like(genes, dtype=torch.bool)  # genes outside the vocabulary are not masked

    def run(net: ScgptNetwork, pad: int) -> Tensor:
        del pad
        return Padded(genes, control, everywhere, flags=flags).run(net).layers[-1][:2]

    net, pad = fitting_network(report, "perturbation", at + "hidden_first2", run)
    report.check(at + "hidden_first2", run(net, pad).detach(), 2e-5, by="scale")
    padded = Padded(genes, control, everywhere, flags=flags)
    out = padded.run(net).outputs
    report.check(at + "mlm_output", padded.square(out.expression.values).detach(), 2e-5, by="scale")
    loss = (out.expression.values - tensor(report, at + "target").flatten()).square().mean()
    check_losses(report, at, {"loss_mse": loss})
    check_gradients(report, at + "grad:", net, loss)
    everything = perturbation.predict(net, ids, control, flags)
    report.check(at + "pred_all", everything, 2e-5, by="scale")
    report.check(at + "pool_mean_all", everything.mean(0), 2e-5, by="scale")
    some = perturbation.predict(net, ids, control, flags, genes="expressed")
    report.check(at + "pred_batchwise", some, 2e-5, by="scale")


def multiomic(report: Report) -> None:
    """RNA and proteins, with labels of batch and modality."""
    at = "multiomic/"
    genes, masked = tensor(report, at + "gene"), tensor(report, at + "masked_values").float()
    values, modalities = tensor(report, at + "values").float(), tensor(report, at + "mod_types")
    batches = tensor(report, at + "batch_labels")
    model = ScgptModel.load(report.folder / "multiomic", name="multiomic", device=torch.device("cpu"))
    of_token = model.modality_of_token
    report.check(at + "mod_types", of_token[genes.numpy()])
    features = [model.token_ids[name] for name in report.input(at + "features").tolist()]
    report.check(at + "mod_of_feature", of_token[features])

    def padded_by(pad: int) -> Padded:
        return Padded(genes, masked, genes != pad, batches=batches, modalities=modalities)

    def run(net: ScgptNetwork, pad: int) -> Tensor:
        return padded_by(pad).run(net).layers[-1][:2]

    net, pad = fitting_network(report, "multiomic", at + "hidden_first2", run)
    net.train()
    padded = padded_by(pad)
    result = padded.run(net)
    out = result.outputs
    for name, found in (
        ("hidden_first2", result.layers[-1][:2]),
        ("mlm_output", padded.square(out.expression.values)),
        ("mvc_output", padded.square(out.from_cell.values)),
        ("cell_emb", out.cells),
        ("dab_output", out.batches),
    ):
        report.check(at + name, found.detach(), 5e-5, by="scale")
    mask, goal = masked.flatten() == -1, values.flatten()
    parts = loss_parts(out, goal, mask, batches, Weights(similarity=0))
    names = LOSSES | {"expression": "loss_gep", "cell_expression": "loss_gepc"}
    check_losses(report, at, {names[part]: loss for part, loss in parts.items()}, 5e-5)
    check_gradients(report, at + "grad:", net, parts["loss"])
