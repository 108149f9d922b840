"""The packaged real cells."""

from __future__ import annotations

import numpy as np
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

import cfm
from cfm import models
from cfm.models.reference import UNKNOWN


def test_counts_equal_those_of_the_other_rule(pbmc: AnnData) -> None:
    # Our rule divides by the smallest value of a cell; this one takes the library size, which scanpy packages too.
    packaged = sc.datasets.pbmc68k_reduced()
    size = packaged.obs["n_counts"].to_numpy()[:, None]
    other = np.rint(np.expm1(packaged.raw.X.toarray().astype(np.float64)) * size / 1e4)
    np.testing.assert_array_equal(pbmc.X.toarray(), other)
    assert list(pbmc.obs_names) == list(packaged.obs_names)
    assert list(pbmc.var_names) == list(packaged.raw.var_names)
    np.testing.assert_array_equal(pbmc.obs["bulk_labels"], packaged.obs["bulk_labels"])


def test_form(pbmc: AnnData) -> None:
    assert pbmc.shape == (700, 765)
    assert sp.issparse(pbmc.X)
    assert pbmc.X.format == "csr"
    assert pbmc.X.dtype == np.float32
    assert pbmc.X.data.min() == 1
    assert pbmc.X.data.max() == 259
    assert (pbmc.obs["n_counts"] >= np.asarray(pbmc.X.sum(axis=1)).ravel()).all()


def test_cell_types_bear_the_names_of_the_packaged_reference(pbmc: AnnData) -> None:
    reference = models.load("cfm-mini", device="cpu").reference()
    # A label that the reference cannot give would count as an error of the model.
    assert set(pbmc.obs["cell_type"].cat.categories) <= {*reference.names, UNKNOWN}
    assert pbmc.obs["cell_type"].notna().all()
    assert pbmc.obs["cell_type"].value_counts().to_dict() == {
        "dendritic cell": 240,
        "monocyte": 129,
        "CD8+ T cell": 97,
        "B cell": 95,
        "CD4+ T cell": 95,
        "NK cell": 31,
        "progenitor": 13,
    }


def test_every_call_gives_a_new_object(pbmc: AnnData) -> None:
    pbmc.X.data[:] = 0
    assert cfm.datasets.pbmc68k().X.data.min() == 1
