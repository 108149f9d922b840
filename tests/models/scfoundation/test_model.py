"""scFoundation through the public functions: official numbers, and one cell one vector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors.torch import load_file, save_file

import cfm
from cfm import infer, models
from cfm.cli import main
from cfm.errors import CheckpointError, MissingKeyError, OptionError, UnsupportedOutput
from cfm.models.contract import Pack
from cfm.models.scfoundation import ScfoundationModel
from cfm.models.scfoundation.names import PREFIX

Official = dict[str, np.ndarray]
HEAD = "finetune_head.safetensors"


def vectors(adata: AnnData, folder: Path, **options: Any) -> np.ndarray:
    cfm.tl.embed(adata, model=folder, device="cpu", **options)
    return np.array(adata.obsm["X_cfm"])


def packed(adata: AnnData, folder: Path, **options: Any) -> tuple[ScfoundationModel, Pack]:
    model = models.load(folder, device="cpu", **options)
    prepared = infer.prepare(adata, model, layer=None, gene_column=None, species=None, gene_table=None)
    batch = next(iter(prepared.stream))
    assert isinstance(model, ScfoundationModel)
    return model, Pack.of(batch.take(np.flatnonzero(batch.lengths)), torch.device("cpu"))


def output(name: str, adata: AnnData, folder: Path, **options: Any) -> np.ndarray:
    model, pack = packed(adata, folder, **options)
    return model.forward(pack, frozenset({name}))[name].numpy()


# --- official numbers


def test_official_vectors_of_the_whole_file(cells: AnnData, folder: Path, official: Official) -> None:
    """Its cell without counts included, which ends the official run."""
    rows = official["tokens/nonempty_rows"]
    for name, options in (
        ("cell_all_t4", {}),
        ("cell_max_t4", {"pool": "max"}),
        ("rde_all_a5", {"weights": "rde", "depth": "a5"}),
    ):
        found = vectors(cells, folder, compat="official", **options)
        np.testing.assert_allclose(found[rows], official[f"cell_embeddings/{name}"], atol=1e-5)
        assert (np.delete(found, rows, axis=0) == 0).all()


def test_official_vectors_of_values_and_of_bulk(
    some: AnnData, normalized: AnnData, folder: Path, official: Official, cells: AnnData, listed: list[str]
) -> None:
    listed_counts = cells[:, cells.var_names.isin(listed)].X
    totals = np.asarray(listed_counts.sum(axis=1)).ravel()
    values = {"input": "normalized", "compat": "official"}
    for name, adata, options in (
        ("cell_all_T_t4", normalized, values),
        ("cell_all_A_f1", normalized, values | {"total_key": "total", "depth": "f1"}),
        ("bulk_T_max", normalized, values | {"bulk": True, "pool": "max"}),
        ("bulk_F_all", some, {"compat": "official", "bulk": True, "target_sum": float(np.median(totals[totals > 0]))}),
    ):
        found = vectors(adata, folder, **options)
        np.testing.assert_allclose(found, official[f"cell_embeddings/{name}"], atol=1e-5)


def test_genes_known_by_another_name_count(some: AnnData, folder: Path, official: Official) -> None:
    """By default two more genes are read than the official code finds; in cells that express neither nothing changes."""
    expected = official["cell_embeddings/cell_all_t4"][official["cell_embeddings/rows_subset"]]
    found = vectors(some, folder)
    renamed = np.asarray((some[:, ["C11orf63", "VWA9"]].X > 0).sum(axis=1)).ravel() > 0
    np.testing.assert_allclose(found[~renamed], expected[~renamed], atol=1e-5)
    assert (np.abs(found - expected).max(1)[renamed] > 1e-3).all()


def test_expression_and_gene_vectors(cells: AnnData, folder: Path, official: Official) -> None:
    rows = official["tokens/nonempty_rows"]
    five = cells[rows[official["gene_outputs/five_rows"]]].copy()
    expression = output("gene_expression", five, folder, depth="f1")
    np.testing.assert_allclose(expression, official["gene_outputs/expr_f1_five"], atol=1e-5)
    genes = output("gene", five, folder, depth="f1")
    np.testing.assert_allclose(genes[:2], official["gene_outputs/gene_f1_two"], atol=1e-5)


def test_the_decoder_does_not_look_at_other_cells(cells: AnnData, folder: Path, official: Official) -> None:
    """The official batch takes the largest key of all cells. Both numbers: ours is that of a batch of one."""
    rows = official["tokens/nonempty_rows"]
    five = cells[rows[official["gene_outputs/five_rows"]]].copy()
    alone, batch = (output("gene", five, folder, depth="f1", compat=compat) for compat in (None, "official"))
    np.testing.assert_allclose(batch[:2], official["gene_outputs/gene_batch_f1_two_of_five"], atol=1e-5)
    gap = np.abs(batch - alone).max((1, 2))
    np.testing.assert_allclose(gap, official["gene_outputs/gene_batch_minus_gene_maxabs_per_cell"], atol=1e-5)
    assert gap.max() > 0.01


def test_depths_of_zero_and_less(cells: AnnData, folder: Path, official: Official) -> None:
    """The official code drops such tokens and pools others in their place; by default they stay where they are."""
    rows = official["tokens/nonempty_rows"][official["edge/t0_rows"]]
    some = cells[rows].copy()
    for option in ("t0", "f0.001"):
        expected = official[f"edge/{option}_cell_all"]
        np.testing.assert_allclose(vectors(some, folder, depth=option, compat="official"), expected, atol=1e-5)
    assert np.abs(vectors(some, folder, depth="f0.001") - expected).max() > 0.1
    one = cells[official["tokens/nonempty_rows"][-1:]].copy()
    with pytest.raises(OptionError, match="the official code ends with an IndexError"):
        vectors(one, folder, depth="t0", compat="official")


# --- one cell, one vector


def shuffled(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)


@pytest.mark.parametrize("name", ["cell", "gene", "gene_expression"])
def test_a_cell_alone_and_among_others(some: AnnData, folder: Path, name: str) -> None:
    expected = output(name, some, folder)
    order = shuffled(some.n_obs, 0)
    np.testing.assert_array_equal(output(name, some[order].copy(), folder), expected[order])
    np.testing.assert_array_equal(output(name, some[:, shuffled(some.n_vars, 1)].copy(), folder), expected)
    for cell in range(0, some.n_obs, 4):
        np.testing.assert_array_equal(output(name, some[[cell]].copy(), folder)[0], expected[cell])


@pytest.mark.filterwarnings("ignore:Setting element:anndata.ImplicitModificationWarning")
def test_form(some: AnnData, folder: Path, stored_as: Callable[[AnnData, str], AnnData], form: str) -> None:
    expected = vectors(some.copy(), folder)
    np.testing.assert_array_equal(vectors(stored_as(some, form), folder), expected)


@pytest.mark.parametrize("setting", [{"chunk_cells": 3}, {"pack_tokens": 300}, {"threads": 1}, {"pack_tokens": 10**6}])
def test_chunks_packs_and_threads(cells: AnnData, folder: Path, setting: dict[str, int]) -> None:
    expected = vectors(cells.copy(), folder)
    with cfm.settings.override(**setting):
        np.testing.assert_array_equal(vectors(cells, folder), expected)


def test_threads_of_torch(some: AnnData, folder: Path) -> None:
    before = torch.get_num_threads()
    found = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found[threads] = [output(name, some, folder) for name in ("cell", "gene_expression")]
    finally:
        torch.set_num_threads(before)
    for one, two in zip(found[1], found[2], strict=True):
        np.testing.assert_array_equal(one, two)


def test_stored_tokens_give_the_same_vectors(cells: AnnData, folder: Path) -> None:
    expected = vectors(cells.copy(), folder, depth="f2")
    cfm.pp.tokenize(cells, model=folder, depth="f2")
    assert cells.obsm["cfm_tokens"].shape == (48, 512)
    np.testing.assert_array_equal(vectors(cells, folder, tokens="cfm_tokens", depth="f2"), expected)
    assert (cells.obs["cfm_n_genes"] == np.maximum(cells.obs["cfm_n_tokens"] - 2, 0)).all()
    with pytest.raises(OptionError, match="were made with depth='f2', and depth='f3' would make others"):
        vectors(cells, folder, tokens="cfm_tokens", depth="f3")


def test_empty_cells_get_zeros(cells: AnnData, folder: Path, said: list[str]) -> None:
    found = vectors(cells, folder)
    empty = cells.X.getnnz(axis=1) == 0
    assert (found[empty] == 0).all()
    assert np.isfinite(found).all()
    assert any("1 of 48 cells have no gene that the model reads" in line for line in said)


# --- outputs


def test_all_outputs_of_one_pass(some: AnnData, folder: Path) -> None:
    model, pack = packed(some, folder, head=HEAD)
    found = model.forward(pack, model.spec.outputs)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "cell": (13, 96),
        "token": (len(pack.ids), 24),
        "gene": (13, 510, 16),
        "gene_expression": (13, 510),
        "logits": (13, 10),
    }
    for name, tensor in found.items():
        torch.testing.assert_close(model.forward(pack, frozenset({name}))[name], tensor, rtol=0, atol=0)


def test_pooling(some: AnnData, folder: Path) -> None:
    """Own depth, depth asked for, largest and mean of the genes; or the largest of all tokens."""
    model, pack = packed(some, folder)
    tokens = model.forward(pack, frozenset({"token"}))["token"].numpy()
    expected_all, expected_max = vectors(some, folder), vectors(some, folder, pool="max")
    for i, (a, b) in enumerate(pack.offsets.unfold(0, 2, 1).tolist()):
        cell = tokens[a:b]
        parts = [cell[-1], cell[-2], cell[:-2].max(0), cell[:-2].mean(0)]
        np.testing.assert_allclose(expected_all[i], np.concatenate(parts), atol=1e-5)
        np.testing.assert_array_equal(expected_max[i], cell.max(0))


def test_vectors_of_genes(cells: AnnData, folder: Path) -> None:
    """Static ones are rows of the positions; contextual ones the decoder's, averaged over all cells."""
    cells = cells[cells.X.getnnz(axis=1) > 0].copy()
    with cfm.settings.override(pack_tokens=700):  # one cell in each pack
        cfm.tl.embed(cells, model=folder, device="cpu", genes="contextual")
    found = np.array(cells.varm["cfm_genes"])
    model, pack = packed(cells, folder)
    mean = model.forward(pack, frozenset({"gene"}))["gene"].double().mean(0).numpy()
    place = {symbol: i for i, symbol in enumerate(model.vocabulary.symbols)}
    listed = [name in place for name in cells.var_names]
    np.testing.assert_allclose(found[listed], mean[[place[n] for n in cells.var_names[listed]]], atol=1e-6)
    cfm.tl.embed(cells, model=folder, device="cpu", genes=True)
    static = np.array(cells.varm["cfm_genes"])[listed]
    np.testing.assert_array_equal(static, model.gene_vectors()[[place[n] for n in cells.var_names[listed]]])


