"""scGPT through the public functions: official vectors, and one cell one vector."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from anndata import AnnData

import cfm
from cfm import infer, models
from cfm.errors import MissingKeyError, OptionError, UnsupportedOutput
from cfm.models.contract import Pack
from cfm.models.scgpt.checkpoint import official_tensors
from cfm.models.scgpt.layout import Layout
from cfm.models.scgpt.module import ScgptNetwork
from cfm.tokens import TokenBatch

RANDOM = {"ties": "random", "max_length": 80}
"""Options under which most cells of `few` draw bins and genes."""


def vectors(adata: AnnData, folder: Path, **options: Any) -> np.ndarray:
    cfm.tl.embed(adata, model=folder, device="cpu", **options)
    return np.asarray(adata.obsm["X_cfm"])


@pytest.fixture
def blood(few: AnnData) -> AnnData:
    few.obs["donor"] = np.arange(few.n_obs) % 3
    return few


def test_official_vectors(cells: AnnData, fixtures: Path, official: dict[str, np.ndarray]) -> None:
    """The whole file, its cell without counts included, which ends the official run."""
    seeds = (int(official["embed/np_seed"]), int(official["embed/torch_seed"]))
    for kind, length in (("full", 1200), ("max150", 150)):
        found = vectors(cells, fixtures / "human", compat="official", seed=seeds, max_length=length)
        np.testing.assert_allclose(found[official["embed/cells"]], official[f"embed/emb_{kind}"], atol=1e-5)
        assert (found[cells.X.getnnz(axis=1) == 0] == 0).all()


def test_official_vectors_change_with_the_order_of_cells_and_ours_do_not(cells: AnnData, fixtures: Path) -> None:
    order = np.random.default_rng(0).permutation(cells.n_obs)
    back = np.argsort(order)
    for options, same in (({"compat": "official"}, False), ({"ties": "random"}, True), ({}, True)):
        there = vectors(cells, fixtures / "human", max_length=100, **options)
        shuffled = vectors(cells[order].copy(), fixtures / "human", max_length=100, **options)[back]
        assert np.array_equal(there, shuffled) == same


@pytest.mark.filterwarnings("ignore:Setting element:anndata.ImplicitModificationWarning")
def test_form(blood: AnnData, blood_model: Path, stored_as: Callable[[AnnData, str], AnnData], form: str) -> None:
    expected = vectors(blood, blood_model, batch_key="donor", **RANDOM)
    found = vectors(stored_as(blood, form), blood_model, batch_key="donor", **RANDOM)
    np.testing.assert_array_equal(found, expected)


def test_a_cell_alone_in_any_order_of_cells_and_genes(blood: AnnData, blood_model: Path) -> None:
    options = {"batch_key": "donor", **RANDOM}
    expected = vectors(blood, blood_model, **options)
    cells = np.random.default_rng(0).permutation(blood.n_obs)
    genes = np.random.default_rng(1).permutation(blood.n_vars)
    np.testing.assert_array_equal(vectors(blood[cells].copy(), blood_model, **options), expected[cells])
    np.testing.assert_array_equal(vectors(blood[:, genes].copy(), blood_model, **options), expected)
    for cell in (0, 7, 59):
        np.testing.assert_array_equal(vectors(blood[[cell]].copy(), blood_model, **options)[0], expected[cell])


@pytest.mark.parametrize("setting", [{"chunk_cells": 7}, {"pack_tokens": 150}, {"threads": 1}, {"pack_tokens": 10**6}])
def test_chunks_packs_and_threads(blood: AnnData, blood_model: Path, setting: dict[str, int]) -> None:
    expected = vectors(blood, blood_model, batch_key="donor", **RANDOM)
    with cfm.settings.override(**setting):
        np.testing.assert_array_equal(vectors(blood, blood_model, batch_key="donor", **RANDOM), expected)


def test_vectors_have_length_1_and_the_empty_cell_none(cells: AnnData, fixtures: Path, said: list[str]) -> None:
    found = vectors(cells, fixtures / "human")
    empty = cells.X.getnnz(axis=1) == 0
    np.testing.assert_allclose(np.linalg.norm(found[~empty], axis=1), 1, atol=1e-6)
    assert (found[empty] == 0).all()
    assert (cells.obs["cfm_n_genes"] == 0).tolist() == empty.tolist()
    assert any("1 of 48 cells have no gene that the model reads" in message for message in said)


def test_stored_tokens_give_the_same_vectors(blood: AnnData, blood_model: Path) -> None:
    expected = vectors(blood, blood_model, batch_key="donor", **RANDOM).copy()
    cfm.pp.tokenize(blood, model=blood_model, batch_key="donor", **RANDOM)
    assert blood.obsm["cfm_tokens"].shape == (blood.n_obs, RANDOM["max_length"])
    found = vectors(blood, blood_model, batch_key="donor", tokens="cfm_tokens", **RANDOM)
    np.testing.assert_array_equal(found, expected)


def test_gene_vectors(cells: AnnData, fixtures: Path, official: dict[str, np.ndarray]) -> None:
    model = models.load(fixtures / "human", device="cpu")
    found = dict(zip(model.vocabulary.symbols, model.gene_vectors(), strict=True))
    assert not {"<pad>", "<cls>", "<eoc>"} & found.keys()
    for name, vector in zip(official["grn/genes"], official["grn/gene_emb"], strict=True):
        np.testing.assert_allclose(found[str(name)], vector, atol=2e-5)


# --- outputs


def packed(folder: Path, adata: AnnData, **options: Any) -> tuple[Any, TokenBatch, Pack]:
    model = models.load(folder, device="cpu", **options)
    prepared = infer.prepare(adata, model, layer=None, gene_column=None, species=None, gene_table=None)
    batch = next(iter(prepared.stream))
    batch = batch.take(np.flatnonzero(batch.lengths))
    return model, batch, Pack.of(batch, torch.device("cpu"))


def test_all_outputs_of_one_pass(blood: AnnData, blood_model: Path) -> None:
    model, batch, pack = packed(blood_model, blood, batch_key="donor")
    assert model.spec.outputs == {"cell", "token", "expression", "logits"}
    found = model.forward(pack, model.spec.outputs)
    n_cells, n_tokens = batch.n_cells, len(batch.ids)
    assert {name: tuple(array.shape) for name, array in found.items()} == {
        "cell": (n_cells, 24),
        "token": (n_tokens, 24),
        "expression": (n_tokens,),
        "logits": (n_cells, 4),
    }
    for some in ({"cell"}, {"logits"}, {"cell", "logits"}):  # the last layer for <cls> alone
        for name, array in model.forward(pack, frozenset(some)).items():
            torch.testing.assert_close(array, found[name], atol=2e-6, rtol=0)


def test_expression_of_proteins_and_genes(few: AnnData, fixtures: Path) -> None:
    names = [name for name in json.loads((fixtures / "multiomic" / "vocab.json").read_text()) if name[0] != "<"]
    few = few[:, : len(names)].copy()
    few.var_names = names
    few.obs["donor"] = 0
    model, batch, pack = packed(fixtures / "multiomic", few, batch_key="donor")
    modality = model.modality_of_token[batch.ids]
    by_id = {token: name for name, token in model.token_ids.items()}
    expected = [3 if by_id[i] == "<cls>" else 0 if by_id[i].startswith("p_") else 1 for i in batch.ids.tolist()]
    assert modality.tolist() == expected
    assert {0, 1, 3} == set(expected)
    found = model.forward(pack, frozenset({"expression"}))["expression"]
    assert found.shape == (len(batch.ids),)


def test_outputs_that_a_checkpoint_has_not(cells: AnnData, fixtures: Path) -> None:
    model, _, pack = packed(fixtures / "human", cells)
    with pytest.raises(UnsupportedOutput, match=r"human gives \['cell', 'expression', 'token'\], not \['logits'\]"):
        model.forward(pack, frozenset({"logits"}))


def test_a_perturbation_generator_has_no_cell_vector(cells: AnnData, fixtures: Path) -> None:
    with pytest.raises(UnsupportedOutput, match=r"not \['cell'\].*predicts expression after a perturbation"):
        vectors(cells, fixtures / "perturbation")
    assert models.info(fixtures / "perturbation").outputs == {"token", "expression"}


# --- batches


def test_batches_decide_and_only_their_own(blood: AnnData, blood_model: Path) -> None:
    expected = vectors(blood, blood_model, batch_key="donor")
    blood.obs["other"] = (blood.obs["donor"] + 1) % 3
    changed = vectors(blood, blood_model, batch_key="other")
    assert (np.abs(changed - expected).max(1) > 1e-4).all()
    blood.obs["other"] = blood.obs["donor"].where(blood.obs["donor"] != 2, 0)
    changed = vectors(blood, blood_model, batch_key="other")
    kept = (blood.obs["donor"] != 2).to_numpy()
    np.testing.assert_array_equal(changed[kept], expected[kept])


def test_batches_by_name_go_in_alphabetical_order(blood: AnnData, blood_model: Path) -> None:
    expected = vectors(blood, blood_model, batch_key="donor")
    blood.obs["name"] = blood.obs["donor"].map({0: "A", 1: "B", 2: "C"}).astype("category")
    np.testing.assert_array_equal(vectors(blood, blood_model, batch_key="name"), expected)


def test_batches_that_are_missing_or_unknown(blood: AnnData, blood_model: Path) -> None:
    with pytest.raises(OptionError, match=r"norm for each of 3 batches.*batch_key="):
        vectors(blood, blood_model)
    with pytest.raises(MissingKeyError, match="obs has no 'nope'"):
        vectors(blood, blood_model, batch_key="nope")
    blood.obs["donor"] += 1
    with pytest.raises(OptionError, match=r"fine-tuned with 3 batches, and obs\['donor'\] has numbers from 1 to 3"):
        vectors(blood, blood_model, batch_key="donor")


def test_labels_without_a_norm_are_not_asked_for(cells: AnnData, fixtures: Path) -> None:
    assert vectors(cells, fixtures / "multiomic").any()


def test_names_of_batches_are_numbered_only_where_all_are_there(blood: AnnData, blood_model: Path) -> None:
    # In a subset, names that happen to be there would get other numbers, and cells other vectors.
    blood.obs["name"] = ["abc"[donor] for donor in blood.obs["donor"]]
    some = blood[blood.obs["name"] != "a"].copy()
    with pytest.raises(OptionError, match=r"obs\['name'\] has 2 names, and the model knows 3"):
        vectors(some, blood_model, batch_key="name")
    by_number = vectors(some, blood_model, batch_key="donor")
    some.obs["category"] = some.obs["donor"].astype("category")  # of numbers: they are what they are
    np.testing.assert_array_equal(vectors(some, blood_model, batch_key="category"), by_number)


def test_a_model_that_needs_batches_can_be_looked_at_without(blood_model: Path) -> None:
    assert cfm.models.info(blood_model).dim == 24


def test_stored_tokens_keep_their_options(blood: AnnData, blood_model: Path) -> None:
    cfm.pp.tokenize(blood, model=blood_model, batch_key="donor", ties="random", seed=3, max_length=20)
    with pytest.raises(OptionError, match=r"were made with ties='random', and ties='left' would make others"):
        vectors(blood, blood_model, batch_key="donor", tokens="cfm_tokens", ties="left")
    with pytest.raises(OptionError, match=r"were made without select=, and select='top' would make others"):
        vectors(blood, blood_model, batch_key="donor", tokens="cfm_tokens", select="top")
    found = vectors(blood, blood_model, batch_key="donor", tokens="cfm_tokens", seed=3)
    assert blood.uns["cfm"]["X_cfm"]["options"] == {
        "batch_key": "donor", "ties": "random", "seed": 3, "max_length": 20,
    }  # fmt: skip
    np.testing.assert_array_equal(
        vectors(blood, blood_model, batch_key="donor", ties="random", seed=3, max_length=20), found
    )
    blood.obs["donor"] = blood.obs["donor"] * 0.7
    with pytest.raises(OptionError, match="Batches are whole numbers from 0 to 2"):
        vectors(blood, blood_model, batch_key="donor", tokens="cfm_tokens")


def test_duplicated_object_gives_each_cell_its_vector_again(few: AnnData, blood_model: Path) -> None:
    few.obs["donor"] = 0
    twice = ad.concat([few, few], index_unique="-")
    found = vectors(twice, blood_model, batch_key="donor", **RANDOM)
    np.testing.assert_array_equal(found[: few.n_obs], found[few.n_obs :])


@pytest.mark.parametrize("values", ["category", "scaling"])
def test_other_styles_of_values(few: AnnData, tmp_path: Path, values: str) -> None:
    layout = Layout(few.n_vars + 2, 16, 2, 16, 1, values=values, n_values=53 if values == "category" else 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ScgptNetwork(layout)
    torch.save(official_tensors(network), tmp_path / "best_model.pt")
    names = {name: i for i, name in enumerate([*few.var_names, "<cls>", "<pad>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(names))
    (tmp_path / "args.json").write_text(json.dumps({"embsize": 16, "nlayers": 1, "nheads": 2}))
    assert models.load(tmp_path, device="cpu").module.layout == layout
    found = vectors(few, tmp_path)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
