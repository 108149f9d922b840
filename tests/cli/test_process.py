"""embed, annotate and tokenize: files in, files out."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import cfm
from cfm.cli import main


def _same(a, b):
    if sp.issparse(a) or sp.issparse(b):
        assert a.shape == b.shape
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
    else:
        np.testing.assert_array_equal(a, b)


def _assert_equal_to_memory(found, few, *keys):
    """`found` was read from the output, `few` went through the function in memory: X, results and records agree."""
    _same(found.X, few.X)
    assert list(found.obs.columns) == list(few.obs.columns)
    for column in few.obs.columns:
        assert found.obs[column].dtype == few.obs[column].dtype
        assert found.obs[column].tolist() == few.obs[column].tolist()
    assert set(found.obsm) == set(few.obsm)
    for key in few.obsm:
        assert found.obsm[key].dtype == few.obsm[key].dtype
        _same(found.obsm[key], few.obsm[key])
    assert set(found.varm) == set(few.varm)
    for key in few.varm:
        _same(found.varm[key], few.varm[key])
    assert set(found.uns["cfm"]) == set(few.uns["cfm"])
    for key in keys:
        assert set(found.uns["cfm"][key]) == set(few.uns["cfm"][key])
        assert str(found.uns["cfm"][key]["model_digest"]) == few.uns["cfm"][key]["model_digest"]


def test_embed_writes_what_the_function_writes(cells, few, kind, tmp_path, read, content, capsys):
    before = content(cells)
    out = tmp_path / f"out.{kind}"
    assert main(["embed", str(cells), "-o", str(out), "--genes"]) == 0
    cfm.tl.embed(few, genes=True)
    _assert_equal_to_memory(read(out), few, "X_cfm")
    assert content(cells) == before
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(out), "  obs   cfm_n_genes", "  obsm  X_cfm, 60 x 128", "  varm  cfm_genes, 765 x 128"]


def test_annotate_writes_what_the_function_writes(cells, few, kind, tmp_path, read, content, capsys):
    before = content(cells)
    out = tmp_path / f"out.{kind}"
    assert main(["annotate", str(cells), "-o", str(out)]) == 0
    cfm.tl.annotate(few)
    _assert_equal_to_memory(read(out), few, "X_cfm", "cfm_label")
    assert content(cells) == before
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert table[0].split() == ["label", "cells", "mean", "confidence"]
    assert sum(int(line.rsplit(None, 2)[1]) for line in table[1:]) == 60


def test_annotate_from_a_reference_of_the_other_kind(cells, few, pbmc, kind, save, tmp_path, read, content):
    reference = save(pbmc, "reference.zarr" if kind == "h5ad" else "reference.h5ad")
    before = content(reference)
    out = tmp_path / f"out.{kind}"
    words = ["--reference", str(reference), "--labels-key", "cell_type", "--n-neighbors", "5", "--key-added", "mine"]
    assert main(["annotate", str(cells), "-o", str(out), *words]) == 0
    cfm.tl.annotate(few, reference=pbmc, labels_key="cell_type", n_neighbors=5, key_added="mine")
    found = read(out)
    _assert_equal_to_memory(found, few, "mine")
    assert {"mine", "mine_confidence"} < set(found.obs)
    assert content(reference) == before


def test_tokenize_writes_what_the_function_writes(cells, few, kind, tmp_path, read, content):
    before = content(cells)
    out = tmp_path / f"out.{kind}"
    assert main(["tokenize", str(cells), "-o", str(out)]) == 0
    cfm.pp.tokenize(few)
    _assert_equal_to_memory(read(out), few, "cfm_tokens")
    assert content(cells) == before


def test_stored_tokens_give_the_same_vectors_and_stay(cells, few, kind, tmp_path, read):
    out = tmp_path / f"out.{kind}"
    assert main(["tokenize", str(cells), "-o", str(out)]) == 0
    tokens = read(out).obsm["cfm_tokens"]
    assert main(["embed", str(out), "--inplace", "--tokens", "cfm_tokens"]) == 0
    cfm.tl.embed(few)
    found = read(out)
    np.testing.assert_array_equal(found.obsm["X_cfm"], few.obsm["X_cfm"])
    _same(found.obsm["cfm_tokens"], tokens)
    assert set(found.uns["cfm"]) == {"cfm_tokens", "X_cfm"}


def test_options_reach_the_function(few, kind, save, tmp_path, read):
    few.layers["mine"] = few.X
    few.X = few.X.log1p()
    few.var["symbols"] = few.var_names
    few.var_names = [f"gene{i}" for i in range(few.n_vars)]
    cells = save(few, f"cells.{kind}")
    out = tmp_path / f"out.{kind}"
    words = ["--layer", "mine", "--gene-column", "symbols", "--species", "human", "--device", "cpu", "--key-added", "E"]
    assert main(["embed", str(cells), "-o", str(out), *words]) == 0
    record = read(out).uns["cfm"]["E"]
    assert (record["counts"], record["gene_column"], record["device"]) == ("layers['mine']", "symbols", "cpu")


def test_a_gene_table_and_raw_counts_of_raw(few, kind, save, tmp_path, read):
    names = list(few.var_names)
    few.var_names = [f"gene{i}" for i in range(few.n_vars)]
    few.raw = few
    few.X = few.X.log1p()
    cells, table, out = save(few, f"cells.{kind}"), tmp_path / "table.tsv", tmp_path / f"out.{kind}"
    table.write_text("".join(f"gene{i}\t{name}\n" for i, name in enumerate(names)))
    assert main(["embed", str(cells), "-o", str(out), "--gene-table", str(table)]) == 0
    found = read(out)
    assert found.uns["cfm"]["X_cfm"]["counts"] == "raw.X"
    _same(found.raw.X, few.raw.X)
    cfm.tl.embed(few, gene_table=table)
    np.testing.assert_array_equal(found.obsm["X_cfm"], few.obsm["X_cfm"])


@pytest.mark.parametrize("matrix", ["dense", "csc"])
def test_other_matrices(few, kind, matrix, save, tmp_path, read):
    expected = cfm.tl.embed(few, copy=True).obsm["X_cfm"]
    few.X = few.X.toarray() if matrix == "dense" else few.X.tocsc()
    cells, out = save(few, f"cells.{kind}"), tmp_path / f"out.{kind}"
    assert main(["embed", str(cells), "-o", str(out)]) == 0
    found = read(out)
    np.testing.assert_array_equal(found.obsm["X_cfm"], expected)
    _same(found.X, few.X)


def test_counts_in_a_layer_of_an_object_without_x(few, kind, save, tmp_path, read):
    few.layers["counts"] = few.X
    few.X = None
    cells, out = save(few, f"cells.{kind}"), tmp_path / f"out.{kind}"
    assert main(["embed", str(cells), "-o", str(out)]) == 0
    found = read(out)
    assert found.X is None
    assert found.obsm["X_cfm"].shape == (60, 128)


def test_results_of_earlier_calls_stay_and_own_keys_are_overwritten(cells, kind, read, said):
    assert main(["embed", str(cells), "--inplace", "--key-added", "first"]) == 0
    assert main(["embed", str(cells), "--inplace"]) == 0
    assert main(["annotate", str(cells), "--inplace"]) == 0
    found = read(cells)
    assert set(found.obsm) == {"first", "X_cfm"}
    assert set(found.uns["cfm"]) == {"first", "X_cfm", "cfm_label"}
    assert list(found.obs.columns).count("cfm_n_genes") == 1
    assert said.count("INFO obsm['X_cfm'] exists and is overwritten") == 1
    assert "INFO obs['cfm_n_genes'] exists and is overwritten" in said


def test_an_error_of_the_function_speaks_of_options(few, save, tmp_path, capsys):
    few.X = few.X.log1p()
    cells, out = save(few, "cells.h5ad"), tmp_path / "out.h5ad"
    assert main(["embed", str(cells), "-o", str(out)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("cfm: error: No raw counts found. Looked at:\n")
    assert captured.err.endswith("On the command line: layer= is --layer.\n")
    assert captured.out == ""
    assert not out.exists()


def test_an_unknown_model_is_an_error(cells, tmp_path, capsys):
    assert main(["embed", str(cells), "--inplace", "--model", "cfm-mimi"]) == 1
    assert "Did you mean 'cfm-mini'?" in capsys.readouterr().err


def test_labels_key_without_a_column_lists_the_columns(cells, pbmc, save, capsys):
    reference = save(pbmc, "reference.h5ad")
    words = ["--reference", str(reference), "--labels-key", "celltype"]
    assert main(["annotate", str(cells), "--inplace", *words]) == 1
    assert "It has ['bulk_labels', 'n_counts', 'cell_type']" in capsys.readouterr().err


def test_integrate_writes_what_the_function_writes(few, kind, save, tmp_path, read, content):
    few.obs["half"] = ["odd", "even"] * (few.n_obs // 2)
    cells, out = save(few, f"cells.{kind}"), tmp_path / f"out.{kind}"
    before = content(cells)
    assert main(["integrate", str(cells), "-o", str(out), "--batch-key", "half"]) == 0
    cfm.tl.integrate(few, batch_key="half")
    _assert_equal_to_memory(read(out), few, "X_cfm_integrated")
    assert content(cells) == before


def test_integrate_takes_vectors_that_are_there(few, kind, save, tmp_path, read):
    few.obs["half"] = ["odd", "even"] * (few.n_obs // 2)
    cfm.tl.embed(few)
    cells, out = save(few, f"cells.{kind}"), tmp_path / f"out.{kind}"
    words = ["--batch-key", "half", "--method", "harmony", "--use-rep", "X_cfm"]
    assert main(["integrate", str(cells), "-o", str(out), *words]) == 0
    found = read(out)
    assert set(found.obsm) >= {"X_cfm", "X_cfm_integrated"}
    _same(found.obsm["X_cfm"], few.obsm["X_cfm"])
