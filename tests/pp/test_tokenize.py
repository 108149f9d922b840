"""Stored tokens: what they are, what they depend on, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData, ImplicitModificationWarning

import cfm
from cfm import models
from cfm.errors import CountsError, GeneMatchError, UnknownModelError
from cfm.genes import match

Digests = Callable[[AnnData], dict[str, str]]
Emptied = Callable[[AnnData, list[int]], AnnData]
LogNormalise = Callable[[AnnData], None]


def rows(adata: AnnData, key: str = "cfm_tokens", values: str = "cfm_values") -> list[tuple[bytes, bytes]]:
    """Tokens and values of every cell, as bytes."""
    ids, numbers = sp.csr_array(adata.obsm[key]), sp.csr_array(adata.obsm[values])
    assert (ids.dtype, numbers.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(ids.indptr, numbers.indptr)
    ends = zip(ids.indptr[:-1], ids.indptr[1:], strict=True)
    return [(ids.data[a:b].tobytes(), numbers.data[a:b].tobytes()) for a, b in ends]


def tokens(adata: AnnData, **arguments: Any) -> list[tuple[bytes, bytes]]:
    cfm.pp.tokenize(adata, **arguments)
    return rows(adata)


def test_what_is_written(few: AnnData, digests: Digests, said: list[str]) -> None:
    before = digests(few)
    cfm.pp.tokenize(few)
    after = digests(few)
    assert after.keys() - before.keys() == {"obsm[cfm_tokens]", "obsm[cfm_values]", "obs[cfm_n_tokens]", "uns[cfm]"}
    assert all(after[key] == before[key] for key in before)
    model = models.load("cfm-mini", device="cpu")
    ids, values = few.obsm["cfm_tokens"], few.obsm["cfm_values"]
    assert ids.format == values.format == "csr"
    assert ids.shape == values.shape == (60, model.spec.max_tokens)
    assert (ids.dtype, values.dtype, few.obs["cfm_n_tokens"].dtype) == (np.int32, np.float32, np.int32)
    np.testing.assert_array_equal(np.diff(ids.indptr), few.obs["cfm_n_tokens"])
    batch = model.tokenizer(match(few.var, model.vocabulary))(few.X, 0)
    np.testing.assert_array_equal(ids.data, batch.ids)
    np.testing.assert_array_equal(values.data, batch.values)
    for cell in range(60):
        n = few.obs["cfm_n_tokens"].iloc[cell]
        np.testing.assert_array_equal(ids.indices[ids.indptr[cell] : ids.indptr[cell + 1]], np.arange(n))
    record = few.uns["cfm"]["cfm_tokens"]
    assert (record["function"], record["values_key"], record["model"]) == ("cfm.pp.tokenize", "cfm_values", "cfm-mini")
    assert record["coverage"]["n_genes"] == 765
    assert any(message.startswith("INFO tokenize: counts from X") for message in said)


def test_token_zero_is_a_token(few: AnnData, folder: Path) -> None:
    model = models.load(folder)
    first = int(np.flatnonzero(match(few.var, model.vocabulary).tokens == 0)[0])
    has_it = few.X[:, [first]].toarray().ravel() > 0
    assert has_it.any()
    cfm.pp.tokenize(few, model=folder)
    stored = few.obsm["cfm_tokens"]
    starts = stored.data[stored.indptr[:-1][np.diff(stored.indptr) > 0]]
    # Tokens are ascending, so token 0 is the first of every cell that has it.
    np.testing.assert_array_equal(starts == 0, has_it[np.diff(stored.indptr) > 0])
    np.testing.assert_array_equal(
        few.obs["cfm_n_tokens"], (few.X[:, match(few.var, model.vocabulary).tokens >= 0] > 0).sum(1).A1
    )


# What tokens depend on


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
def test_storage_changes_nothing(few: AnnData, form: str, stored_as: Callable[[AnnData, str], AnnData]) -> None:
    expected = tokens(few.copy())
    assert tokens(stored_as(few, form)) == expected


def test_other_cells_and_orders_change_nothing(few: AnnData) -> None:
    expected = tokens(few.copy())
    rng = np.random.default_rng(0)
    cells, genes = rng.permutation(60), rng.permutation(few.n_vars)
    assert tokens(few[cells].copy()) == [expected[cell] for cell in cells]
    assert tokens(few[:, genes].copy()) == expected
    for cell in (0, 30, 59):
        assert tokens(few[[cell]].copy()) == [expected[cell]]


@pytest.mark.parametrize(
    "setting",
    [{"chunk_cells": 1}, {"chunk_cells": 7}, {"chunk_cells": 2048}, {"pack_tokens": 1}, {"threads": 1}, {"threads": 2}],
    ids=str,
)
def test_settings_change_nothing(pbmc: AnnData, setting: dict[str, int]) -> None:
    expected = tokens(pbmc.copy())
    with cfm.settings.override(**setting):
        assert tokens(pbmc) == expected


# What becomes of stored tokens


def test_stored_tokens_follow_their_cells(few: AnnData) -> None:
    expected = tokens(few)
    order = np.random.default_rng(0).permutation(60)[:20]
    part = few[order].copy()
    assert rows(part) == [expected[cell] for cell in order]
    cfm.tl.embed(part, tokens="cfm_tokens")
    cfm.tl.embed(few, tokens="cfm_tokens")
    np.testing.assert_array_equal(part.obsm["X_cfm"], few.obsm["X_cfm"][order])


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_concatenation_loses_nothing(few: AnnData, join: str, emptied: Emptied) -> None:
    first, second = few[:25].copy(), emptied(few, [30])[25:, ::-1].copy()
    expected = tokens(first) + tokens(second)
    both = ad.concat([first, second], join=join, uns_merge="same")
    assert rows(both) == expected
    assert both.obs["cfm_n_tokens"].iloc[30] == 0


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_results_survive_files(few: AnnData, tmp_path: Path, kind: str, emptied: Emptied) -> None:
    adata = emptied(few, [3])
    expected = tokens(adata)
    path = tmp_path / f"cells.{kind}"
    getattr(adata, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    assert rows(back) == expected
    assert back.uns["cfm"]["cfm_tokens"].keys() == adata.uns["cfm"]["cfm_tokens"].keys()
    cfm.tl.embed(back, tokens="cfm_tokens")
    cfm.tl.embed(adata)
    np.testing.assert_array_equal(back.obsm["X_cfm"], adata.obsm["X_cfm"])


@pytest.mark.parametrize(
    "read", [lambda path: ad.read_h5ad(path, backed="r"), ad.experimental.read_lazy], ids=["backed", "lazy"]
)
def test_tokens_in_a_file_that_stays_there(few: AnnData, tmp_path: Path, read: Callable[[Path], AnnData]) -> None:
    cfm.pp.tokenize(few)
    few.write_h5ad(tmp_path / "cells.h5ad")
    backed = read(tmp_path / "cells.h5ad")
    cfm.tl.embed(backed, tokens="cfm_tokens")
    cfm.tl.embed(few)
    np.testing.assert_array_equal(backed.obsm["X_cfm"], few.obsm["X_cfm"])


# Habits


def test_nothing_else_is_changed(few: AnnData, digests: Digests, log_normalise: LogNormalise) -> None:
    few.layers["counts"] = few.X.copy()
    few.raw = few.copy()
    log_normalise(few)
    few.obsm["X_pca"] = np.ones((60, 2))
    before = digests(few)
    cfm.pp.tokenize(few)
    after = digests(few)
    assert all(after[key] == before[key] for key in before)


def test_copy(few: AnnData, digests: Digests) -> None:
    before = digests(few)
    other = cfm.pp.tokenize(few, copy=True)
    assert digests(few) == before
    assert other is not None
    assert rows(other) == tokens(few)


def test_key_added(few: AnnData, digests: Digests) -> None:
    before = digests(few)
    cfm.pp.tokenize(few, key_added="mine")
    assert digests(few).keys() - before.keys() == {"obsm[mine]", "obsm[mine_values]", "obs[mine_n_tokens]", "uns[cfm]"}
    assert few.uns["cfm"].keys() == {"mine"}
    assert rows(few, "mine", "mine_values") == tokens(few)
    cfm.tl.embed(few, tokens="mine", key_added="X_a")
    cfm.tl.embed(few, key_added="X_b")
    np.testing.assert_array_equal(few.obsm["X_a"], few.obsm["X_b"])


def test_overwriting_is_allowed_and_said(few: AnnData, said: list[str]) -> None:
    few.obsm["cfm_tokens"] = np.zeros((60, 2))
    cfm.pp.tokenize(few)
    assert "INFO obsm['cfm_tokens'] exists and is overwritten" in said


def test_a_view_becomes_an_object_of_its_own(pbmc: AnnData, digests: Digests) -> None:
    before = digests(pbmc)
    view = pbmc[10:40]
    with pytest.warns(ImplicitModificationWarning):
        cfm.pp.tokenize(view)
    assert digests(pbmc) == before
    assert rows(view) == tokens(pbmc[10:40].copy())


def test_accessor_is_the_function(few: AnnData) -> None:
    expected = tokens(few.copy())
    few.cfm.tokenize()
    assert rows(few) == expected


def test_no_cells_one_cell_and_empty_cells(few: AnnData, emptied: Emptied) -> None:
    none = few[:0].copy()
    cfm.pp.tokenize(none)
    assert none.obsm["cfm_tokens"].shape == (0, models.info("cfm-mini").max_tokens)
    assert rows(none) == []
    cfm.tl.embed(none, tokens="cfm_tokens")
    assert none.obsm["X_cfm"].shape[0] == 0
    assert len(tokens(few[:1].copy())) == 1
    gaps = emptied(few, [0, 59])
    got = tokens(gaps)
    assert [cell for cell, row in enumerate(got) if row == (b"", b"")] == [0, 59]
    assert gaps.obs["cfm_n_tokens"].iloc[0] == 0
    all_empty = emptied(few, list(range(60)))
    assert tokens(all_empty) == [(b"", b"")] * 60


def test_errors_reach_the_user(few: AnnData, log_normalise: LogNormalise) -> None:
    with pytest.raises(UnknownModelError, match="Did you mean 'cfm-mini'"):
        cfm.pp.tokenize(few, model="cfm-mimi")
    normalised = few.copy()
    log_normalise(normalised)
    with pytest.raises(CountsError, match="log-normalised"):
        cfm.pp.tokenize(normalised)
    few.var_names = [f"feature_{i}" for i in range(few.n_vars)]
    with pytest.raises(GeneMatchError, match="Only 0 of 765"):
        cfm.pp.tokenize(few)
    assert "cfm" not in few.uns
