"""What cells are compared by, and taking batches out of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cfm.counts import find_counts
from cfm.integration import align, all_counts, build_space, expression, find_batches, principal_components


def halves(n: int) -> pd.DataFrame:
    return pd.DataFrame({"half": np.where(np.arange(n) % 2, "odd", "even")})


def test_the_columns_say_which_genes_they_are(pbmc: AnnData) -> None:
    source = find_counts(pbmc)
    genes = expression(source, find_batches(halves(pbmc.n_obs), "half"))
    assert genes.values.shape == (pbmc.n_obs, len(genes.columns))
    assert len(genes.columns) <= 2000
    counts = all_counts(source)[:, genes.columns].toarray()
    assert np.array_equal(genes.values.toarray() > 0, counts > 0)
    # Within a cell, counts and values have the same order.
    cell = np.argmax((counts > 0).sum(axis=1))
    order = np.argsort(counts[cell], kind="stable")
    assert (np.diff(genes.values.toarray()[cell][order]) >= 0).all()


def test_a_model_of_noise_is_left_out_and_one_that_knows_takes_part(pbmc: AnnData) -> None:
    batches = find_batches(halves(pbmc.n_obs), "half")
    values = expression(find_counts(pbmc), batches).values
    noise = np.random.default_rng(0).normal(size=(pbmc.n_obs, 16)).astype(np.float32)
    without = build_space(values, noise, batches)
    assert without.parts == ["pca"]
    assert without.explained["model"] < 0.7 * without.explained["pca"]
    knowing = principal_components(values, 30)
    both = build_space(values, knowing, batches)
    assert both.parts == ["pca", "model"]
    assert both.vectors.shape == (pbmc.n_obs, 20 + 30)
    # Both parts weigh the same.
    assert np.square(both.vectors[:, :20]).sum(1).mean() == pytest.approx(1, rel=1e-5)
    assert np.square(both.vectors[:, 20:]).sum(1).mean() == pytest.approx(1, rel=1e-5)


def test_the_decision_is_the_same_each_time(pbmc: AnnData) -> None:
    batches = find_batches(halves(pbmc.n_obs), "half")
    values = expression(find_counts(pbmc), batches).values
    vectors = principal_components(values, 10)
    assert build_space(values, vectors, batches).explained == build_space(values, vectors, batches).explained


def test_where_nothing_can_be_measured_the_model_is_left_out(pbmc: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    obs = pd.DataFrame({"small": (np.arange(pbmc.n_obs) // 40).astype(str)})
    batches = find_batches(obs, "small")
    values = expression(find_counts(pbmc), batches).values
    found = build_space(values, principal_components(values, 10), batches)
    assert found.parts == ["pca"]
    assert found.explained == {}
    assert "no batch of obs['small'] has 50 cells" in caplog.text


def test_of_many_batches_the_largest_are_asked(pbmc: AnnData) -> None:
    """One batch of 60 cells, and many small ones that are not asked."""
    obs = pd.DataFrame({"batch": np.where(np.arange(pbmc.n_obs) < 60, 0, np.arange(pbmc.n_obs) // 10).astype(str)})
    batches = find_batches(obs, "batch")
    values = expression(find_counts(pbmc), batches).values
    noise = np.random.default_rng(0).normal(size=(pbmc.n_obs, 16)).astype(np.float32)
    assert build_space(values, noise, batches).parts == ["pca"]
    assert build_space(values, principal_components(values, 30), batches).parts == ["pca", "model"]


@pytest.mark.parametrize("sizes", [(350, 340, 10), (690, 10)])
def test_batches_without_counts_do_not_rank_genes(sizes: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    counts = generator.poisson(generator.gamma(0.5, 1, 2500), (sum(sizes), 2500)).astype(np.float32)
    counts[-sizes[-1] :] = 0
    obs = pd.DataFrame({"batch": np.repeat([f"batch {i}" for i in range(len(sizes))], sizes)})
    obs.index = pd.Index(map(str, obs.index))
    genes = expression(find_counts(AnnData(sp.csr_matrix(counts), obs)), find_batches(obs, "batch"))
    assert genes.values.shape == (sum(sizes), 2000)
    assert genes.values[-sizes[-1] :].nnz == 0


def shifted() -> tuple[np.ndarray, pd.DataFrame]:
    """Two kinds of cells in two batches that lie apart."""
    generator = np.random.default_rng(0)
    kind, batch = np.repeat([0, 1], 100), np.tile([0, 1], 100)
    space = generator.normal(size=(200, 5)) + 8 * np.eye(5)[kind] + 3 * batch[:, None] * np.eye(5)[4]
    return space, pd.DataFrame({"batch": batch.astype(str), "kind": kind.astype(str)})


def test_alignment_takes_out_the_batch_and_leaves_the_kind() -> None:
    space, obs = shifted()
    moved = align(space, find_batches(obs, "batch"))
    apart = [np.linalg.norm(x[obs.batch == "0"].mean(0) - x[obs.batch == "1"].mean(0)) for x in (space, moved)]
    assert apart[0] > 2.5
    assert apart[1] < apart[0] / 4
    assert np.linalg.norm(moved[obs.kind == "0"].mean(0) - moved[obs.kind == "1"].mean(0)) > 8
    assert moved.dtype == np.float32


def test_strata_are_aligned_each_by_itself() -> None:
    space, obs = shifted()
    obs["condition"] = obs.kind
    moved = align(space, find_batches(obs, "batch", "condition"))
    for kind in "01":
        here = (obs.kind == kind).to_numpy()
        alone = align(space[here], find_batches(obs[here], "batch"))
        np.testing.assert_array_equal(moved[here], alone)


def test_a_stratum_of_one_batch_stays_as_it_is() -> None:
    space, obs = shifted()
    obs["condition"] = obs.batch
    np.testing.assert_array_equal(align(space, find_batches(obs, "batch", "condition")), space.astype(np.float32))


def test_few_genes_and_cells() -> None:
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(2, (30, 12)).astype(np.float32))
    adata = AnnData(counts, halves(30).set_index(pd.Index(map(str, range(30)))))
    genes = expression(find_counts(adata), find_batches(adata.obs, "half"))
    assert principal_components(genes.values, 20).shape == (30, 11)
