"""Scores of integration, and their plot."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from anndata import AnnData
from sklearn.neighbors import KNeighborsClassifier

import cfm
from cfm._core.errors import MissingKeyError, OptionError
from cfm.counts import find_counts
from cfm.integration import baselines, expression, find_batches


@pytest.fixture
def cells(pbmc: AnnData) -> AnnData:
    cells = pbmc[:240].copy()
    cells.obs["half"] = np.where(np.arange(cells.n_obs) % 2, "odd", "even")
    kinds = cells.obs["bulk_labels"].astype(str)
    common = kinds.isin(kinds.value_counts().index[:3])
    cells.obs["kind"] = kinds.where(common)
    generator = np.random.default_rng(0)
    cells.obsm["X_perfect"] = generator.normal(size=(240, 6)) + 20 * np.eye(6)[kinds.where(common).factorize()[0]]
    return cells


def test_a_table_beside_baselines(cells: AnnData, tmp_path: Path) -> None:
    scores = cfm.metrics.integration(
        cells, batch_key="half", labels_key="kind", embeddings=["X_perfect"], baselines=["pca", "random"]
    )
    assert list(scores.index) == ["X_perfect", "pca", "random"]
    assert list(scores.columns[:3]) == ["Bio conservation", "Batch correction", "Total"]
    assert scores.loc["X_perfect", "KMeans NMI"] == pytest.approx(1)
    assert scores.loc["X_perfect", "Bio conservation"] > scores.loc["pca", "Bio conservation"] > 0
    halves = 0.6 * scores["Bio conservation"] + 0.4 * scores["Batch correction"]
    np.testing.assert_allclose(scores["Total"], halves, atol=1e-6)
    record = cells.uns["cfm"]["integration"]
    assert record["scib_metrics"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_allclose(again.uns["cfm"]["integration"]["scores"].to_numpy(), scores.to_numpy())
    figure = cfm.pl.integration(again)
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == list(scores.index)


def test_without_labels_only_batches_are_scored(cells: AnnData) -> None:
    scores = cfm.metrics.integration(
        cells, batch_key="half", labels_key=None, embeddings=["X_perfect"], baselines=["harmony", "combat"]
    )
    assert "Batch correction" in scores
    assert not {"Bio conservation", "KMeans NMI"} & set(scores)
    assert cfm.pl.integration(cells).axes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels_key": "type"}, MissingKeyError, "obs has no 'type'"),
        ({"embeddings": ["X_none"]}, MissingKeyError, r"obsm has no \['X_none'\]"),
        ({"baselines": ["mnn"]}, OptionError, r"baselines=\['mnn'\]: type some of"),
        ({"batch_key": "kind"}, MissingKeyError, "has no value for"),
    ],
)
def test_bad_input(cells: AnnData, arguments: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"batch_key": "half", "labels_key": None, "embeddings": ["X_perfect"], **arguments}
    with pytest.raises(error, match=message):
        cfm.metrics.integration(cells, **given)  # type: ignore[arg-type]


def test_an_embedding_named_like_a_baseline(cells: AnnData) -> None:
    cells.obsm["pca"] = cells.obsm["X_perfect"]
    with pytest.raises(OptionError, match="two rows of one name"):
        cfm.metrics.integration(cells, batch_key="half", labels_key=None, embeddings=["pca"])


def test_no_scores_to_show(pbmc: AnnData) -> None:
    with pytest.raises(MissingKeyError, match=r"cfm.metrics.integration writes them"):
        cfm.pl.integration(pbmc)


@pytest.mark.slow
def test_scvi_is_trained_and_leaves_nothing_behind(
    cells: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    batches = find_batches(cells.obs, "half")
    state = torch.get_rng_state()
    vectors = baselines.scvi(expression(find_counts(cells), batches), batches, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert vectors.shape == (240, 10)
    named = cells.obs["kind"].notna().to_numpy()
    near = KNeighborsClassifier(15).fit(vectors[named], cells.obs["kind"][named])
    assert near.score(vectors[named], cells.obs["kind"][named]) > 0.8
    again = baselines.scvi(expression(find_counts(cells), batches), batches, 0)
    np.testing.assert_array_equal(again, vectors)
    assert not list(tmp_path.iterdir())