def test_unknown_outputs(some: AnnData, folder: Path) -> None:
    model, pack = packed(some, folder)
    with pytest.raises(UnsupportedOutput, match=r"not \['logits'\]"):
        model.forward(pack, frozenset({"logits"}))


def test_int8_is_close(some: AnnData, folder: Path) -> None:
    expected, found = vectors(some, folder), vectors(some, folder, precision="int8")
    cosine = (expected * found).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
    assert 0.999 < cosine.min() < 1


# --- models that were fine-tuned to annotate


def rows_of(official: Official) -> np.ndarray:
    return official["tokens/nonempty_rows"][official["finetune/rows"]]


def test_logits_of_a_cell_alone(cells: AnnData, folder: Path, official: Official) -> None:
    """The official classifier pads, and pads take part in its maximum: in a batch of six a cell has other logits than alone."""
    six = cells[rows_of(official)].copy()
    found = output("logits", six, folder, head=HEAD, compat="official")
    np.testing.assert_allclose(found, official["finetune/logits_eval_one_by_one"], atol=1e-5)
    gap = np.abs(found - official["finetune/logits_eval_batch6"]).max(1)
    longest = int(packed(six, folder)[1].offsets.diff().argmax())
    assert gap[longest] < 1e-5
    assert (np.delete(gap, longest) > 0.01).all()
    np.testing.assert_array_equal(output("logits", six[:1].copy(), folder, head=HEAD, compat="official")[0], found[0])


