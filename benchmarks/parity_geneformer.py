"""Geneformer beside the official numbers; run through parity.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch.nn import functional as F

import cfm
from cfm import infer, models
from cfm.genes import match
from cfm.models.geneformer import GeneformerModel
from cfm.models.geneformer.dictionaries import Dictionaries
from cfm.models.geneformer.perturb import (
    batch_of,
    cell_similarity,
    delete,
    gene_similarity,
    overexpress,
    shift_towards,
)
from cfm.models.geneformer.tokenizer import GeneformerTokenizer
from cfm.models.pickles import read_pickled
from cfm.tokens import rank_order

if TYPE_CHECKING:
    from parity import Report

VECTORS, LOGITS, SHIFTS = 5e-6, 3e-5, 2e-6
# The official code's default is the last layer but one; the fixtures hold both.
LAYERS = (-1, 0)


def compare(report: Report, cells: AnnData) -> None:
    """All arrays of the folder."""
    for version in ("V1", "V2"):
        folder = report.folder / f"{version}_mlm"
        model = models.load(folder, device="cpu")
        assert isinstance(model, GeneformerModel)
        _tokens(report, cells, model, version)
        _public(report, cells, folder, version)
        _hidden(report, model, version)
        _masked_genes(report, model, version)
        _perturbation(report, folder, version)
    _awkward_tokens(report, cells, report.folder / "V2_mlm")
    _cell_classifier(report)
    _gene_classifier(report)
    _multi_task(report)


def _tokenizer(model: GeneformerModel, cells: AnnData, **changes: object) -> GeneformerTokenizer:
    """The tokeniser for the fixture's cells; all tokens, without ends."""
    found = match(cells.var, model.vocabulary, gene_column="ensembl_id")
    return replace(model.tokenizer(found), max_tokens=10**9, ends=None, **changes)


def _route(name: str, cells: AnnData) -> tuple[sp.csr_matrix, dict[str, object]]:
    """Counts and options for a route such as ``csr_f32_n_f64/stable``."""
    kind, x, _, n = name.removesuffix("/stable").split("_")
    dtypes = {"f32": np.float32, "f64": np.float64, "i64": np.int64}
    counts = sp.csr_matrix(cells.X).astype(dtypes[x])
    n_counts = np.asarray(sp.csr_matrix(cells.X).astype(np.float64).sum(axis=1)).ravel().astype(dtypes[n])
    arithmetic = "sparse" if kind == "csr" else "dense"
    # With a dense matrix the official code has no count of an empty cell to divide; here the row is empty.
    n_counts[n_counts == 0] = 1
    return counts, {"n_counts": n_counts, "arithmetic": arithmetic}


def _joined(tokenizer: GeneformerTokenizer, counts: sp.csr_matrix, rows: np.ndarray) -> np.ndarray:
    """Tokens of some cells, one cell after another."""
    batch = tokenizer(counts, 0)
    return batch.take(rows.astype(np.int64)).ids


def _tokens(report: Report, cells: AnnData, model: GeneformerModel, version: str) -> None:
    name = f"tokens/{version}"
    rows = report.input(f"{name}_cells")
    routes = report.input(f"{name}_routes")
    official = report.input(f"{name}_tokens")
    groups = {kind: report.input(f"{name}_{kind}_tie_group") for kind in ("near", "exact")}
    cell_of = np.repeat(np.arange(len(rows)), np.diff(report.input(f"{name}_indptr")))
    columns = []
    for i, route in enumerate(map(str, routes)):
        counts, changes = _route(route, cells)
        ours = _joined(_tokenizer(model, cells, **changes), counts, rows)
        if not route.endswith("/stable") and ours.shape == official[:, i].shape:
            # The official sort is not stable, and its ties depend on the processor: equal up to an order within ties.
            # float32 makes ties of what is near in float64.
            group = groups["exact" if route == "csr_f64_n_f64" else "near"]
            ours, theirs = (x[np.lexsort((x, group, cell_of))] for x in (ours, official[:, i]))
            ours = official[:, i] if np.array_equal(ours, theirs) else ours
        columns.append(ours)
    report.check(f"{name}_tokens", np.stack(columns, axis=1))
    tokenizer = _tokenizer(model, cells)
    lengths = tokenizer(cells.X, 0).lengths[rows]
    report.check(f"{name}_indptr", np.concatenate(([0], np.cumsum(lengths))))
    report.check(f"{name}_cells", np.flatnonzero(tokenizer(cells.X, 0).lengths > 0))

    genes, keys = tokenizer.keys(cells.X, 0)
    order = rank_order(keys, genes.offsets)
    starts = np.repeat(genes.offsets[:-1], np.diff(genes.offsets))
    ranked = keys[starts + order]
    parts = [ranked[genes.offsets[row] : genes.offsets[row + 1]] for row in rows[:3]]
    report.check(f"{name}_values_first3", np.concatenate(parts), 1e-14, by="relative")

    inputs = f"inputs/{version}"
    whole = model.tokenizer(match(cells.var, model.vocabulary, gene_column="ensembl_id"))(cells.X, 0)
    kept = report.input(f"{inputs}_cells")
    report.check(f"{inputs}_input_ids", whole.take(kept.astype(np.int64)).ids)
    report.check(f"{inputs}_length", whole.lengths[kept])
    report.check(f"{inputs}_indptr", np.concatenate(([0], np.cumsum(whole.lengths[kept]))))
    report.check(f"{inputs}_cells", np.flatnonzero(whole.lengths > 0))
    report.check(f"{inputs}_model_input_size", model.spec.max_tokens)


