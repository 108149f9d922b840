"""``cfm.tl.integrate(method="scgpt")`` with small weights on real cells."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import cfm
from cfm.errors import OptionError

DATA = Path(__file__).parents[1] / "data" / "fixtures"
MODEL = {"model": DATA / "scgpt" / "integration", "heads": 2, "method": "scgpt", "epochs": 1}


@pytest.fixture
def cells() -> AnnData:
    """46 real cells with genes of the model, in two batches."""
    found = ad.read_h5ad(DATA / "cells" / "cells.h5ad")[:46].copy()
    found.obs["donor"] = ["a", "b"] * 23
    return found


def test_the_saved_folder_gives_the_same_vectors(cells: AnnData, tmp_path: Path) -> None:
    before = cells.copy()
    cfm.tl.integrate(cells, batch_key="donor", save=tmp_path / "tuned", **MODEL)
    vectors = cells.obsm["X_cfm_integrated"]
    assert vectors.shape == (46, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    record = cells.uns["cfm"]["X_cfm_integrated"]
    assert (record["method"], record["saved"]) == ("scgpt", str(tmp_path / "tuned"))
    assert (cells.X != before.X).nnz == 0
    cfm.tl.embed(cells, model=tmp_path / "tuned", batch_key="donor")
    np.testing.assert_array_equal(cells.obsm["X_cfm"], vectors)


def test_without_a_folder_nothing_is_left_behind(
    cells: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    cfm.tl.integrate(cells, batch_key="donor", **MODEL)
    assert "saved" not in cells.uns["cfm"]["X_cfm_integrated"]
    assert not list(tmp_path.iterdir())


def test_rna_and_proteins(cells: AnnData) -> None:
    """Proteins that were counted in half of the cells; the counts are those of genes, which are real."""
    chosen = np.argsort(-np.asarray(cells.X.sum(axis=0)).ravel())[:12]
    some = np.arange(0, 46, 2)
    proteins = AnnData(
        sp.csr_matrix(cells.X[some][:, chosen]),
        pd.DataFrame(index=cells.obs_names[some]),
        pd.DataFrame(index=[f"AB{i}" for i in range(12)]),
    )
    mdata = mudata.MuData({"rna": cells, "prot": proteins})
    cfm.tl.integrate(mdata, **MODEL)
    vectors = mdata.obsm["X_cfm_joint"]
    assert vectors.shape == (46, 16)
    assert np.isfinite(vectors).all()
    assert mdata.uns["cfm"]["X_cfm_joint"]["method"] == "scgpt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "cfm-mini", "heads": None}, "method='scgpt' trains a checkpoint of scGPT, and model='cfm-mini'"),
        ({"condition_key": "donor"}, "scGPT's objective cannot keep a condition"),
        ({"impute": ["rna"]}, "impute= goes with method='scvi' only"),
        ({"epochs": None, "reference": "folder"}, "reference= takes models of method='scvi'"),
        ({"use_rep": "X_cfm"}, "use_rep= goes with 'auto', 'harmony' and 'zero_shot' only"),
    ],
)
def test_what_does_nothing_is_refused(cells: AnnData, options: dict[str, object], message: str) -> None:
    given = MODEL | {"batch_key": "donor"} | options
    given = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(OptionError, match=message):
        cfm.tl.integrate(cells, **given)
    assert "X_cfm_integrated" not in cells.obsm
