"""``cfm.tl.integrate`` on real cells."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

import cfm
from cfm._core.errors import MissingKeyError, OptionError
from cfm.counts import find_counts
from cfm.integration import align, all_counts, build_space, expression, find_batches


@pytest.fixture
def batches(pbmc: AnnData) -> AnnData:
    pbmc.obs["half"] = np.where(np.arange(pbmc.n_obs) % 2, "odd", "even")
    return pbmc


def test_writes_vectors_and_a_record(batches: AnnData, tmp_path: Path) -> None:
    before = batches.copy()
    assert cfm.tl.integrate(batches, batch_key="half") is None
    vectors = batches.obsm["X_cfm_integrated"]
    assert vectors.dtype == np.float32
    assert vectors.shape[0] == batches.n_obs
    assert np.isfinite(vectors).all()
    record = batches.uns["cfm"]["X_cfm_integrated"]
    assert record["method"] == "auto"
    assert record["batch_key"] == "half"
    assert set(record["explained"]) == {"pca", "model"}
    assert vectors.shape[1] == 20 + 128 * ("model" in record["parts"])
    assert (batches.X != before.X).nnz == 0
    assert list(batches.obs) == list(before.obs)
    batches.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert again.uns["cfm"]["X_cfm_integrated"]["parts"].tolist() == record["parts"]


def test_the_same_call_gives_the_same_vectors(batches: AnnData) -> None:
    first = cfm.tl.integrate(batches, batch_key="half", copy=True)
    second = cfm.tl.integrate(batches, batch_key="half", copy=True)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.obsm["X_cfm_integrated"], second.obsm["X_cfm_integrated"])
    assert "X_cfm_integrated" not in batches.obsm


def test_batches_that_lie_far_apart_are_mixed_and_types_stay(batches: AnnData) -> None:
    """Each gene of one batch is caught at another rate (log-normal, sigma 2); Harmony alone leaves half of that."""
    counts = all_counts(find_counts(batches)).toarray()
    odd = (batches.obs["half"] == "odd").to_numpy()
    rng = np.random.default_rng(0)
    rates = np.exp(rng.normal(0, 2, counts.shape[1]))
    counts[odd] = rng.poisson(counts[odd] * rates)
    adata = AnnData(sp.csr_matrix(counts.astype(np.float32)), batches.obs, batches.var)
    cfm.tl.integrate(adata, batch_key="half")
    cfm.tl.embed(adata)
    by_half = find_batches(adata.obs, "half")
    apart = build_space(expression(find_counts(adata), by_half).values, adata.obsm["X_cfm"], by_half).vectors
    label = adata.obs["bulk_labels"].to_numpy()

    def shares(space: NDArray[np.float32]) -> tuple[float, float]:
        """Of a cell's neighbours, those of the other batch and those of its type."""
        near = NearestNeighbors(n_neighbors=16).fit(space).kneighbors(return_distance=False)
        return float((odd[near] != odd[:, None]).mean()), float((label[near] == label[:, None]).mean())

    mixed, kept = shares(adata.obsm["X_cfm_integrated"])
    assert mixed > 0.4
    assert shares(align(apart, by_half))[0] < 0.3
    assert shares(apart)[0] < 0.02
    assert kept > shares(apart)[1]


def test_zero_shot_is_the_embedding(batches: AnnData) -> None:
    cfm.tl.embed(batches)
    cfm.tl.integrate(batches, batch_key="half", method="zero_shot", key_added="X_zero")
    np.testing.assert_array_equal(batches.obsm["X_zero"], batches.obsm["X_cfm"])


def test_vectors_that_are_there_are_taken(batches: AnnData) -> None:
    cfm.tl.embed(batches)
    cfm.tl.integrate(batches, batch_key="half", method="harmony")
    cfm.tl.integrate(batches, batch_key="half", method="harmony", use_rep="X_cfm", key_added="X_kept")
    np.testing.assert_array_equal(batches.obsm["X_kept"], batches.obsm["X_cfm_integrated"])
    assert batches.uns["cfm"]["X_kept"]["use_rep"] == "X_cfm"


def test_a_condition_stays(batches: AnnData) -> None:
    batches.obs["condition"] = batches.obs["half"]
    cfm.tl.integrate(batches, batch_key="half", condition_key="condition", method="harmony")
    cfm.tl.integrate(batches, batch_key="half", method="zero_shot", key_added="X_zero")
    # Each condition has one batch: nothing can be taken out.
    np.testing.assert_array_equal(batches.obsm["X_cfm_integrated"], batches.obsm["X_zero"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_key": "donor"}, MissingKeyError, "obs has no 'donor'"),
        (
            {"batch_key": "half", "method": "best"},
            OptionError,
            "method='best': type one of 'auto', 'harmony', 'scgpt', 'scvi', 'zero_shot'",
        ),
        ({"batch_key": "half", "use_rep": "X_none"}, MissingKeyError, "obsm has no 'X_none'"),
        (
            {"batch_key": "half", "use_rep": "X_pca", "model": "scgpt"},
            OptionError,
            "model= does nothing: leave one out",
        ),
        ({"batch_key": "half", "condition_key": "drug"}, MissingKeyError, "obs has no 'drug'.*type condition_key="),
        ({"batch_key": "half", "key_added": "a/b"}, OptionError, "slashes"),
    ],
)
def test_bad_input_leaves_no_trace(
    batches: AnnData, arguments: dict[str, str], error: type[Exception], message: str
) -> None:
    keys = set(batches.obsm)
    with pytest.raises(error, match=message):
        cfm.tl.integrate(batches, **arguments)  # type: ignore[arg-type]
    assert set(batches.obsm) == keys
    assert "cfm" not in batches.uns


def test_cells_without_counts_are_counted(batches: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    counts = batches.X.toarray()
    counts[:30] = 0
    adata = AnnData(sp.csr_matrix(counts), batches.obs, batches.var)
    cfm.tl.integrate(adata, batch_key="half")
    assert "30 of 700 cells have no gene that the model reads" in caplog.text
    assert np.isfinite(adata.obsm["X_cfm_integrated"]).all()


def test_small_batches_leave_the_model_out_and_the_record_can_be_written(batches: AnnData, tmp_path: Path) -> None:
    batches.obs["small"] = (np.arange(batches.n_obs) // 35).astype(str)
    cfm.tl.integrate(batches, batch_key="small")
    assert batches.obsm["X_cfm_integrated"].shape == (batches.n_obs, 20)
    batches.write_h5ad(tmp_path / "cells.h5ad")
    record = ad.read_h5ad(tmp_path / "cells.h5ad").uns["cfm"]["X_cfm_integrated"]
    assert record["parts"].tolist() == ["pca"]
    assert not record.get("explained")


def test_vectors_with_gaps_are_refused(batches: AnnData) -> None:
    batches.obsm["X_mine"] = np.full((batches.n_obs, 3), np.nan)
    with pytest.raises(OptionError, match="missing or infinite"):
        cfm.tl.integrate(batches, batch_key="half", use_rep="X_mine")