def _awkward_tokens(report: Report, cells: AnnData, folder: Path) -> None:
    """Repeated genes, kept counts, filters: what the fixtures have for V2 alone."""
    model = models.load(folder, device="cpu")
    assert isinstance(model, GeneformerModel)
    name = "tokens/V2"
    fold = _with_mapping(model, _fold_mapping(report))
    rows = report.input(f"{name}_fold_cells")
    tokenizer = _tokenizer(fold, cells)
    report.check(f"{name}_fold_tokens", _joined(tokenizer, cells.X, rows))
    lengths = tokenizer(cells.X, 0).lengths
    report.check(f"{name}_fold_indptr", np.concatenate(([0], np.cumsum(lengths[rows]))))
    report.check(f"{name}_fold_cells", np.flatnonzero(lengths > 0))

    tokenizer = _tokenizer(model, cells)
    genes, values = tokenizer.normalised(cells.X, 0)
    order = rank_order(tokenizer.keys(cells.X, 0)[1], genes.offsets)
    kept = report.input(f"{name}_cells")
    rank = [values[genes.offsets[r] :][order[genes.offsets[r] : genes.offsets[r + 1]]] for r in kept]
    report.check(f"{name}_counts_values_first4", np.concatenate(rank[:4]), 1e-14, by="relative")
    whole = model.tokenizer(match(cells.var, model.vocabulary, gene_column="ensembl_id"))(cells.X, 0)
    report.check(f"{name}_counts_dataset_len", whole.lengths[kept])
    cut = rank[3][: whole.lengths[kept[3]] - 2]
    report.check(f"{name}_counts_dataset_cell3", np.concatenate(([0], cut, [0])), 1e-14, by="relative")
    passed = np.flatnonzero((np.arange(cells.n_obs) % 2 == 0) & (whole.lengths > 0))
    report.check(f"{name}_filter_pass_cells", passed)  # a filter is a user's own adata[...]
    on_purpose = {
        "zeros": "on purpose: stored zeros are not expressed (tests/models/geneformer has both)",
        "lower_fold": "on purpose: repeated genes are added up whatever their case (tests/models/geneformer)",
        "same_id_twice": "on purpose: repeated genes are added up (tests/models/geneformer)",
    }
    for what, why in on_purpose.items():
        for array in report.names(f"{name}_{what}"):
            report.not_covered(array, why)


def _fold_mapping(report: Report) -> dict[str, str]:
    """The mapping dictionary with the entries of the folding test in the place of its own."""
    import json

    folder = report.folder / "dictionaries"
    mapping = read_pickled(folder / "ensembl_mapping_dict_gc104M.pkl")
    extra = json.loads((folder / "dictionaries.json").read_text())["V2_fold"]
    return mapping | extra


def _with_mapping(model: GeneformerModel, mapping: dict[str, str]) -> GeneformerModel:
    old = model.dictionaries
    tokens = old.specials | dict(zip(old.vocabulary.ensembl_ids, old.tokens.tolist(), strict=True))
    medians = dict(zip(old.vocabulary.ensembl_ids, old.medians.tolist(), strict=True))
    found = Dictionaries.of(tokens, medians, mapping)
    return replace(model, dictionaries=found, vocabulary=found.vocabulary)


