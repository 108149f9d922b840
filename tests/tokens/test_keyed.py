"""Numbers that depend on a cell's content and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from anndata import AnnData
from numpy.typing import NDArray
from scipy import stats

import cfm
from cfm.tokens.keyed import cell_keys, keyed_uniform, lowest


def ragged(adata: AnnData) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]:
    return adata.X.indices.astype(np.int32), adata.X.data.astype(np.float64), adata.X.indptr.astype(np.int64)


def test_keys_tell_cells_apart_and_forget_the_order_of_genes(pbmc: AnnData) -> None:
    ids, counts, offsets = ragged(pbmc)
    keys = cell_keys(ids, counts, offsets, 0)
    assert len(np.unique(keys)) == pbmc.n_obs
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(offsets[:-1], offsets[1:], strict=True)])
    np.testing.assert_array_equal(cell_keys(ids[order], counts[order], offsets, 0), keys)


def test_keys_hang_on_seed_gene_and_count(pbmc: AnnData) -> None:
    ids, counts, offsets = ragged(pbmc[:1])
    key = cell_keys(ids, counts, offsets, 0)[0]
    for others in (
        (ids, counts, offsets, 1),
        (ids + 1, counts, offsets, 0),
        (ids, counts + (ids == ids[3]), offsets, 0),
    ):
        assert cell_keys(*others)[0] != key
    assert cell_keys(ids, counts, offsets, -1)[0] != key


def test_draws_are_uniform_and_independent(pbmc: AnnData) -> None:
    ids, counts, offsets = ragged(pbmc)
    draws = keyed_uniform(cell_keys(ids, counts, offsets, 0), ids, offsets, 1)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert len(np.unique(draws)) == len(draws)
    assert stats.kstest(draws, "uniform").pvalue > 0.01
    for other in (
        keyed_uniform(cell_keys(ids, counts, offsets, 0), ids, offsets, 2),
        keyed_uniform(cell_keys(ids, counts, offsets, 1), ids, offsets, 1),
        np.roll(draws, 1),
    ):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 4 / np.sqrt(len(draws))


def test_a_draw_goes_with_its_gene(pbmc: AnnData) -> None:
    ids, counts, offsets = ragged(pbmc)
    draws = keyed_uniform(cell_keys(ids, counts, offsets, 5), ids, offsets, 1)
    a, b = offsets[7], offsets[8]
    alone = np.array([0, b - a])
    key = cell_keys(ids[a:b][::-1], counts[a:b][::-1], alone, 5)
    np.testing.assert_array_equal(keyed_uniform(key, ids[a:b][::-1], alone, 1)[::-1], draws[a:b])


def test_threads_change_nothing(threaded: Callable[[], int]) -> None:
    rng = np.random.default_rng(0)
    offsets = np.concatenate(([0], np.cumsum(rng.integers(0, 900, 400))))
    ids, counts = rng.integers(0, 60_000, offsets[-1]).astype(np.int32), rng.poisson(2, offsets[-1]) + 1.0
    results = []
    for threads in (1, 3):
        with cfm.settings.override(threads=threads):
            draws = keyed_uniform(cell_keys(ids, counts, offsets, 0), ids, offsets, 1)
            results.append(lowest(-counts, draws, offsets, 100)[0].tobytes() + draws.tobytes())
            assert threaded() == threads
    assert results[0] == results[1]


@pytest.mark.parametrize("limit", [0, 1, 7, 1000])
def test_lowest_against_a_sort(pbmc: AnnData, limit: int) -> None:
    _, counts, offsets = ragged(pbmc[:40])
    draws = np.random.default_rng(0).random(len(counts))
    kept, kept_offsets = lowest(-counts, draws, offsets, limit)
    for i in range(40):
        a, b = offsets[i], offsets[i + 1]
        expected = np.sort(a + np.lexsort((draws[a:b], -counts[a:b]))[:limit])
        np.testing.assert_array_equal(kept[kept_offsets[i] : kept_offsets[i + 1]], expected)
