"""scBERT through the public functions: official vectors, one cell one vector, and what fine-tuned files say."""

from __future__ import annotations

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
from cfm.cli import main
from cfm.errors import CountsError, GeneMatchError, OptionError, UnsupportedOutput
from cfm.models.contract import Pack
from cfm.models.scbert.module import dense_bins
from cfm.tokens import TokenBatch

STATES, HEAD = 5e-6, 1e-5


def vectors(adata: AnnData, folder: Path, **options: Any) -> np.ndarray:
    cfm.tl.embed(adata, model=folder, device="cpu", **options)
    return np.asarray(adata.obsm["X_cfm"])


def packed(folder: Path, adata: AnnData, **options: Any) -> tuple[Any, TokenBatch, Pack]:
    model = models.load(folder, device="cpu", **options)
    prepared = infer.prepare(adata, model, layer=None, gene_column=None, species=None, gene_table=None)
    batch = next(iter(prepared.stream))
    batch = batch.take(np.flatnonzero(batch.lengths))
    return model, batch, Pack.of(batch, torch.device("cpu"))


@pytest.fixture
def kept(official: dict[str, np.ndarray]) -> list[str]:
    """Cells that the official filter keeps."""
    return official["preprocess/kept"].tolist()


# --- vectors


@pytest.mark.parametrize("pool", ["mean", "max", "last"])
def test_official_vectors(
    cells: AnnData, fixtures: Path, official: dict[str, np.ndarray], kept: list[str], pool: str
) -> None:
    vectors(cells, fixtures, pool=pool)
    np.testing.assert_allclose(cells[kept].obsm["X_cfm"], official[f"model/enc_{pool}_b1"], atol=STATES)


def test_the_official_batch_and_ours(
    cells: AnnData, fixtures: Path, official: dict[str, np.ndarray], kept: list[str]
) -> None:
    """The official code takes one largest key feature for all cells of a call: a vector depends on its neighbours."""
    some = cells[kept].copy()
    with cfm.settings.override(pack_tokens=10**6):
        together = vectors(some, fixtures, compat="official").copy()
        ours = vectors(some, fixtures)
    np.testing.assert_allclose(together, official["model/enc_mean_ball"], atol=STATES)
    assert 0.01 < np.abs(together - ours).max() < 0.3
    with cfm.settings.override(pack_tokens=1):
        np.testing.assert_allclose(vectors(some, fixtures, compat="official"), ours, atol=STATES)


@pytest.mark.filterwarnings("ignore:Setting element:anndata.ImplicitModificationWarning")
def test_form(few: AnnData, blood_model: Path, stored_as: Callable[[AnnData, str], AnnData], form: str) -> None:
    some = few[::4].copy()
    expected = vectors(some, blood_model)
    np.testing.assert_array_equal(vectors(stored_as(some, form), blood_model), expected)


def test_a_cell_alone_in_any_order_of_cells_and_genes(few: AnnData, blood_model: Path) -> None:
    expected = vectors(few, blood_model)
    cells = np.random.default_rng(0).permutation(few.n_obs)
    genes = np.random.default_rng(1).permutation(few.n_vars)
    np.testing.assert_array_equal(vectors(few[cells].copy(), blood_model), expected[cells])
    np.testing.assert_array_equal(vectors(few[:, genes].copy(), blood_model), expected)
    for cell in (0, 7, 59):
        np.testing.assert_array_equal(vectors(few[[cell]].copy(), blood_model)[0], expected[cell])


@pytest.mark.parametrize("setting", [{"chunk_cells": 7}, {"pack_tokens": 3000}, {"threads": 1}, {"pack_tokens": 10**5}])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_chunks_packs_and_threads(few: AnnData, blood_model: Path, setting: dict[str, int], pool: str) -> None:
    expected = vectors(few, blood_model, pool=pool)
    with cfm.settings.override(**setting):
        np.testing.assert_array_equal(vectors(few, blood_model, pool=pool), expected)


@pytest.fixture
def torch_threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_of_torch(few: AnnData, blood_model: Path, torch_threads: Callable[[int], None]) -> None:
    some = few[:6].copy()
    found = []
    for n in (1, 2, 3):
        torch_threads(n)
        found.append(vectors(some, blood_model).copy())
    # Matrix products split their sums by thread, so this is a promise to float error; all else is equal bit by bit.
    for others in found[1:]:
        np.testing.assert_allclose(others, found[0], rtol=0, atol=2e-6)