def _public(report: Report, cells: AnnData, folder: Path, version: str) -> None:
    """What cfm.tl.embed writes, beside the official extractor's table."""
    name = f"embeddings/{version}"
    rows = report.input(f"{name}_cells_in_output_order")
    lengths = None
    for mode in ("cell", "cls"):
        for layer in LAYERS:
            if not report.has(f"{name}_{mode}_{layer}"):
                continue
            adata = AnnData(cells.X, obs=cells.obs.copy(), var=cells.var.copy())
            cfm.tl.embed(adata, model=folder, gene_column="ensembl_id", emb_mode=mode, emb_layer=layer, device="cpu")
            vectors, lengths = np.asarray(adata.obsm["X_cfm"]), adata.obs["cfm_n_genes"].to_numpy()
            report.check(f"{name}_{mode}_{layer}", vectors[rows], VECTORS)
            table = vectors[rows].astype(np.float64)
            for statistic, of in {"mean": np.mean, "median": np.median}.items():
                for exact in ("exact_", ""):
                    if report.has(array := f"{name}_{mode}_{layer}_{exact}{statistic}"):
                        report.check(array, of(table, axis=0), VECTORS)
    assert lengths is not None
    longest_first = np.argsort(-lengths, kind="stable")
    report.check(f"{name}_cells_in_output_order", longest_first[lengths[longest_first] > 0])
    report.not_covered(f"{name}_cells_for_max_ncells_10", "on purpose: all cells are embedded, none is left out")

    for layer in LAYERS:
        array = f"{name}_gene_mean_{layer}"
        if report.has(array):
            _gene_means(report, cells, folder, name, array, layer)


def _gene_means(report: Report, cells: AnnData, folder: Path, name: str, array: str, layer: int) -> None:
    """Mean vector of each gene over some cells; the official table lists special tokens too."""
    rows = report.input(f"{name}_gene_mode_cells")
    model = models.load(folder, device="cpu", emb_layer=layer)
    assert isinstance(model, GeneformerModel)
    found = match(cells.var, model.vocabulary, gene_column="ensembl_id")
    batch = model.tokenizer(found)(sp.csr_matrix(cells.X)[rows], 0)
    means = infer.GeneMeans(model)
    vectors = model.forward(models.Pack.of(batch, model.device), frozenset({"token"}))["token"].numpy()
    means.add(batch.ids, vectors)
    of_gene = dict(zip(model.vocabulary.ensembl_ids, means.result(), strict=True))
    for special, token in model.dictionaries.specials.items():
        if (batch.ids == token).any():
            of_gene[special] = vectors[batch.ids == token].mean(axis=0)
    names = [str(gene) for gene in report.input(f"{name}_gene_names")]
    n = len(report.all[array])
    report.check(array, np.stack([of_gene[gene] for gene in names[:n]]), VECTORS)
    seen = {gene for gene, vector in of_gene.items() if not np.isnan(vector).any()}
    report.check(f"{name}_gene_names", np.array([gene for gene in names if gene in seen]))


def _inputs(report: Report, version: str, rows: np.ndarray) -> list[np.ndarray]:
    """Official token ids of some cells."""
    ids, indptr = report.input(f"inputs/{version}_input_ids"), report.input(f"inputs/{version}_indptr")
    place = {int(row): i for i, row in enumerate(report.input(f"inputs/{version}_cells"))}
    return [ids[indptr[place[int(r)]] : indptr[place[int(r)] + 1]].astype(np.int32) for r in rows]


def _packed(cells: list[np.ndarray]) -> tuple[torch.Tensor, list[int]]:
    batch = batch_of(cells)
    return torch.from_numpy(batch.ids).long(), batch.offsets.tolist()


@torch.inference_mode()
def _hidden(report: Report, model: GeneformerModel, version: str) -> None:
    name = f"embeddings/{version}"
    cells = _inputs(report, version, report.input(f"{name}_hidden_cells"))
    n = report.all[f"{name}_hidden"].shape[1]
    states = [model.module.bert(*_packed(cells), n_layers)[:n] for n_layers in range(len(model.module.bert.layers) + 1)]
    report.check(f"{name}_hidden", torch.stack(states), VECTORS)
    # A row of padding: the official model computes it as a query of its own over the real tokens, then drops it.
    report.not_covered(f"{name}_hidden_pad_rows", "there is no padding, so nothing is computed for it")
    logits = model.module.logits(*_packed(cells[:1]))
    positions = report.input(f"{name}_mlm_positions")
    report.check(f"{name}_mlm_logits", logits[positions.astype(np.int64)], LOGITS)
    report.check(f"{name}_mlm_argmax", logits.argmax(-1)[: len(report.all[f"{name}_mlm_argmax"])])