def test_a_whole_fine_tuned_file(copied: Path, folder: Path, cells: AnnData, official: Official) -> None:
    """Encoder, statistics of the norm and head in the official layout; models.ckpt beside it tells the sizes."""
    tensors = {name.removeprefix(PREFIX): t for name, t in load_file(folder / "gene.safetensors").items()}
    whole = {name: t for name, t in tensors.items() if name.startswith(("token_emb.", "pos_emb.", "encoder."))}
    whole |= {"norm.running_mean": torch.zeros(24), "norm.running_var": torch.ones(24),
              "norm.num_batches_tracked": torch.tensor(7)}  # fmt: skip
    whole |= {f"fc1.{name}": t for name, t in load_file(folder / HEAD).items()}
    torch.save(whole, copied / "finetuned.pt")
    six = cells[rows_of(official)].copy()
    found = output("logits", six, copied, head="finetuned.pt", compat="official")
    np.testing.assert_allclose(found, official["finetune/logits_eval_one_by_one"], atol=1e-5)
    whole["encoder.norm.bias"] = whole["encoder.norm.bias"] + 1
    save_file(whole, copied / "other.safetensors")
    assert np.abs(output("logits", six, copied, head="other.safetensors", compat="official") - found).max() > 0.01
    del whole["norm.running_var"], whole["pos_emb.weight"]
    save_file(whole, copied / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"Missing: \['norm.running_var', 'pos_emb.weight'\]"):
        output("logits", six, copied, head=str(copied / "other.safetensors"))