def test_poor_cells_are_kept_and_counted(cells: AnnData, fixtures: Path, said: list[str], kept: list[str]) -> None:
    found = vectors(cells, fixtures)
    n_genes = cells.obs["cfm_n_genes"]
    assert n_genes.index[n_genes >= 200].tolist() == kept, "the official code drops the others without a word"
    assert (found.any(axis=1) == (n_genes > 0)).all()
    poor = int(((n_genes > 0) & (n_genes < 200)).sum())
    assert poor > 0
    assert any(f"{poor} of 48 cells have fewer than 200 genes" in m and "They are kept" in m for m in said)
    assert any("1 of 48 cells have no gene that the model reads" in message for message in said)


def test_a_cell_of_weak_genes_has_the_vector_of_all_zeros(blood_model: Path) -> None:
    """A gene with less than 1 of 10,000 counts is in bin 0; a cell of such genes is valid input, and no empty one."""
    model = models.load(blood_model, device="cpu")
    batch = TokenBatch(np.array([5], np.int32), np.array([0], np.float32), np.array([0, 1]), np.array([0]))
    found = infer.run(model, [batch], 1, 1000)
    with torch.inference_mode():
        bins = torch.zeros((1, model.module.layout.n_positions), dtype=torch.int64)
        expected = model.module.encode(bins).double().mean(1).float()
    np.testing.assert_array_equal(found.vectors, expected)
    assert found.vectors.any()
    assert found.lengths.tolist() == [1]


def test_stored_tokens_give_the_same_vectors(cells: AnnData, fixtures: Path) -> None:
    expected = vectors(cells, fixtures).copy()
    cfm.pp.tokenize(cells, model=fixtures)
    stored = cells.obsm["cfm_tokens"]
    assert stored.shape == (48, 400)
    assert stored.nnz == cells.obs["cfm_n_genes"].sum(), "what is not expressed is implied"
    assert set(np.unique(cells.obsm["cfm_values"].data)) <= {0, 1, 2, 3, 4, 5}
    np.testing.assert_array_equal(vectors(cells, fixtures, tokens="cfm_tokens"), expected)
    with pytest.raises(OptionError, match="were made without compat="):
        vectors(cells, fixtures, tokens="cfm_tokens", compat="official")


def test_int8_is_close(cells: AnnData, fixtures: Path) -> None:
    exact = vectors(cells[:8].copy(), fixtures)
    found = vectors(cells[:8].copy(), fixtures, precision="int8")
    full = exact.any(axis=1)
    cosine = (exact * found).sum(1)[full] / np.linalg.norm(exact, axis=1)[full] / np.linalg.norm(found, axis=1)[full]
    assert cosine.min() > 0.99
    assert not np.array_equal(exact, found)


# --- genes


def test_static_gene_vectors_are_those_of_gene2vec(cells: AnnData, fixtures: Path) -> None:
    vectors(cells, fixtures, genes="static")
    table = torch.load(fixtures / "panglao_pretrain.pth", weights_only=True)["model_state_dict"]["pos_emb.emb.weight"]
    for i, name in enumerate((fixtures / "genes.txt").read_text().split()):
        if name in cells.var_names:
            expected = table[i].float().numpy()
            np.testing.assert_array_equal(cells.varm["cfm_genes"][cells.var_names.get_loc(name)], expected)


def test_contextual_gene_vectors(cells: AnnData, fixtures: Path) -> None:
    some = cells[:5].copy()
    vectors(some, fixtures, genes="contextual")
    model, batch, pack = packed(fixtures, some)
    found = model.forward(pack, frozenset({"gene"}))["gene"].double().mean(0)
    names = [name for name in model.vocabulary.symbols if name in some.var_names]
    ours = some.varm["cfm_genes"][[some.var_names.get_loc(name) for name in names]]
    theirs = found[[model.vocabulary.symbols.index(name) for name in names]]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert batch.n_cells == 5


def test_ensembl_ids_give_the_same_vectors(cells: AnnData, fixtures: Path) -> None:
    vocabulary = models.load(fixtures, device="cpu").vocabulary
    ids = dict(zip(vocabulary.symbols, vocabulary.ensembl_ids, strict=True))
    # A few symbols of the list have no id in the packaged tables, or another one than the file.
    told = [
        name
        for name, identifier in zip(cells.var_names, cells.var["ensembl_id"], strict=True)
        if identifier and ids.get(name) == identifier
    ]
    assert len(told) > 300
    by_symbol = cells[:10, told].copy()
    by_id = by_symbol.copy()
    by_id.var_names = by_symbol.var["ensembl_id"].to_numpy()
    by_symbol.var, by_id.var = by_symbol.var[[]], by_id.var[[]]
    np.testing.assert_array_equal(vectors(by_id, fixtures), vectors(by_symbol, fixtures))
    assert by_id.uns["cfm"]["X_cfm"]["gene_identifier"] == "ensembl"