def _masked_genes(report: Report, model: GeneformerModel, version: str) -> None:
    """Loss and gradients of masked genes, as training would have them."""
    name = f"embeddings/{version}"
    cells = _inputs(report, version, report.input(f"{name}_hidden_cells"))
    ids, offsets = _packed(cells)
    masked = torch.from_numpy(report.input(f"{name}_mlm_mask_positions").astype(np.int64))
    labels = ids[masked].clone()
    ids[masked] = model.dictionaries.specials["<mask>"]
    module = model.module.requires_grad_(True)
    loss = F.cross_entropy(module.logits(ids, offsets)[masked], labels)
    loss.backward()
    report.check(f"{name}_mlm_loss", loss.detach(), 1e-6)
    _gradients(report, f"{name}_grad/", module.bert, module.head.dense.bias.grad)
    module.requires_grad_(False)
    module.zero_grad(set_to_none=True)


def _gradients(report: Report, start: str, bert: torch.nn.Module, transform: torch.Tensor) -> None:
    """Official names of gradients to ours; queries, keys and values are thirds of one matrix."""
    for array in report.names(start):
        official = array.removeprefix(start)
        if official == "word_embeddings_norm_per_token":
            ours = bert.word.weight.grad.norm(dim=1)
        elif official == "cls.predictions.transform.dense.bias":
            ours = transform
        else:
            ours = _gradient(bert, official)
        report.check(array, ours, VECTORS)


def _gradient(bert: torch.nn.Module, official: str) -> torch.Tensor:
    parts = official.split(".")
    if parts[1] == "embeddings":
        return getattr(bert.norm, parts[-1]).grad
    layer = bert.layers[int(parts[3])]
    if "self" in parts:
        return getattr(getattr(layer, parts[-2]), parts[-1]).grad
    ours = {"attention.output.dense": "out", "attention.output.LayerNorm": "norm1", "intermediate.dense": "up",
            "output.dense": "down", "output.LayerNorm": "norm2"}  # fmt: skip
    return getattr(getattr(layer, ours[".".join(parts[4:-1])]), parts[-1]).grad


