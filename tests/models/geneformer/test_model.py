"""The family behind the public functions: what vectors depend on, options, outputs, genes in context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from anndata import AnnData
from numpy.typing import NDArray

import cfm
from cfm import models
from cfm.cli import main
from cfm.errors import OptionError, UnsupportedOutput
from cfm.genes import match
from cfm.models import Pack
from cfm.models.geneformer import GeneformerModel
from cfm.models.geneformer.tokenizer import GeneformerTokenizer

Load = Callable[..., GeneformerModel]
Official = dict[str, NDArray[Any]]
TokenizerFor = Callable[..., GeneformerTokenizer]
Digests = Callable[[AnnData], dict[str, str]]

NAMES = ("V1_mlm", "V2_mlm")


def vectors(adata: AnnData, model: Path, **arguments: Any) -> NDArray[np.float32]:
    """Vectors of the cells, written to the object and taken from it."""
    cfm.tl.embed(adata, **({"model": model, "gene_column": "ensembl_id", "device": "cpu"} | arguments))
    return np.asarray(adata.obsm["X_cfm"])


@pytest.fixture(params=NAMES)
def checkpoint(request: pytest.FixtureRequest, fixtures: Path) -> Path:
    """Folder of a V1 and of a V2 model."""
    return fixtures / str(request.param)


@pytest.fixture
def some(cells: AnnData) -> AnnData:
    """12 cells, short and long, the last two without a gene and with one."""
    return cells[[*range(3, 13), 46, 47]].copy()


# The official vectors


@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize(("name", "mode"), [("V1", "cell"), ("V2", "cell"), ("V2", "cls")])
def test_official_vectors(fixtures: Path, cells: AnnData, official: Official, name: str, mode: str, layer: int) -> None:
    del cells.obs["n_counts"]  # not needed
    options: dict[str, Any] = {} if (mode == "cls") == (name == "V2") else {"emb_mode": mode}
    if layer != -1:
        options["emb_layer"] = layer
    found = vectors(cells, fixtures / f"{name}_mlm", **options)
    rows = official[f"embeddings/{name}_cells_in_output_order"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[rows], official[f"embeddings/{name}_{mode}_{layer}"], atol=5e-6)
    assert not found[np.setdiff1d(np.arange(48), rows)].any()


def test_number_of_genes_leaves_out_the_ends(fixtures: Path, cells: AnnData, official: Official) -> None:
    for name, ends in (("V1", 0), ("V2", 2)):
        vectors(cells, fixtures / f"{name}_mlm")
        rows = official[f"inputs/{name}_cells"]
        np.testing.assert_array_equal(
            cells.obs["cfm_n_genes"].to_numpy()[rows], official[f"inputs/{name}_length"] - ends
        )
    assert cells.obs["cfm_n_genes"].max() == 254


def test_record(fixtures: Path, some: AnnData, load: Load) -> None:
    vectors(some, fixtures / "V2_mlm", emb_mode="cell", emb_layer=0)
    record = some.uns["cfm"]["X_cfm"]
    spec = load("V2_mlm").spec
    assert (record["model"], record["model_version"], record["model_digest"]) == ("V2_mlm", "2", spec.digest)
    assert record["options"] == {"emb_mode": "cell", "emb_layer": 0}
    assert (record["counts"], record["gene_column"], record["gene_identifier"]) == ("X", "ensembl_id", "ensembl")
    assert record["coverage"]["n_vocabulary"] == 412
    vectors(some, fixtures / "V2_mlm")
    assert "options" not in some.uns["cfm"]["X_cfm"] or not some.uns["cfm"]["X_cfm"]["options"]


# What a vector depends on: bit for bit


@pytest.mark.parametrize("threads", [1, 2])
def test_other_cells_and_their_order_change_nothing(checkpoint: Path, cells: AnnData, threads: int) -> None:
    torch.set_num_threads(threads)
    everything = vectors(cells, checkpoint)
    order = np.random.default_rng(0).permutation(48)
    np.testing.assert_array_equal(vectors(cells[order].copy(), checkpoint), everything[order])
    np.testing.assert_array_equal(vectors(cells[order[:9]].copy(), checkpoint), everything[order[:9]])
    for cell in (0, 5, 18, 47):
        np.testing.assert_array_equal(vectors(cells[[cell]].copy(), checkpoint), everything[[cell]])


def test_threads_of_torch_change_rounding_alone(checkpoint: Path, some: AnnData) -> None:
    # Its matrix products split differently; the promise of equal bits is for one number of them.
    torch.set_num_threads(1)
    one = vectors(some.copy(), checkpoint)
    torch.set_num_threads(2)
    np.testing.assert_allclose(vectors(some, checkpoint), one, atol=5e-6)


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
def test_storage_changes_nothing(
    fixtures: Path, some: AnnData, form: str, stored_as: Callable[[AnnData, str], AnnData]
) -> None:
    expected = vectors(some.copy(), fixtures / "V2_mlm")
    # By symbol: the form of a view keeps no column of var.
    found = vectors(stored_as(some, form), fixtures / "V2_mlm", gene_column="var_names")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "setting",
    [{"chunk_cells": 1}, {"chunk_cells": 5}, {"pack_tokens": 1}, {"pack_tokens": 700}, {"threads": 1}, {"threads": 2},
     {"chunk_cells": 7, "pack_tokens": 999, "threads": 2}],
    ids=str,
)  # fmt: skip
def test_settings_change_nothing(checkpoint: Path, some: AnnData, setting: dict[str, int]) -> None:
    expected = vectors(some.copy(), checkpoint)
    with cfm.settings.override(**setting):
        found = vectors(some, checkpoint)
    np.testing.assert_array_equal(found, expected)


def test_order_of_genes_matters_for_ties_alone(
    checkpoint: Path, cells: AnnData, load: Load, tokenizer_for: TokenizerFor
) -> None:
    # Genes of one count/median stay in the order of columns, as in the official code with a stable sort: such cells
    # may change with it. The fixture's medians make many; with the real dictionaries there are practically none.
    model = load(checkpoint.name)
    rows, keys = tokenizer_for(model, cells).keys(cells.X, 0)
    clear = [
        len(np.unique(keys[a:b].round(9))) == b - a for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
    ]
    assert 0 < sum(clear) < 48
    expected = vectors(cells, checkpoint)
    mixed = cells[:, np.random.default_rng(0).permutation(cells.n_vars)].copy()
    found = vectors(mixed, checkpoint)
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert not np.array_equal(found, expected)


def test_without_ties_the_order_of_genes_changes_nothing(
    copied: Callable[[str], Path], cells: AnnData, spoil: Callable[..., None], tmp_path: Path
) -> None:
    folder = copied("V2_mlm")

    def distinct(medians: dict[str, float]) -> None:
        for i, gene in enumerate(medians):
            medians[gene] = float(medians[gene]) * (1 + 1e-6 * (i + 1) ** 1.5)

    spoil(tmp_path / "dictionaries" / "gene_median_dictionary_gc104M.pkl", distinct)
    expected = vectors(cells, folder)
    mixed = cells[:, np.random.default_rng(0).permutation(cells.n_vars)].copy()
    np.testing.assert_array_equal(vectors(mixed, folder), expected)


def test_nothing_but_our_own_keys_is_written(fixtures: Path, some: AnnData, digests: Digests) -> None:
    some.layers["log"] = some.X.log1p()
    some.obsm["X_other"] = np.ones((12, 2))
    before = digests(some)
    vectors(some, fixtures / "V2_mlm", genes="contextual", n_counts="n_counts")
    after = digests(some)
    assert after.keys() - before.keys() == {"obsm[X_cfm]", "obs[cfm_n_genes]", "varm[cfm_genes]", "uns[cfm]"}
    assert {key for key in before if after[key] != before[key]} == set()


def test_errors_leave_the_object_as_it_was(fixtures: Path, some: AnnData, digests: Digests) -> None:
    before = digests(some)
    for wrong in ({"emb_layer": 1}, {"emb_mode": "mean"}, {"bins": 51}, {"n_counts": "nothing"}, {"genes": "all"}):
        with pytest.raises((OptionError, KeyError)):
            vectors(some, fixtures / "V2_mlm", **wrong)
    assert digests(some) == before


def test_cells_without_a_gene_are_counted_in_a_warning(fixtures: Path, cells: AnnData, said: list[str]) -> None:
    vectors(cells, fixtures / "V1_mlm")
    assert any(line.startswith("WARNING 2 of 48 cells have no gene that the model reads") for line in said)


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"emb_layer": 1}, "emb_layer=1: 0 is the last layer, -1 the one before, to -3."),
        ({"emb_layer": -4}, "emb_layer=-4: 0 is the last layer, -1 the one before, to -3."),
        ({"emb_mode": "gene"}, "emb_mode='gene': type 'cls' or 'cell'."),
        ({"arithmetic": "csr"}, "arithmetic='csr': type 'sparse' or 'dense'."),
        ({"n_bins": 51},
         "There is no option n_bins=: V2_mlm (family geneformer) takes precision=, dictionaries=, emb_layer=, emb_mode=, "
         "n_counts=, arithmetic=, besides the arguments of the function."),
        ({"genes": "all"}, "genes='all': type True or 'static', 'contextual', or False."),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_options(fixtures: Path, some: AnnData, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as raised:
        vectors(some, fixtures / "V2_mlm", **options)
    assert str(raised.value) == message


@pytest.mark.parametrize("options", [{"emb_layer": "last"}, {"emb_layer": -0.5}, {"emb_mode": 3}], ids=str)
def test_options_of_wrong_types(fixtures: Path, some: AnnData, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        vectors(some, fixtures / "V2_mlm", **options)


def test_none_leaves_an_option_at_its_default(fixtures: Path, some: AnnData) -> None:
    expected = vectors(some, fixtures / "V2_mlm").copy()
    found = vectors(some, fixtures / "V2_mlm", emb_layer=None, emb_mode=None, n_counts=None, dictionaries=None)
    np.testing.assert_array_equal(found, expected)


@torch.inference_mode()
def test_every_layer_can_be_read(
    load: Load, some: AnnData, tokenizer_for: TokenizerFor, fixtures: Path, official: Official
) -> None:
    found = []
    for layer in (-3, -2, -1, 0):
        model = load("V2_mlm", emb_layer=layer)
        batch = tokenizer_for(model, some)(some.X, 0)
        found.append(model.forward(Pack.of(batch, model.device), frozenset({"token"}))["token"])
        assert found[-1].shape == (len(batch.ids), 32)
    assert all((a - b).abs().max() > 0.1 for a, b in zip(found, found[1:], strict=False))
    # -3 of three layers is what goes in: gene, position and type, normed.
    bert = model.module.bert
    ids = torch.from_numpy(batch.ids).long()
    place = torch.from_numpy(np.concatenate([np.arange(n) for n in batch.lengths]))
    together = bert.word.weight[ids] + bert.position.weight[place] + bert.token_type.weight[0]
    torch.testing.assert_close(found[0], bert.norm(together), atol=1e-6, rtol=0)


# Stored tokens


@pytest.mark.parametrize("genes", [False, "contextual"])
def test_stored_tokens_give_the_same_vectors(checkpoint: Path, some: AnnData, genes: bool | str) -> None:
    direct = vectors(some, checkpoint, genes=genes).copy()
    n_genes = some.obs["cfm_n_genes"].to_numpy()
    means = some.varm["cfm_genes"].copy() if genes else None
    cfm.pp.tokenize(some, model=checkpoint, gene_column="ensembl_id")
    assert "cfm_values" not in some.obsm
    tokens = some.obsm["cfm_tokens"]
    assert tokens.shape == (12, 256)
    assert tokens.dtype == np.int32
    some.X = some.X * 0  # not looked at
    np.testing.assert_array_equal(vectors(some, checkpoint, tokens="cfm_tokens", genes=genes), direct)
    np.testing.assert_array_equal(some.obs["cfm_n_genes"], n_genes)
    if means is not None:
        np.testing.assert_array_equal(some.varm["cfm_genes"], means)
    # Other options of the same weights read the same tokens.
    assert not np.array_equal(vectors(some, checkpoint, tokens="cfm_tokens", emb_layer=0), direct)


def test_tokens_of_another_model_are_refused(fixtures: Path, some: AnnData) -> None:
    cfm.pp.tokenize(some, model=fixtures / "V1_mlm", gene_column="ensembl_id")
    with pytest.raises(OptionError, match=r"were made for V1_mlm, not for V2_mlm"):
        vectors(some, fixtures / "V2_mlm", tokens="cfm_tokens")


# Vectors of genes


@torch.inference_mode()
@pytest.mark.parametrize("layer", [-1, 0])
def test_genes_in_context_are_means_over_cells(
    checkpoint: Path, some: AnnData, load: Load, tokenizer_for: TokenizerFor, layer: int
) -> None:
    with cfm.settings.override(chunk_cells=5, pack_tokens=600):
        vectors(some, checkpoint, genes="contextual", emb_layer=layer)
    found = some.varm["cfm_genes"]
    model = load(checkpoint.name, emb_layer=layer)
    sums: dict[int, list[NDArray[np.float64]]] = {}
    for cell in range(12):
        batch = tokenizer_for(model, some)(some.X[cell], 0)
        if len(batch.ids):
            states = model.forward(Pack.of(batch, model.device), frozenset({"token"}))["token"].double().numpy()
            for token, state in zip(batch.ids.tolist(), states, strict=True):
                sums.setdefault(token, []).append(state)
    token_of = dict(zip(model.vocabulary.ensembl_ids, model.dictionaries.tokens.tolist(), strict=True))
    seen = 0
    for column, gene in enumerate(some.var["ensembl_id"]):
        states_of = sums.get(token_of.get(gene, -1))
        if states_of is None:
            assert np.isnan(found[column]).all()
        else:
            np.testing.assert_allclose(found[column], np.mean(states_of, axis=0), atol=1e-6)
            seen += 1
    expressed = np.asarray((some.X > 0).sum(axis=0)).ravel() > 0
    known = np.isin(some.var["ensembl_id"], model.vocabulary.ensembl_ids)
    assert 100 < seen <= (expressed & known).sum()
    assert found.dtype == np.float32
    if checkpoint.name == "V1_mlm":
        assert (known & ~expressed).any(), "genes that the model knows and no cell expresses"


def test_official_means_of_genes(fixtures: Path, cells: AnnData, official: Official) -> None:
    for name in ("V1", "V2"):
        rows = official[f"embeddings/{name}_gene_mode_cells"]
        chosen = cells[rows].copy()
        vectors(chosen, fixtures / f"{name}_mlm", genes="contextual")
        place = {gene: i for i, gene in enumerate(chosen.var["ensembl_id"])}
        names = official[f"embeddings/{name}_gene_names"]
        real = [i for i, gene in enumerate(names) if not gene.startswith("<")]
        ours = chosen.varm["cfm_genes"][[place[names[i]] for i in real]]
        np.testing.assert_allclose(ours, official[f"embeddings/{name}_gene_mean_-1"][real], atol=5e-6)
        # The official table has rows for <cls> and <eos>; they are no genes.
        assert len(names) - len(real) == (0 if name == "V1" else 2)
        assert (~np.isnan(chosen.varm["cfm_genes"]).all(axis=1)).sum() == len(real)


@pytest.mark.parametrize("genes", [True, "static"])
def test_static_genes_are_the_input_embedding(checkpoint: Path, some: AnnData, load: Load, genes: bool | str) -> None:
    vectors(some, checkpoint, genes=genes)
    model = load(checkpoint.name)
    token_of = dict(zip(model.vocabulary.ensembl_ids, model.dictionaries.tokens.tolist(), strict=True))
    tokens = np.array([token_of.get(gene, -1) for gene in some.var["ensembl_id"]])
    word = model.module.bert.word.weight.numpy()
    np.testing.assert_array_equal(some.varm["cfm_genes"][tokens >= 0], word[tokens[tokens >= 0]])
    assert np.isnan(some.varm["cfm_genes"][tokens < 0]).all()
    assert model.gene_vectors().shape == (len(model.vocabulary), 32)
    assert model.gene_tokens().dtype == np.int64


# Outputs


@torch.inference_mode()
@pytest.mark.parametrize("layer", [-3, -1, 0])
def test_first_tokens_alone_are_those_of_the_whole(
    load: Load, some: AnnData, tokenizer_for: TokenizerFor, layer: int
) -> None:
    model = load("V2_mlm", emb_layer=layer)
    pack = Pack.of(tokenizer_for(model, some)(some.X[[0, 1, 2, 11]], 0), model.device)
    alone = model.forward(pack, frozenset({"cell"}))["cell"]
    both = model.forward(pack, frozenset({"cell", "token"}))
    torch.testing.assert_close(alone, both["cell"], atol=2e-6, rtol=0)
    assert torch.equal(both["cell"], both["token"][pack.offsets[:-1]])


@torch.inference_mode()
def test_cell_mode_is_the_mean_over_genes(load: Load, some: AnnData, tokenizer_for: TokenizerFor) -> None:
    for name, inner in (("V1_mlm", 0), ("V2_mlm", 1)):
        model = load(name, emb_mode="cell")
        pack = Pack.of(tokenizer_for(model, some)(some.X[:3], 0), model.device)
        found = model.forward(pack, frozenset({"cell", "token"}))
        spans = pack.offsets.unfold(0, 2, 1).tolist()
        by_hand = torch.stack([found["token"][a + inner : b - inner].double().mean(0) for a, b in spans])
        torch.testing.assert_close(found["cell"].double(), by_hand, atol=1e-6, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "per_token", "width"),
    [("V1_mlm", True, 413), ("V2_mlm", True, 416), ("V2_cell_classifier", False, 3), ("V2_gene_classifier", True, 2),
     ("V2_mtl_attnpool", False, 5)],
)  # fmt: skip
def test_logits(load: Load, some: AnnData, tokenizer_for: TokenizerFor, name: str, per_token: bool, width: int) -> None:
    model = load(name)
    pack = Pack.of(tokenizer_for(model, some)(some.X[:4], 0), model.device)
    found = model.forward(pack, frozenset({"logits"}))
    assert found.keys() == {"logits"}
    assert found["logits"].shape == (len(pack.ids) if per_token else 4, width)
    assert found["logits"].isfinite().all()
    everything = model.forward(pack, frozenset({"cell", "token", "logits"}))
    assert everything.keys() == {"cell", "token", "logits"}
    assert torch.equal(everything["logits"], found["logits"])
    # A head reads the last layer, whatever layer gives the vectors.
    other = load(name, emb_layer=0)
    torch.testing.assert_close(other.forward(pack, frozenset({"logits"}))["logits"], found["logits"])


def test_outputs_it_cannot_give(load: Load, some: AnnData, tokenizer_for: TokenizerFor) -> None:
    model = load("V2_mlm")
    pack = Pack.of(tokenizer_for(model, some)(some.X[:2], 0), model.device)
    with pytest.raises(UnsupportedOutput, match=r"V2_mlm gives \['cell', 'logits', 'token'\], not \['attention'\]"):
        model.forward(pack, frozenset({"cell", "attention"}))


def test_no_gradients_are_kept(load: Load, some: AnnData, tokenizer_for: TokenizerFor) -> None:
    model = load("V2_mlm")
    found = model.forward(Pack.of(tokenizer_for(model, some)(some.X[:2], 0), model.device), frozenset({"cell"}))
    assert not found["cell"].requires_grad


def test_no_cells(fixtures: Path, cells: AnnData) -> None:
    none = cells[:0].copy()
    assert vectors(none, fixtures / "V2_mlm", genes="contextual").shape == (0, 32)
    assert none.varm["cfm_genes"].shape == (cells.n_vars, 32)
    assert np.isnan(none.varm["cfm_genes"]).all()


def test_no_cell_with_a_gene(fixtures: Path, cells: AnnData) -> None:
    empty = cells[46:].copy()
    empty.X = empty.X * 0
    assert not vectors(empty, fixtures / "V2_mlm", genes="contextual").any()
    assert empty.varm["cfm_genes"].shape == (cells.n_vars, 32)
    assert np.isnan(empty.varm["cfm_genes"]).all()


# Other doors


def test_annotate_with_a_reference(fixtures: Path, cells: AnnData) -> None:
    # Copies of the reference's cells lie nearest to themselves.
    reference = ad.concat([cells[:46]] * 3, index_unique="-")
    reference.var = cells.var
    reference.obs["kind"] = [f"kind {i % 46 % 5}" for i in range(len(reference))]
    query = cells[:46].copy()
    options = {"model": fixtures / "V2_mlm", "gene_column": "ensembl_id", "n_neighbors": 3, "emb_layer": 0}
    cfm.tl.annotate(query, reference=reference, labels_key="kind", device="cpu", **options)
    assert query.obs["cfm_label"].astype(str).tolist() == [f"kind {i % 5}" for i in range(46)]
    assert (query.obs["cfm_label_confidence"] == 1).all()
    np.testing.assert_array_equal(query.obsm["X_cfm"], vectors(cells, fixtures / "V2_mlm", emb_layer=0)[:46])
    assert query.uns["cfm"]["cfm_label"]["model"] == "V2_mlm"


def test_annotate_without_a_reference_says_what_is_missing(fixtures: Path, some: AnnData) -> None:
    with pytest.raises(OptionError, match=r"V2_mlm comes without labelled prototypes. Pass reference= and labels_key="):
        cfm.tl.annotate(some, model=fixtures / "V2_mlm", gene_column="ensembl_id")
    assert not some.obsm


def test_the_command_line(fixtures: Path, some: AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
    some.write_h5ad(source)
    words = ["embed", source, "-o", target, "--model", fixtures / "V2_mlm", "--gene-column", "ensembl_id"]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    found = ad.read_h5ad(target)
    np.testing.assert_array_equal(found.obsm["X_cfm"], vectors(some, fixtures / "V2_mlm"))
    assert "obsm  X_cfm, 12 x 32" in capsys.readouterr().out
    words = ["tokenize", source, "-o", tmp_path / "tokens.h5ad", "--model", fixtures / "V1_mlm"]
    assert main([*map(str, words), "--gene-column", "ensembl_id"]) == 0
    assert ad.read_h5ad(tmp_path / "tokens.h5ad").obsm["cfm_tokens"].shape == (12, 256)


def test_genes_are_found_without_naming_the_column(checkpoint: Path, some: AnnData, load: Load) -> None:
    expected = vectors(some, checkpoint).copy()
    cfm.tl.embed(some, model=checkpoint, device="cpu")
    np.testing.assert_array_equal(some.obsm["X_cfm"], expected)
    assert match(some.var, load(checkpoint.name).vocabulary).n_tokens > 400


def test_models_are_kept_by_their_options(fixtures: Path) -> None:
    first = models.load(fixtures / "V2_mlm", device="cpu")
    assert models.load(fixtures / "V2_mlm", device="cpu", emb_layer=None) is first
    assert models.load(fixtures / "V2_mlm", device="cpu", emb_layer=0) is not first
    assert models.load(fixtures / "V2_mlm", device="cpu") is first
