"""``--option``: what only some models have, by the name that their family uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData

import cfm
from cfm.cli import main

DATA = Path(__file__).parents[1] / "data" / "fixtures"
CELLS, MODEL = DATA / "cells" / "cells.h5ad", DATA / "geneformer" / "V2_mlm"


def test_options_reach_the_model_and_columns_of_obs_are_read(
    tmp_path: Path, kind: str, save: Callable[[AnnData, str], Path], read: Callable[[Path], AnnData]
) -> None:
    adata = ad.read_h5ad(CELLS)
    cells, out = save(adata, f"cells.{kind}"), tmp_path / f"out.{kind}"
    options = ["--option", "emb_layer=0", "--option", "n_counts=n_counts", "--genes", "contextual"]
    assert main(["embed", str(cells), "-o", str(out), "--model", str(MODEL), *options, "--quiet"]) == 0
    written = read(out)
    cfm.tl.embed(adata, model=MODEL, emb_layer=0, n_counts="n_counts", genes="contextual", device="cpu")
    np.testing.assert_array_equal(written.obsm["X_cfm"], adata.obsm["X_cfm"])
    np.testing.assert_array_equal(written.varm["cfm_genes"], adata.varm["cfm_genes"])
    # What was read to be looked at is still there, and stands there once.
    assert list(written.obs.columns) == [*ad.read_h5ad(CELLS).obs.columns, "cfm_n_genes"]
    assert written.obs["source"].tolist() == adata.obs["source"].tolist()


def test_results_that_were_there_before_are_still_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.h5ad"
    command = ["annotate", str(out), "--inplace", "--model", str(MODEL), "--reference", str(CELLS)]
    ad.read_h5ad(CELLS).write_h5ad(out)
    command += ["--labels-key", "source", "--n-neighbors", "1", "--option", "emb_layer=0", "--quiet"]
    for _ in range(2):  # the second time, all that is written stands there already
        assert main(command) == 0
        assert "unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("nonsense=1", "There is no option nonsense=: V2_mlm (family geneformer) takes precision=, dictionaries=,"),
        ("emb_layer=7", "emb_layer=7: 0 is the last layer"),
        ("emb_layer=last", "emb_layer='last': 0 is the last layer"),
        ("n_counts=source", "obs['source'] holds"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str) -> None:
    out = tmp_path / "out.h5ad"
    assert main(["embed", str(CELLS), "-o", str(out), "--model", str(MODEL), "--option", option, "-q"]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("option", ["emb_layer", "=3", "emb layer=0", ""])
def test_what_is_no_pair_is_wrong_usage(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["embed", str(CELLS), "-o", "x.h5ad", "--option", option])
    assert raised.value.code == 2
    assert "is not of the form NAME=VALUE" in capsys.readouterr().err