# --- outputs


def test_all_outputs_of_a_pretrained_model(cells: AnnData, fixtures: Path) -> None:
    model, batch, pack = packed(fixtures, cells[:4].copy())
    assert model.spec.outputs == {"cell", "token", "gene", "attention_sum", "token_logits", "gene_logits"}
    found = model.forward(pack, model.spec.outputs)
    n_cells, n_tokens = batch.n_cells, len(batch.ids)
    assert {name: tuple(array.shape) for name, array in found.items()} == {
        "cell": (n_cells, 32),
        "token": (n_tokens, 32),
        "gene": (n_cells, 400, 32),
        "attention_sum": (n_cells, 400),
        "token_logits": (n_tokens, 7),
        "gene_logits": (n_cells, 400, 7),
    }
    cells_of = np.repeat(np.arange(n_cells), batch.lengths)
    torch.testing.assert_close(found["gene"][cells_of, batch.ids], found["token"], atol=0, rtol=0)
    torch.testing.assert_close(found["gene_logits"][cells_of, batch.ids], found["token_logits"], atol=0, rtol=0)
    for name in model.spec.outputs:
        alone = model.forward(pack, frozenset({name}))
        assert list(alone) == [name]
        torch.testing.assert_close(alone[name], found[name], atol=0, rtol=0)


def test_outputs_that_a_checkpoint_has_not(cells: AnnData, fixtures: Path, fine_tuned: Path) -> None:
    model, _, pack = packed(fixtures, cells[:2].copy())
    with pytest.raises(UnsupportedOutput, match=r"not \['logits'\].*language-model head"):
        model.forward(pack, frozenset({"logits"}))
    model, _, pack = packed(fine_tuned, cells[:2].copy())
    with pytest.raises(UnsupportedOutput, match=r"not \['token_logits'\].*Fine-tuning put a classifier"):
        model.forward(pack, frozenset({"token_logits"}))


def test_attention_received(fixtures: Path, official: dict[str, np.ndarray]) -> None:
    """The true attention of a layer's own input by default; the official export looks at the state after it."""
    bins = torch.from_numpy(official["preprocess/tokens"][official["attention/cells"]].astype(np.int64))
    module = models.load(fixtures, device="cpu").module
    with torch.inference_mode():
        ours, theirs = module.attention_received(bins), module.attention_received(bins, after=True)
    expected = np.mean([official[f"attention/layer{i}_colmean"] for i in (0, 1)], axis=0)
    np.testing.assert_allclose(ours, expected / expected.sum(1, keepdims=True), atol=1e-7)
    np.testing.assert_allclose(theirs, official["attention/official_vector"].astype(np.float32), rtol=3e-3)
    assert (ours / theirs - 1).abs().max() > 0.02
    torch.testing.assert_close(ours.sum(1), torch.ones(2))


def test_attention_is_that_of_the_full_table(few: AnnData, blood_model: Path) -> None:
    model, _, pack = packed(blood_model, few[:2].copy())
    layer, n = model.module.layers[0], model.module.layout.n_positions
    with torch.inference_mode():
        x = model.module.embed(dense_bins(pack.ids, pack.values, pack.offsets, n))
        received = layer.received(x, [0, n, 2 * n])
        q, k, _ = (part[n:].double() for part in layer.heads_of(x))
        w, c = layer.projection.double(), q.shape[-1] ** -0.25
        u_q, u_k = (torch.einsum("nhd,md->hnm", part * c, w) for part in (q, k))
        half_q, half_k = ((part * c).square().sum(-1).T[..., None] / 2 for part in (q, k))
        query = (u_q - half_q - u_q.amax(-1, keepdim=True)).exp() + 1e-4
        key = (u_k - half_k - u_k.amax()).exp() + 1e-4
        weights = query @ key.mT / (query @ key.sum(1)[..., None])
    torch.testing.assert_close(received[n:], weights.mean((0, 1)).float(), atol=1e-9, rtol=1e-5)


# --- classes


def test_official_classes(
    cells: AnnData, fine_tuned: Path, official: dict[str, np.ndarray], kept: list[str], said: list[str]
) -> None:
    cfm.tl.annotate(cells, model=fine_tuned, device="cpu")
    labels = cells[kept].obs["cfm_label"].astype(str).replace("unknown", "Unassigned")
    assert labels.tolist() == official["finetune/predict_names_thr0.5"].tolist()
    probabilities = official["finetune/predict_prob_b1"].max(1)
    confidence = cells[kept].obs["cfm_label_confidence"].to_numpy()
    named = (labels != "Unassigned").to_numpy()
    np.testing.assert_allclose(confidence[named], probabilities[named], atol=HEAD)
    assert np.isnan(confidence[~named]).all()
    empty = cells.X.getnnz(axis=1) == 0
    assert (cells.obs["cfm_label"][empty] == "unknown").all()
    record = cells.uns["cfm"]["cfm_label"]
    assert (record["reference"], record["model"]) == ("classifier", "fine_tuned")
    assert any("classes of the model's own classifier" in message for message in said)