@pytest.mark.parametrize("whole", [False, True])
def test_int8_logits_are_close(copied: Path, folder: Path, cells: AnnData, official: Official, whole: bool) -> None:
    head = load_file(folder / HEAD)
    if whole:
        tensors = {name.removeprefix(PREFIX): t for name, t in load_file(folder / "gene.safetensors").items()}
        encoder = {name: t for name, t in tensors.items() if name.startswith(("token_emb.", "pos_emb.", "encoder."))}
        head = encoder | {f"fc1.{name}": t for name, t in head.items()}
    save_file(head, copied / "head.safetensors")
    six = cells[rows_of(official)].copy()
    expected, found = (
        output("logits", six, copied, head="head.safetensors", precision=p).ravel() for p in ("float32", "int8")
    )
    assert 0.999 < expected @ found / np.linalg.norm(expected) / np.linalg.norm(found) < 1


def test_heads_that_are_none(copied: Path, folder: Path, cells: AnnData) -> None:
    with pytest.raises(OptionError, match="head='nothing.pt': there is no such file"):
        models.load(folder, device="cpu", head="nothing.pt")
    head = load_file(folder / HEAD)
    torch.save({"2.weight": head["2.weight"]}, copied / "half.pt")
    with pytest.raises(CheckpointError, match=r"is no head: it lacks fc1.0.weight. It holds \['2.weight'\]"):
        models.load(copied, device="cpu", head="half.pt")


# --- functions and the command line


def test_annotate_with_a_reference(cells: AnnData, folder: Path) -> None:
    cells = cells[cells.X.getnnz(axis=1) > 1].copy()
    cells.obs["kind"] = np.where(np.arange(cells.n_obs) % 2, "odd", "even")
    cfm.tl.annotate(cells, model=folder, reference=cells, labels_key="kind", n_neighbors=1, device="cpu")
    assert (cells.obs["cfm_label"].astype(str) == cells.obs["kind"]).mean() > 0.9
    with pytest.raises(OptionError, match="comes without labelled prototypes"):
        cfm.tl.annotate(cells, model=folder, device="cpu")


def test_a_missing_column_of_totals(normalized: AnnData, folder: Path) -> None:
    with pytest.raises(MissingKeyError, match="obs has no 'depth'"):
        vectors(normalized, folder, input="normalized", total_key="depth")


def test_command_line(cells: AnnData, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = vectors(cells.copy(), folder, depth="f2", pool="max")
    source, target = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
    cells.write_h5ad(source)
    call = ["embed", str(source), "-o", str(target), "--model", str(folder), "--device", "cpu"]
    assert main([*call, "--option", "depth=f2", "--option", "pool=max"]) == 0
    np.testing.assert_array_equal(ad.read_h5ad(target).obsm["X_cfm"], expected)
    assert main([*call, "--overwrite", "--option", "depht=f2"]) == 1
    assert "Did you mean depth=?" in capsys.readouterr().err
    assert main(["info", str(folder)]) == 0
    assert "non-commercial" in capsys.readouterr().out
