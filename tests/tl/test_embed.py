"""Cell vectors: what they depend on, what is written, and what is said when something is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData, ImplicitModificationWarning
from numpy.typing import NDArray

import cfm
from cfm import models
from cfm.errors import CountsError, GeneMatchError, MissingKeyError, OptionError, UnknownModelError
from cfm.genes import human_genes, match, mouse_orthologs

Digests = Callable[[AnnData], dict[str, str]]
Emptied = Callable[[AnnData, list[int]], AnnData]
LogNormalise = Callable[[AnnData], None]


def vectors(adata: AnnData, **arguments: Any) -> NDArray[np.float32]:
    """Vectors of the cells, written to the object and taken from it."""
    cfm.tl.embed(adata, **arguments)
    return np.asarray(adata.obsm["X_cfm"])


def known_tokens(adata: AnnData) -> NDArray[np.int32]:
    return match(adata.var, models.load("cfm-mini", device="cpu").vocabulary).tokens


# What a vector depends on


@pytest.fixture
def expected(few: AnnData) -> NDArray[np.float32]:
    return vectors(few.copy())


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
def test_storage_changes_nothing(
    few: AnnData, expected: NDArray[np.float32], form: str, stored_as: Callable[[AnnData, str], AnnData]
) -> None:
    adata = stored_as(few, form)
    np.testing.assert_array_equal(vectors(adata), expected)
    np.testing.assert_array_equal(
        np.asarray(adata.obs["cfm_n_genes"]), (few.X[:, known_tokens(few) >= 0] > 0).sum(1).A1
    )


def test_other_cells_and_their_order_change_nothing(pbmc: AnnData) -> None:
    everything = vectors(pbmc)
    order = np.random.default_rng(0).permutation(pbmc.n_obs)
    np.testing.assert_array_equal(vectors(pbmc[order].copy()), everything[order])
    some = order[:30]
    np.testing.assert_array_equal(vectors(pbmc[some].copy()), everything[some])
    for cell in order[:5]:
        np.testing.assert_array_equal(vectors(pbmc[[cell]].copy()), everything[[cell]])


def test_order_of_genes_changes_nothing(few: AnnData, expected: NDArray[np.float32]) -> None:
    order = np.random.default_rng(0).permutation(few.n_vars)
    np.testing.assert_array_equal(vectors(few[:, order].copy()), expected)


@pytest.mark.parametrize(
    "setting",
    [{"chunk_cells": 1}, {"chunk_cells": 7}, {"chunk_cells": 2048}, {"pack_tokens": 1}, {"pack_tokens": 1500},
     {"threads": 1}, {"threads": 2}, {"chunk_cells": 13, "pack_tokens": 999, "threads": 2}],
    ids=str,
)  # fmt: skip
def test_settings_change_nothing(few: AnnData, expected: NDArray[np.float32], setting: dict[str, int]) -> None:
    with cfm.settings.override(**setting):
        got = vectors(few)
    np.testing.assert_array_equal(got, expected)


def test_depth_of_a_read_changes_nothing(few: AnnData, expected: NDArray[np.float32]) -> None:
    # Not a promise of every family: cfm-mini normalises by the cell's own counts.
    few.X = few.X * 3
    np.testing.assert_allclose(vectors(few), expected, atol=1e-6)


def test_different_cells_get_different_vectors(few: AnnData, expected: NDArray[np.float32]) -> None:
    assert len(np.unique(expected.round(4), axis=0)) == few.n_obs
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-6)
    # Nearest other cells share a type far more often than chance.
    similarity = expected @ expected.T - 9 * np.eye(few.n_obs)
    types = few.obs["cell_type"].to_numpy()
    chance = (types[:, None] == types).mean()
    assert (types[similarity.argmax(1)] == types).mean() > chance + 0.15


# Where the counts and genes are


def test_counts_in_a_layer_and_in_raw(
    few: AnnData, expected: NDArray[np.float32], said: list[str], log_normalise: LogNormalise
) -> None:
    counts = few.X.copy()
    log_normalise(few)
    in_layer = few.copy()
    in_layer.layers["counts"] = counts
    np.testing.assert_array_equal(vectors(in_layer), expected)
    assert in_layer.uns["cfm"]["X_cfm"]["counts"] == "layers['counts']"
    named = few.copy()
    named.layers["umi"] = counts
    np.testing.assert_array_equal(vectors(named, layer="umi"), expected)
    in_raw = few.copy()
    in_raw.raw = AnnData(counts, var=few.var)
    small = in_raw[:, :50].copy()  # as after the choice of highly variable genes
    np.testing.assert_array_equal(vectors(small), expected)
    assert small.uns["cfm"]["X_cfm"]["counts"] == "raw.X"
    assert small.n_vars == 50
    assert any("counts: took raw.X, since X holds no counts" in message for message in said)


def test_ensembl_ids_in_a_column_of_var(few: AnnData, expected: NDArray[np.float32]) -> None:
    genes = models.load("cfm-mini", device="cpu").vocabulary
    tokens = known_tokens(few)
    few.var["gene_ids"] = [f"{genes.ensembl_ids[t]}.7" if t >= 0 else f"lost_{i}" for i, t in enumerate(tokens)]
    few.var_names = [f"row {i}" for i in range(few.n_vars)]
    np.testing.assert_array_equal(vectors(few), expected)
    record = few.uns["cfm"]["X_cfm"]
    assert (record["gene_column"], record["gene_identifier"]) == ("gene_ids", "ensembl")
    np.testing.assert_array_equal(vectors(few, gene_column="gene_ids"), expected)
    with pytest.raises(MissingKeyError, match=r"var has no column 'symbol'.*gene_ids"):
        cfm.tl.embed(few, gene_column="symbol")


def mouse_cells(adata: AnnData) -> AnnData:
    """The cells under the names of the mouse orthologs; genes without a one-to-one ortholog lose their counts."""
    genes = models.load("cfm-mini", device="cpu").vocabulary
    to_mouse = {ensembl: symbol for symbol, ensembl in mouse_orthologs().items()}
    names = [to_mouse.get(genes.ensembl_ids[t]) if t >= 0 else None for t in known_tokens(adata)]
    kept = np.array([name is not None for name in names])
    mouse = adata[:, kept].copy()
    mouse.var_names = [name for name in names if name is not None]
    return mouse


def test_mouse_cells_are_read_through_orthologs(few: AnnData) -> None:
    mouse = mouse_cells(few)
    human = few[:, [bool(name) for name in np.isin(known_tokens(few), match_of(mouse))]].copy()
    np.testing.assert_array_equal(vectors(mouse, species="mouse"), vectors(human))
    assert mouse.uns["cfm"]["X_cfm"]["species"] == "mouse"
    assert mouse.uns["cfm"]["X_cfm"]["coverage"]["n_matched"] == mouse.n_vars > 400


def match_of(mouse: AnnData) -> NDArray[np.int32]:
    return match(mouse.var, models.load("cfm-mini", device="cpu").vocabulary, species="mouse").tokens


def test_mouse_cells_without_the_option_are_an_error_that_names_it(few: AnnData) -> None:
    mouse = mouse_cells(few)
    mouse.X = mouse.X.astype(np.float32)
    with pytest.raises(GeneMatchError, match=r"look like mouse symbols\. Type species='mouse'"):
        cfm.tl.embed(mouse)
    assert not mouse.obsm
    assert "cfm" not in mouse.uns


def test_a_gene_table_of_ones_own(few: AnnData, expected: NDArray[np.float32], tmp_path: Path) -> None:
    names = list(few.var_names)
    few.var_names = [f"probe{i}" for i in range(few.n_vars)]
    table = dict(zip(few.var_names, names, strict=True))
    path = tmp_path / "probes.csv"
    path.write_text("probe,gene\n" + "".join(f"{a},{b}\n" for a, b in table.items()))
    with pytest.raises(GeneMatchError, match="gene_table="):
        cfm.tl.embed(few)
    # A table gives current symbols or ids, so withdrawn ones in it are looked up as they stand.
    by_table, by_path = vectors(few, gene_table=table), vectors(few, gene_table=path)
    np.testing.assert_array_equal(by_table, by_path)
    assert (np.abs(by_table - expected).max(axis=1) < 0.2).all()
    assert few.uns["cfm"]["X_cfm"]["gene_identifier"] == "table"


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_repeated_names_are_added_up(few: AnnData, expected: NDArray[np.float32]) -> None:
    half = few.X.copy()
    half.data = np.floor(half.data / 2)
    names = [*few.var_names, *few.var_names]
    split = AnnData(sp.csr_matrix(sp.hstack([half, few.X - half])), var=pd.DataFrame(index=names))
    np.testing.assert_array_equal(vectors(split), expected)
    unique = split.copy()
    unique.var_names_make_unique()
    np.testing.assert_array_equal(vectors(unique), expected)


def test_sixty_thousand_genes(few: AnnData, expected: NDArray[np.float32]) -> None:
    # Symbols of all other human genes, without counts, and as many strangers as are missing, with counts.
    genes = models.load("cfm-mini", device="cpu").vocabulary
    there = {genes.ensembl_ids[token] for token in known_tokens(few) if token >= 0}
    # TMBIM4-1 stands in the cells without its TMBIM4, whose presence would make it known.
    taken = {*few.var_names, *few.var_names.str.removesuffix("-1")}
    others = [symbol for symbol, ensembl in human_genes().items() if ensembl not in there and symbol not in taken]
    strangers = [f"stranger{i}" for i in range(60_000 - few.n_vars - len(others))]
    counts = sp.hstack(
        [
            few.X,
            sp.csr_matrix((few.n_obs, len(others)), dtype=np.float32),
            sp.random(few.n_obs, len(strangers), 0.05, "csr", np.float32, np.random.default_rng(0), np.ones),
        ]
    )
    big = AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=[*few.var_names, *others, *strangers]))
    np.testing.assert_array_equal(vectors(big), expected)
    coverage = big.uns["cfm"]["X_cfm"]["coverage"]
    assert coverage["n_genes"] == 60_000
    assert coverage["n_vocabulary_matched"] > 0.9 * coverage["n_vocabulary"]
    assert any(gene.startswith("stranger") for gene in coverage["lost_genes"])


# What is written


@pytest.fixture
def rich(few: AnnData, log_normalise: LogNormalise) -> AnnData:
    """An object with something in every slot."""
    adata = few.copy()
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata.copy()
    log_normalise(adata)
    adata.obsm["X_other"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    adata.varm["loadings"] = np.ones((adata.n_vars, 2))
    adata.obsp["graph"] = sp.eye(adata.n_obs, format="csr")
    adata.var["highly_variable"] = True
    adata.uns["cfm"] = {"cfm_label": {"function": "cfm.tl.annotate"}}
    return adata


def test_nothing_but_our_own_keys_is_written(rich: AnnData, digests: Digests) -> None:
    before = digests(rich)
    cfm.tl.embed(rich, genes=True)
    after = digests(rich)
    own = {"obsm[X_cfm]", "obs[cfm_n_genes]", "varm[cfm_genes]"}
    assert after.keys() - before.keys() == own
    assert {key for key in before if after[key] != before[key]} == {"uns[cfm]"}
    assert rich.uns["cfm"]["cfm_label"] == {"function": "cfm.tl.annotate"}


def test_copy_leaves_the_input_as_it_was(rich: AnnData, digests: Digests) -> None:
    before = digests(rich)
    other = cfm.tl.embed(rich, genes=True, copy=True)
    assert digests(rich) == before
    assert other is not None
    assert "X_cfm" in other.obsm
    assert cfm.tl.embed(rich) is None
    np.testing.assert_array_equal(other.obsm["X_cfm"], rich.obsm["X_cfm"])


def test_dtypes_shapes_and_record(few: AnnData, said: list[str]) -> None:
    cfm.tl.embed(few)
    spec = models.info("cfm-mini")
    assert few.obsm["X_cfm"].shape == (60, spec.dim)
    assert few.obsm["X_cfm"].dtype == np.float32
    assert few.obs["cfm_n_genes"].dtype == np.int32
    record = few.uns["cfm"]["X_cfm"]
    assert record["function"] == "cfm.tl.embed"
    assert (record["model"], record["model_version"], record["model_digest"]) == (spec.name, spec.version, spec.digest)
    assert (record["counts"], record["gene_column"], record["species"]) == ("X", "var_names", "human")
    coverage = record["coverage"]
    matched = known_tokens(few) >= 0
    assert (coverage["n_genes"], coverage["n_matched"]) == (few.n_vars, matched.sum())
    np.testing.assert_allclose(coverage["share_of_counts"], few.X[:, matched].sum() / few.X.sum())
    (line,) = (message for message in said if message.startswith("INFO embed:"))
    for told in ("counts from X", f"{matched.sum():,} of 765 genes", f"{coverage['share_of_counts']:.1%}", spec.digest):
        assert told in line


def test_key_added(few: AnnData, digests: Digests) -> None:
    before = digests(few)
    cfm.tl.embed(few, key_added="X_mine")
    assert digests(few).keys() - before.keys() == {"obsm[X_mine]", "obs[X_mine_n_genes]", "uns[cfm]"}
    assert few.uns["cfm"].keys() == {"X_mine"}
    np.testing.assert_array_equal(few.obsm["X_mine"], vectors(few))


def test_key_added_goes_for_gene_vectors_too(few: AnnData) -> None:
    # Two models must be able to leave their gene vectors in one object.
    cfm.tl.embed(few, genes=True, key_added="X_mine")
    assert list(few.varm) == ["X_mine_genes"]


def test_overwriting_is_allowed_and_said(few: AnnData, said: list[str]) -> None:
    few.obsm["X_cfm"] = np.zeros((60, 3))
    cfm.tl.embed(few)
    assert "INFO obsm['X_cfm'] exists and is overwritten" in said
    assert few.obsm["X_cfm"].shape[1] == models.info("cfm-mini").dim
    said.clear()
    cfm.tl.embed(few, key_added="X_new")
    assert not any("overwritten" in message for message in said)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_results_survive_files(few: AnnData, tmp_path: Path, kind: str) -> None:
    cfm.tl.embed(few, genes=True)
    path = tmp_path / f"cells.{kind}"
    getattr(few, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    np.testing.assert_array_equal(back.obsm["X_cfm"], few.obsm["X_cfm"])
    np.testing.assert_array_equal(back.varm["cfm_genes"], few.varm["cfm_genes"])
    assert back.obs["cfm_n_genes"].dtype == np.int32
    same_record(back.uns["cfm"], few.uns["cfm"])


def same_record(back: Any, made: Any) -> None:
    assert back.keys() == made.keys()
    for key, value in made.items():
        if isinstance(value, dict):
            same_record(back[key], value)
        else:
            np.testing.assert_array_equal(back[key], value)


def test_a_view_becomes_an_object_of_its_own(pbmc: AnnData, digests: Digests) -> None:
    before = digests(pbmc)
    view = pbmc[10:40, 100:]
    with pytest.warns(ImplicitModificationWarning):
        cfm.tl.embed(view)
    assert digests(pbmc) == before
    assert not view.is_view
    np.testing.assert_array_equal(view.obsm["X_cfm"], vectors(pbmc[10:40, 100:].copy()))


def test_a_file_opened_for_reading_only_is_not_touched(few: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    few.write_h5ad(path)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.chmod(0o444)
    backed = ad.read_h5ad(path, backed="r")
    np.testing.assert_array_equal(vectors(backed), vectors(few))
    assert backed.isbacked
    with pytest.raises(OptionError, match="backed object cannot be copied.*Leave out copy=True"):
        cfm.tl.embed(backed, copy=True)
    backed.file.close()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_a_view_on_a_backed_file_is_refused_before_the_work(few: AnnData, tmp_path: Path, said: list[str]) -> None:
    few.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(OptionError, match=r"view.*backed.*to_memory\(\)"):
        cfm.tl.embed(backed[:10])
    assert not any("embed:" in message for message in said)


def test_accessor_is_the_function(few: AnnData) -> None:
    expected = cfm.tl.embed(few, key_added="X_a", copy=True)
    assert expected is not None
    assert few.cfm.embed(key_added="X_a") is None
    np.testing.assert_array_equal(few.obsm["X_a"], expected.obsm["X_a"])
    copied = few.cfm.embed(copy=True)
    assert "X_cfm" in copied.obsm
    assert "X_cfm" not in few.obsm
    assert {"embed", "annotate", "tokenize"} <= set(dir(few.cfm))
    assert "embed()" in repr(few.cfm)
    with pytest.raises(AttributeError, match=r"has no 'embd'. It has \[.*'embed'"):
        few.cfm.embd()


# Few cells, empty cells


def test_no_cells(few: AnnData, said: list[str]) -> None:
    none = few[:0].copy()
    cfm.tl.embed(none, genes=True)
    assert none.obsm["X_cfm"].shape == (0, models.info("cfm-mini").dim)
    assert none.obs["cfm_n_genes"].dtype == np.int32
    assert not any("have no gene" in message for message in said)


def test_one_cell(few: AnnData, expected: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(vectors(few[:1].copy()), expected[:1])


def test_empty_cells_get_zeros_a_counted_warning_and_no_trouble_later(
    few: AnnData, expected: NDArray[np.float32], emptied: Emptied, said: list[str]
) -> None:
    adata = emptied(few, [0, 17, 59])
    got = vectors(adata)
    kept = adata.obs["cfm_n_genes"] > 0
    assert np.flatnonzero(~kept).tolist() == [0, 17, 59]
    assert not got[~kept].any()
    np.testing.assert_array_equal(got[kept], expected[kept])
    (warning,) = (message for message in said if "have no gene" in message)
    assert warning.startswith("WARNING 3 of 60 cells have no gene that the model reads")
    assert "adata[adata.obs['cfm_n_genes'] > 0]" in warning
    sc.pp.neighbors(adata, n_neighbors=5, use_rep="X_cfm")
    assert adata.obsp["distances"].nnz >= 60 * 4
    assert np.isfinite(adata.obsp["connectivities"].data).all()


def test_cells_whose_genes_are_all_unknown_count_as_empty(few: AnnData, said: list[str]) -> None:
    lost = np.flatnonzero(known_tokens(few) < 0)
    dense = few.X.toarray()
    dense[3, np.setdiff1d(np.arange(few.n_vars), lost)] = 0
    dense[3, lost] = 1
    few.X = sp.csr_matrix(dense)
    assert not vectors(few)[3].any()
    assert few.obs["cfm_n_genes"].iloc[3] == 0
    assert any(message.startswith("WARNING 1 of 60 cells") for message in said)


def test_all_cells_empty(few: AnnData, emptied: Emptied, said: list[str]) -> None:
    adata = emptied(few, list(range(60)))
    assert not vectors(adata).any()
    assert any(message.startswith("WARNING 60 of 60 cells") for message in said)


# Gene vectors


def test_gene_vectors_are_in_the_order_of_var(few: AnnData) -> None:
    cfm.tl.embed(few, genes=True)
    model = models.load("cfm-mini", device="cpu")
    tokens = known_tokens(few)
    got = few.varm["cfm_genes"]
    assert got.dtype == np.float32
    assert np.isnan(got[tokens < 0]).all()
    assert (tokens < 0).any()
    np.testing.assert_array_equal(got[tokens >= 0], model.gene_vectors()[tokens[tokens >= 0]])


def test_gene_vectors_where_the_counts_come_from_raw(few: AnnData, log_normalise: LogNormalise) -> None:
    few.raw = few.copy()
    log_normalise(few)
    small = few[:, ::3].copy()
    cfm.tl.embed(small, genes=True)
    tokens = known_tokens(small)
    assert small.varm["cfm_genes"].shape[0] == small.n_vars < few.n_vars
    np.testing.assert_array_equal(np.isnan(small.varm["cfm_genes"]).all(axis=1), tokens < 0)


def test_gene_vectors_of_few_genes_beside_a_raw_of_many(
    few: AnnData, expected: NDArray[np.float32], log_normalise: LogNormalise
) -> None:
    # 30 genes would be too few to read a cell from; here they are only asked for their own vectors.
    few.raw = few.copy()
    log_normalise(few)
    small = few[:, :30].copy()
    np.testing.assert_array_equal(vectors(small, genes=True), expected)
    assert small.varm["cfm_genes"].shape[0] == 30


# Tokens that were stored


def test_stored_tokens_give_the_same_vectors(few: AnnData, expected: NDArray[np.float32], emptied: Emptied) -> None:
    adata = emptied(few, [4])
    direct = vectors(adata)
    cfm.pp.tokenize(adata)
    adata.X = adata.X * 0  # not looked at
    np.testing.assert_array_equal(vectors(adata, tokens="cfm_tokens"), direct)
    assert adata.uns["cfm"]["X_cfm"]["tokens"] == "cfm_tokens"
    np.testing.assert_array_equal(adata.obs["cfm_n_genes"], adata.obs["cfm_n_tokens"])


def test_tokens_of_another_model_are_refused(few: AnnData, folder: Path) -> None:
    cfm.pp.tokenize(few, model=folder)
    with pytest.raises(OptionError, match=r"made for my-model, not for cfm-mini .*tokenize\(adata, model='cfm-mini'\)"):
        cfm.tl.embed(few, tokens="cfm_tokens")
    assert "X_cfm" not in few.obsm
    np.testing.assert_array_equal(vectors(few, model=folder, tokens="cfm_tokens"), vectors(few, model=folder))


def test_tokens_that_are_missing_or_not_recorded(few: AnnData) -> None:
    with pytest.raises(MissingKeyError, match=r"obsm has no 'cfm_tokens'.*cfm\.pp\.tokenize"):
        cfm.tl.embed(few, tokens="cfm_tokens")
    cfm.pp.tokenize(few)
    del few.uns["cfm"]
    with pytest.raises(OptionError, match="made for no recorded model"):
        cfm.tl.embed(few, tokens="cfm_tokens")


# A model of one's own


def test_a_model_folder(few: AnnData, folder: Path) -> None:
    got = vectors(few, model=folder)
    assert got.shape == (60, 8)
    assert few.uns["cfm"]["X_cfm"]["model"] == "my-model"
    np.testing.assert_array_equal(vectors(few, model=str(folder)), got)


def test_unknown_model_changes_nothing(few: AnnData, digests: Digests) -> None:
    before = digests(few)
    with pytest.raises(UnknownModelError, match="Did you mean 'cfm-mini'"):
        cfm.tl.embed(few, model="cfm-minni")
    assert digests(few) == before


# Values that are no counts: the whole message is a matter of the room `counts`, that it arrives is one of this room


def _negative(adata: AnnData) -> None:
    adata.X.data[5] = -3


def _nan(adata: AnnData) -> None:
    adata.X.data[5] = np.nan


def _infinite(adata: AnnData) -> None:
    adata.X.data[5] = np.inf


def _scaled(adata: AnnData) -> None:
    dense = adata.X.toarray()
    adata.X = (dense - dense.mean(axis=0)) / (dense.std(axis=0) + 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (None, r"X: .*not whole numbers.*\(log-normalised\)"),
        (_negative, r"X: .*minimum -3"),
        (_nan, r"X: .*1 NaN or infinite"),
        (_infinite, r"X: .*1 NaN or infinite"),
        (_scaled, r"X: .*\(scaled or centred\)"),
    ],
    ids=["log-normalised", "negative", "NaN", "infinite", "scaled"],
)
def test_what_is_no_count_is_an_error(
    few: AnnData, spoil: LogNormalise | None, message: str, digests: Digests, log_normalise: LogNormalise
) -> None:
    (spoil or log_normalise)(few)
    before = digests(few)
    with pytest.raises(CountsError, match=message) as raised:
        cfm.tl.embed(few)
    assert "adata.layers['counts'] = adata.X.copy()" in str(raised.value)
    assert digests(few) == before


def test_a_bad_value_late_in_the_file_is_found(pbmc: AnnData) -> None:
    # Between the blocks of the sample, so that only the stream can see it.
    big = ad.concat([pbmc] * 3, index_unique="-")
    big.X.data[big.X.indptr[400]] = 0.5
    with cfm.settings.override(chunk_cells=64), pytest.raises(CountsError, match="cells 384 to 447"):
        cfm.tl.embed(big)
    assert "X_cfm" not in big.obsm


def test_no_gene_known_is_an_error(few: AnnData) -> None:
    few.var_names = [f"feature_{i}" for i in range(few.n_vars)]
    with pytest.raises(GeneMatchError, match=r"Only 0 of 765 genes.*'feature_0'(.|\n)*gene_column="):
        cfm.tl.embed(few)


def test_what_is_no_object_is_an_error() -> None:
    with pytest.raises(OptionError, match="got str"):
        cfm.tl.embed("cells.h5ad")  # type: ignore[arg-type]


def test_tokens_without_their_values_are_refused(few: AnnData) -> None:
    cfm.pp.tokenize(few)
    del few.obsm["cfm_values"]
    with pytest.raises(MissingKeyError, match=r"'cfm_tokens' but not 'cfm_values'"):
        cfm.tl.embed(few, tokens="cfm_tokens")


def test_a_key_of_ours_that_holds_something_else_is_refused_before_the_work(few: AnnData) -> None:
    few.uns["cfm"] = "mine"
    with pytest.raises(OptionError, match=r"uns\['cfm'\] is kept for the records of cfm, and holds str"):
        cfm.tl.embed(few)
    assert "X_cfm" not in few.obsm


def test_a_subset_of_genes_is_a_warning(few: AnnData, said: list[str]) -> None:
    cfm.tl.embed(few)
    assert any(line.startswith("WARNING only 742 of the model's 12,000 genes are in this object") for line in said)


@pytest.mark.parametrize("key", ["a/b", ""])
def test_keys_that_files_refuse_are_refused_before_the_work(few: AnnData, key: str) -> None:
    for function in (cfm.tl.embed, cfm.tl.annotate, cfm.pp.tokenize):
        with pytest.raises(OptionError, match="cannot be written to a file"):
            function(few, key_added=key)
    assert not few.obsm


def test_raw_can_be_named(few: AnnData) -> None:
    counted = few.copy()
    few.raw = few
    few.X = few.X * 2
    cfm.tl.embed(few, layer="raw")
    assert few.uns["cfm"]["X_cfm"]["counts"] == "raw.X"
    few.layers["raw"] = counted.X
    cfm.tl.embed(few, layer="raw")
    assert few.uns["cfm"]["X_cfm"]["counts"] == "layers['raw']"


def test_a_mistyped_layer_names_the_near_one(few: AnnData) -> None:
    few.layers["counts"] = few.X
    with pytest.raises(MissingKeyError, match=r"no 'count'\. Did you mean 'counts'\?"):
        cfm.tl.embed(few, layer="count")