def test_a_threshold_of_0_names_every_cell(cells: AnnData, fine_tuned: Path, official: dict[str, np.ndarray]) -> None:
    some = cells[official["preprocess/kept"].tolist()].copy()
    cfm.tl.annotate(some, model=fine_tuned, device="cpu", threshold=0)
    names = np.array(["B cell", "CD4 T cell", "Monocyte", "NK cell"])
    assert some.obs["cfm_label"].tolist() == names[official["finetune/predict_argmax_b1"]].tolist()


def test_a_reference_is_preferred_to_the_classifier(cells: AnnData, fine_tuned: Path) -> None:
    reference = cells[:40].copy()
    reference.obs["kind"] = [f"kind {i % 2}" for i in range(40)]
    cfm.tl.annotate(cells, model=fine_tuned, reference=reference, labels_key="kind", n_neighbors=1, device="cpu")
    assert set(cells.obs["cfm_label"]) <= {"kind 0", "kind 1", "unknown"}
    assert cells.obsm["X_cfm"].shape == (48, 32)


def test_logits_alone_and_together(cells: AnnData, fine_tuned: Path, official: dict[str, np.ndarray]) -> None:
    some = cells[official["preprocess/kept"].tolist()].copy()
    model, batch, pack = packed(fine_tuned, some)
    found = model.forward(pack, frozenset({"logits"}))["logits"]
    np.testing.assert_allclose(found, official["finetune/predict_logits_b1"], atol=HEAD)
    alone = Pack.of(batch.take(np.array([3])), torch.device("cpu"))
    assert (model.forward(alone, frozenset({"logits"}))["logits"][0] == found[3]).all()


def test_annotate_with_a_pretrained_model_says_what_is_missing(cells: AnnData, fixtures: Path) -> None:
    with pytest.raises(OptionError, match="comes without labelled prototypes. Pass reference= and labels_key="):
        cfm.tl.annotate(cells, model=fixtures, device="cpu")


# --- bad input


def test_normalised_values_are_refused(
    cells: AnnData, fixtures: Path, log_normalise: Callable[[AnnData], None]
) -> None:
    some = cells[cells.X.getnnz(axis=1) > 0].copy()
    log_normalise(some)
    with pytest.raises(CountsError, match="No raw counts found"):
        vectors(some, fixtures)


def test_genes_that_the_list_has_not(cells: AnnData, fixtures: Path) -> None:
    cells.var_names = [f"g{i}" for i in range(cells.n_vars)]
    cells.var = cells.var[[]]
    with pytest.raises(GeneMatchError, match="Only 0 of 9,571 genes are among the 400 genes of the model"):
        vectors(cells, fixtures)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pool": "sum"}, "pool='sum' is unknown. Type one of 'mean', 'max', 'last'"),
        ({"compat": "yes"}, "compat='yes' is unknown"),
        ({"threshold": 2}, "threshold=2 is no probability"),
        ({"threshold": True}, "threshold=True is no probability"),
        ({"layers": 2}, "There is no option layers="),
    ],
)
def test_options_that_cannot_be(fixtures: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        models.load(fixtures, device="cpu", **option)


# --- the command line


def test_the_command_line(cells: AnnData, fixtures: Path, fine_tuned: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
    some = cells[:6].copy()
    some.write_h5ad(source)
    words = ["embed", source, "-o", target, "--model", fixtures, "--device", "cpu", "--option", "pool=max"]
    assert main(list(map(str, words))) == 0
    np.testing.assert_array_equal(ad.read_h5ad(target).obsm["X_cfm"], vectors(some, fixtures, pool="max"))
    words = ["tokenize", source, "-o", tmp_path / "tokens.h5ad", "--model", fixtures]
    assert main(list(map(str, words))) == 0
    assert ad.read_h5ad(tmp_path / "tokens.h5ad").obsm["cfm_values"].shape == (6, 400)
    words = ["annotate", source, "-o", tmp_path / "labels.h5ad", "--model", fine_tuned, "--option", "threshold=0.2"]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    assert ad.read_h5ad(tmp_path / "labels.h5ad").obs["cfm_label"].nunique() > 0
