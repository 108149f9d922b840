"""8-bit integers as an option of the families that have large matrix products."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import cfm
from cfm.errors import OptionError

DATA = Path(__file__).parents[1] / "data" / "fixtures"
FOLDERS = ("geneformer/V2_mlm", "scgpt/human")


@pytest.mark.parametrize("folder", FOLDERS)
def test_int8_is_close_and_a_cell_keeps_its_vector(folder: str) -> None:
    adata = ad.read_h5ad(DATA / "cells" / "cells.h5ad")
    cfm.tl.embed(adata, model=DATA / folder, device="cpu")
    exact = adata.obsm["X_cfm"].copy()
    cfm.tl.embed(adata, model=DATA / folder, device="cpu", precision="int8")
    small = adata.obsm["X_cfm"]
    assert adata.uns["cfm"]["X_cfm"]["options"] == {"precision": "int8"}
    read = adata.obs["cfm_n_genes"].to_numpy() > 0
    cosine = (exact * small).sum(1)[read] / np.linalg.norm(exact, axis=1)[read] / np.linalg.norm(small, axis=1)[read]
    assert 0.97 < cosine.min() < 1 - 1e-6

    some = adata[[30, 3, 17]].copy()
    with cfm.settings.override(pack_tokens=300):
        cfm.tl.embed(some, model=DATA / folder, device="cpu", precision="int8")
    np.testing.assert_array_equal(some.obsm["X_cfm"], small[[30, 3, 17]])


def test_precisions_of_a_gpu_are_refused_on_the_cpu() -> None:
    adata = ad.read_h5ad(DATA / "cells" / "cells.h5ad")
    with pytest.raises(OptionError, match="precision='float16' does not go with device 'cpu'"):
        cfm.tl.embed(adata, model=DATA / FOLDERS[0], device="cpu", precision="float16")
    assert "X_cfm" not in adata.obsm
