"""What is opened, what is refused, and that matrices stay on disk."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from mudata import MuData

from cfm._core.errors import OptionError
from cfm.cli import main
from cfm.cli.reading import kind_of, open_cells, read_column


def test_matrices_stay_on_disk(few, kind, save):
    few.layers["counts"] = few.X
    few.raw = few
    few.obsm["X_other"] = np.ones((60, 2))
    with open_cells(save(few, f"cells.{kind}")) as adata:
        for matrix in (adata.X, adata.layers["counts"], adata.raw.X):
            assert not isinstance(matrix, np.ndarray)
            assert not sp.issparse(matrix)
        assert adata.shape == few.shape
        assert adata.var.equals(few.var)
        assert adata.obs.shape[1] == 0
        assert not adata.obsm


def test_dense_matrices_stay_on_disk(few, kind, save):
    few.X = few.X.toarray()
    with open_cells(save(few, f"cells.{kind}")) as adata:
        assert not isinstance(adata.X, np.ndarray)
        np.testing.assert_array_equal(adata.X[3:5], few.X[3:5])


def test_obs_and_obsm_on_request(few, kind, save):
    few.obsm["X_other"] = np.ones((60, 2))
    with open_cells(save(few, f"cells.{kind}"), obs=True, obsm=True) as adata:
        assert adata.obs["cell_type"].tolist() == few.obs["cell_type"].tolist()
        assert set(adata.obsm) == {"X_other"}


def test_one_column(cells, few):
    column = read_column(cells, "cell_type")
    assert column is not None
    assert column.tolist() == few.obs["cell_type"].tolist()
    assert read_column(cells, "none") is None


def _refused(path) -> str:
    with pytest.raises(OptionError) as raised:
        kind_of(path)
    return str(raised.value)


def test_a_missing_file_names_near_ones(cells, kind, tmp_path):
    assert _refused(tmp_path / f"cell.{kind}").endswith(f"Did you mean {cells}?")
    assert f"some of those there: {cells.name}" in _refused(tmp_path / "quite_another.h5ad")
    assert f"There is no folder {tmp_path / 'none'}" in _refused(tmp_path / "none" / "cells.h5ad")


def test_a_missing_file_is_one_line_and_1(tmp_path, capsys):
    assert main(["embed", str(tmp_path / "none.h5ad"), "--inplace"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("cfm: error: ")
    assert message.count("\n") == 1


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text("a,b\n")
    assert "is no HDF5 file" in _refused(path)


def test_a_truncated_file_is_one_line_and_1(few, save, capsys):
    path = save(few, "cells.h5ad")
    path.write_bytes(path.read_bytes()[:2000])
    assert main(["embed", str(path), "--inplace"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("cfm: error: ")
    assert message.count("\n") == 1


def test_another_folder_is_refused(tmp_path):
    assert "no zarr store" in _refused(tmp_path)


def test_a_file_of_10x_is_refused_with_the_way_to_convert_it(tmp_path):
    path = tmp_path / "cells.h5"
    with h5py.File(path, "w") as file:
        file.create_group("matrix")
    assert "sc.read_10x_h5(FILE).write_h5ad(NEW)" in _refused(path)


def test_several_modalities_are_refused_with_the_way_to_take_one(few, tmp_path):
    path = tmp_path / "cells.h5mu"
    other = few[:, :5].copy()
    other.var_names = [f"other{i}" for i in range(5)]
    MuData({"rna": few, "other": other}).write(path)
    assert "['other', 'rna']" in _refused(path)


def test_files_from_before_anndata_0_7_are_refused(few, save):
    path = save(few, "cells.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obs"]
        file["obs"] = np.zeros(60, dtype=[("index", "S5")])
    assert "before anndata 0.7" in _refused(path)