@torch.inference_mode()
def _perturbation(report: Report, folder: Path, version: str) -> None:
    name = f"perturbation/{version}"
    model = models.load(folder, device="cpu", emb_layer=-1)
    assert isinstance(model, GeneformerModel)
    mode = model.emb_mode
    token = dict(zip(model.vocabulary.ensembl_ids, model.dictionaries.tokens, strict=True))
    genes = [token[str(gene)] for gene in report.input(f"{name}_genes")]
    ends, room = model.dictionaries.ends, model.spec.max_tokens

    def vectors(cell: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        found = model.forward(models.Pack.of(batch_of([cell]), model.device), frozenset({"cell", "token"}))
        return found["cell"][0], found["token"]

    def changes(cell: np.ndarray, chosen: list[int], how: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
        wanted = np.array(chosen, np.int32)
        new = how(cell, wanted)
        (before, old_tokens), (after, new_tokens) = vectors(cell), vectors(new)
        if mode == "cls":
            return cell_similarity(before, after)
        return gene_similarity(old_tokens, cell, new_tokens, new, wanted)

    hows = {"delete": delete, "overexpress": lambda cell, wanted: overexpress(cell, wanted, room, ends)}
    for kind, how in hows.items():
        for count, chosen in {"one": genes[:1], "two": genes}.items():
            rows = report.input(f"{name}_{kind}_{count}_cells")
            found = [changes(cell, chosen, how) for cell in _inputs(report, version, rows)]
            report.check(f"{name}_{kind}_{count}_{mode}", np.array(found), SHIFTS)
        (cell,) = _inputs(report, version, report.input(f"{name}_all_{kind}_of_cell"))
        inner = cell if ends is None else cell[1:-1]
        one_by_one = inner if kind == "delete" else inner[1:]  # the top gene is at the front already
        report.check(f"{name}_all_{kind}_tokens", one_by_one)
        report.check(f"{name}_all_{kind}_{mode}", [changes(cell, [t], how) for t in one_by_one], SHIFTS)

    states = _states(report, version, vectors)
    for state, vector in states:
        report.check(f"{name}_state_{state}", vector, VECTORS)
    rows = report.input(f"{name}_delete_one_shift_cells")
    deleted = [(cell, delete(cell, np.array(genes[:1], np.int32))) for cell in _inputs(report, version, rows)]
    for state, vector in states:
        shifts = [shift_towards(vectors(old)[0], vectors(new)[0], vector) for old, new in deleted]
        report.check(f"{name}_delete_one_shift_to_{state}", np.array(shifts), SHIFTS)


def _states(
    report: Report, version: str, vectors: Callable[[np.ndarray], tuple[torch.Tensor, torch.Tensor]]
) -> list[tuple[str, torch.Tensor]]:
    """Mean vector of the cells of each class; the class of a cell is its row modulo the number of classes."""
    start = f"perturbation/{version}_state_"
    states = [name.removeprefix(start) for name in report.names(start)]
    rows = report.input(f"inputs/{version}_cells")
    found = []
    for i, state in enumerate(sorted(states)):
        members = _inputs(report, version, rows[rows % len(states) == i])
        found.append((state, torch.stack([vectors(cell)[0] for cell in members]).mean(0)))
    return found


def _cell_classifier(report: Report) -> None:
    folder = report.folder / "V2_cell_classifier"
    model = models.load(folder, device="cpu")
    assert isinstance(model, GeneformerModel)
    order = report.input("classifiers/cell_order")
    with torch.inference_mode():
        logits = model.module.logits(*_packed(_inputs(report, "V2", order)))
    report.check("classifiers/cell_logits", logits, SHIFTS)
    report.check("classifiers/cell_pred", logits.argmax(-1))
    labels = _class_numbers(folder)
    report.check("classifiers/cell_true", labels[order % len(labels)])

    rows = report.input("classifiers/cell_first6")
    module = model.module.requires_grad_(True)
    found = module.logits(*_packed(_inputs(report, "V2", rows)))
    loss = F.cross_entropy(found, torch.from_numpy(labels[rows % len(labels)]))
    loss.backward()
    report.check("classifiers/cell_loss_first6", loss.detach(), 1e-6)
    heads = {"bert.pooler.dense": module.head.pooler, "classifier": module.head.classifier}
    for array in report.names("classifiers/cell_grad/"):
        official = array.removeprefix("classifiers/cell_grad/")
        part, _, kind = official.rpartition(".")
        ours = getattr(heads[part], kind).grad if part in heads else _gradient(module.bert, official)
        report.check(array, ours, 1e-6)
    module.requires_grad_(False)
    module.zero_grad(set_to_none=True)


def _class_numbers(folder: Path) -> np.ndarray:
    """Number of the class of a cell whose row is 0, 1, 2... modulo the number of classes."""
    (path,) = folder.glob("*_id_class_dict.pkl")
    number = {name: i for i, name in read_pickled(path).items()}
    return np.array([number[f"g{i}"] for i in range(len(number))])


def _gene_classifier(report: Report) -> None:
    model = models.load(report.folder / "V2_gene_classifier", device="cpu")
    assert isinstance(model, GeneformerModel)
    classes = [report.input(f"classifiers/gene_class_{letter}_tokens") for letter in "ab"]
    # The official evaluation drops the last cell of an odd number; `gene_cells` are those that it kept.
    ids, offsets = _packed(_inputs(report, "V2", report.input("classifiers/gene_cells")))
    labels = torch.full_like(ids, -100)
    for i, tokens in enumerate(classes):
        labels[torch.isin(ids, torch.from_numpy(tokens.astype(np.int64)))] = i
    with torch.inference_mode():
        logits = model.module.logits(ids, offsets)
    chosen = labels >= 0
    report.check("classifiers/gene_true", labels[chosen])
    report.check("classifiers/gene_logits", logits[chosen], VECTORS)
    report.check("classifiers/gene_loss_first3", _loss_of_first(report, model, classes), VECTORS)
    report.input("classifiers/gene_cells_input")


def _loss_of_first(report: Report, model: GeneformerModel, classes: list[np.ndarray]) -> torch.Tensor:
    cells = report.input("classifiers/gene_cells_input")[:3]
    ids, offsets = _packed(_inputs(report, "V2", cells))
    labels = torch.full_like(ids, -100)
    for i, tokens in enumerate(classes):
        labels[torch.isin(ids, torch.from_numpy(tokens.astype(np.int64)))] = i
    with torch.inference_mode():
        return F.cross_entropy(model.module.logits(ids, offsets), labels)


def _multi_task(report: Report) -> None:
    model = models.load(report.folder / "V2_mtl_attnpool", device="cpu")
    assert isinstance(model, GeneformerModel)
    cells = _inputs(report, "V2", report.input("classifiers/mtl_cells"))
    with torch.inference_mode():
        tasks = model.module.logits(*_packed(cells))
    for i, logits in enumerate(tasks):
        report.check(f"classifiers/mtl_pool_task{i}_single", logits, 3e-6)
        report.not_covered(
            f"classifiers/mtl_pool_task{i}_batch4", "on purpose: upstream pools over padding (tests/models/geneformer)"
        )
    report.not_covered("classifiers/mtl_pool_losses", "on purpose: they are of the padded batch")
