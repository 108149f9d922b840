"""Expression at a greater depth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData

import cfm
from cfm.cli import main
from cfm.errors import GeneMatchError, OptionError, UnsupportedOutput

DATA = Path(__file__).parents[1] / "data" / "fixtures"
MODEL = DATA / "scfoundation"


@pytest.fixture
def cells() -> AnnData:
    """Real cells, one of them without counts."""
    return ad.read_h5ad(DATA / "cells" / "cells.h5ad")


@pytest.fixture
def six(cells: AnnData) -> AnnData:
    """Six of the cells."""
    return cells[10:16].copy()


def enhanced(adata: AnnData, **options: Any) -> np.ndarray:
    cfm.tl.enhance(adata, model=MODEL, device="cpu", **options)
    return np.array(adata.layers["cfm_enhanced"])


def test_official_expression_in_the_columns_of_the_object(cells: AnnData) -> None:
    """The official code gives a matrix over its own list; here each gene of the object has its prediction."""
    with np.load(MODEL / "tokens.npz") as tokens, np.load(MODEL / "gene_outputs.npz") as genes:
        rows = tokens["nonempty_rows"][genes["five_rows"]]
        expected = genes["expr_f1_five"]
    symbols = [line.split("\t")[0] for line in (MODEL / "OS_scRNA_gene_index.510.tsv").read_text().splitlines()[1:]]
    place = {symbol: i for i, symbol in enumerate(symbols)}
    five = cells[rows].copy()
    before = five.X.copy()
    found = enhanced(five, depth="f1", compat="official", gene_column="var_names")
    assert found.dtype == np.float32
    # As a batch of one: the official batch takes a maximum over all its cells.
    with cfm.settings.override(pack_tokens=512):
        found = enhanced(five, depth="f1", compat="official", gene_column="var_names")
    listed = [name for name in five.var_names if name in place]
    columns = five.var_names.get_indexer(listed)
    np.testing.assert_allclose(found[:, columns], expected[:, [place[name] for name in listed]], atol=1e-5)
    known = five.var["cfm_enhanced"].to_numpy()
    assert known.sum() == 442
    assert np.isnan(found[:, ~known]).all()
    assert np.isfinite(found[:, known]).all()
    assert (five.X != before).nnz == 0


def test_the_record(six: AnnData) -> None:
    cfm.tl.enhance(six, model=MODEL, device="cpu", depth="a1", key_added="deep")
    assert set(six.layers) - {None} == {"deep"}
    record = six.uns["cfm"]["deep"]
    assert (record["function"], record["depth"], record["counts"]) == ("cfm.tl.enhance", "a1", "X")
    assert record["coverage"]["n_matched"] == 442


def test_one_cell_one_row(six: AnnData) -> None:
    expected = enhanced(six)
    for setting in ({"chunk_cells": 2}, {"pack_tokens": 10**5}, {"pack_tokens": 100}):
        with cfm.settings.override(**setting):
            np.testing.assert_array_equal(enhanced(six.copy()), expected)
    np.testing.assert_array_equal(enhanced(six[[4]].copy())[0], expected[4])


@pytest.mark.filterwarnings("ignore:Setting element:anndata.ImplicitModificationWarning")
def test_form(six: AnnData, stored_as: Callable[[AnnData, str], AnnData], form: str) -> None:
    expected = enhanced(six.copy())
    np.testing.assert_array_equal(enhanced(stored_as(six, form)), expected)


def test_the_default_asks_for_more_than_a_cell_has(six: AnnData) -> None:
    np.testing.assert_array_equal(enhanced(six), enhanced(six.copy(), depth="f5"))
    assert np.nanmax(np.abs(enhanced(six) - enhanced(six.copy(), depth="f1"))) > 1e-3


def test_counts_of_raw_and_the_genes_of_the_object(six: AnnData) -> None:
    """An object that is cut to some genes: all are read, and those that are left are written."""
    expected = enhanced(six.copy())
    six.raw = six
    few = six[:, ::7].copy()
    found = enhanced(few, layer="raw")
    np.testing.assert_array_equal(found, expected[:, ::7])
    few.var_names = [f"x{i}" for i in range(few.n_vars)]
    few.var = few.var.drop(columns=few.var.columns)
    with pytest.raises(GeneMatchError, match="there is nothing to write"):
        enhanced(few, layer="raw")


def test_empty_cells_are_zero_and_counted(cells: AnnData, said: list[str]) -> None:
    empty = cells.X.getnnz(axis=1) == 0
    two = cells[np.flatnonzero(empty).tolist() + [0]].copy()
    found = enhanced(two)[:, two.var["cfm_enhanced"]]
    assert (found[0] == 0).all()
    assert (found[1] != 0).all()
    assert any("1 of 2 cells have no gene that the model reads" in line for line in said)


def test_models_that_predict_no_expression(six: AnnData, pbmc: AnnData) -> None:
    for options in ({}, {"depth": "t4"}):
        with pytest.raises(UnsupportedOutput, match="cfm-mini predicts no expression .* families do: scfoundation"):
            cfm.tl.enhance(pbmc, model="cfm-mini", **options)
    with pytest.raises(OptionError, match="depth='deeper'"):
        cfm.tl.enhance(six, model=MODEL, depth="deeper")


def test_a_copy(six: AnnData) -> None:
    other = cfm.tl.enhance(six, model=MODEL, device="cpu", copy=True)
    assert other is not None
    assert "cfm_enhanced" in other.layers
    assert "cfm_enhanced" not in six.layers


def test_command_line(six: AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = enhanced(six.copy(), depth="f2")
    six.layers["other"] = six.X.copy()
    source, target = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
    six.write_h5ad(source)
    call = ["enhance", str(source), "-o", str(target), "--model", str(MODEL), "--device", "cpu", "--depth", "f2"]
    assert main(call) == 0
    assert "cfm_enhanced" in capsys.readouterr().out
    found = ad.read_h5ad(target)
    np.testing.assert_array_equal(found.layers["cfm_enhanced"], expected)
    assert found.var["cfm_enhanced"].sum() == 442
    assert set(found.layers) - {None} == {"other", "cfm_enhanced"}
    assert (found.layers["other"] != six.X).nnz == 0
