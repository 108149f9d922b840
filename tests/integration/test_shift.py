"""Moving each batch as a whole, by mutual nearest neighbours."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.typing import NDArray

from cfm.counts import find_counts
from cfm.integration import align, expression, find_batches, principal_components, shift


@pytest.fixture
def components(pbmc: AnnData) -> NDArray[np.float32]:
    """Of real cells, scaled to a mean squared length of 1."""
    obs = pd.DataFrame({"batch": np.where(np.arange(pbmc.n_obs) % 2, "one", "two")})
    found = principal_components(expression(find_counts(pbmc), find_batches(obs, "batch")).values, 20)
    return np.asarray(found / np.sqrt(np.square(found).sum(axis=1).mean()), np.float32)


def away(dim: int, by: float) -> NDArray[np.float32]:
    """A vector of length `by`."""
    direction = np.random.default_rng(1).normal(size=dim)
    return np.asarray(by * direction / np.linalg.norm(direction), np.float32)


def in_batches(*sizes: int) -> pd.DataFrame:
    return pd.DataFrame({"batch": np.repeat([f"batch {i}" for i in range(len(sizes))], sizes)})


def test_the_same_cells_moved_apart_lie_on_each_other_again(components: NDArray[np.float32]) -> None:
    n, dim = components.shape
    apart = np.vstack([components, components + away(dim, 3), components - away(dim, 2)])
    moved = shift(apart, find_batches(in_batches(n, n, n), "batch"))
    assert moved.dtype == np.float32
    for copy in (moved[n : 2 * n], moved[2 * n :]):
        assert np.linalg.norm(copy - moved[:n], axis=1).max() < 0.02


def test_a_batch_moves_as_a_whole(components: NDArray[np.float32]) -> None:
    n = len(components)
    batches = find_batches(in_batches(300, n - 300), "batch")
    step = shift(components, batches) - components
    for code in (0, 1):
        here = step[batches.codes == code]
        assert np.abs(here - here[0]).max() < 1e-5


def test_batches_that_do_not_differ_stay(components: NDArray[np.float32]) -> None:
    obs = pd.DataFrame({"batch": np.where(np.arange(len(components)) % 2, "one", "two")})
    step = shift(components, find_batches(obs, "batch")) - components
    assert np.linalg.norm(step, axis=1).max() < 0.1


def test_kinds_that_only_one_batch_has_are_not_laid_on_others(pbmc: AnnData, components: NDArray[np.float32]) -> None:
    """One batch without monocytes and dendritic cells, the other without T cells; B and NK cells in both."""
    label = pbmc.obs["bulk_labels"].astype(str).to_numpy()
    odd = np.arange(pbmc.n_obs) % 2 == 1
    t_cell = np.array(["CD4" in name or "CD8" in name for name in label])
    myeloid = np.isin(label, ["CD14+ Monocyte", "Dendritic"])
    kept = np.flatnonzero((odd & ~myeloid) | (~odd & ~t_cell))
    obs = pd.DataFrame({"batch": np.where(odd[kept], "lymphoid", "myeloid")})
    space = components[kept] + np.where(odd[kept], 1, 0)[:, None] * away(components.shape[1], 3)
    batches = find_batches(obs, "batch")
    moved = shift(space, batches)

    def error(found: NDArray[np.floating]) -> float:
        """How far the batches lie from where they were before one was moved away."""
        step = found - components[kept]
        return float(np.linalg.norm(step[odd[kept]].mean(axis=0) - step[~odd[kept]].mean(axis=0)))

    means = np.array([space[batches.codes == code].mean(axis=0) for code in (0, 1)])
    centred = space - means[batches.codes]
    assert error(moved) < 0.25
    assert error(centred) > 0.6


def test_where_batches_lie_apart_harmony_alone_leaves_them_there(components: NDArray[np.float32]) -> None:
    odd = np.arange(len(components)) % 2 == 1
    space = components + np.where(odd, 1, 0)[:, None] * away(components.shape[1], 4)
    batches = find_batches(pd.DataFrame({"batch": np.where(odd, "one", "two")}), "batch")
    left = {
        name: np.linalg.norm(found[odd].mean(axis=0) - found[~odd].mean(axis=0))
        for name, found in (("Harmony", align(space, batches)), ("both", align(shift(space, batches), batches)))
    }
    assert left["both"] < 0.1
    assert left["Harmony"] > 10 * left["both"]


def test_strata_are_moved_each_by_itself(components: NDArray[np.float32]) -> None:
    obs = in_batches(300, len(components) - 300)
    obs["condition"] = np.where(np.arange(len(obs)) % 3, "some", "other")
    moved = shift(components, find_batches(obs, "batch", "condition"))
    for condition in ("some", "other"):
        here = (obs.condition == condition).to_numpy()
        np.testing.assert_array_equal(moved[here], shift(components[here], find_batches(obs[here], "batch")))
    obs["condition"] = obs.batch
    np.testing.assert_array_equal(shift(components, find_batches(obs, "batch", "condition")), components)


def test_the_order_of_cells_changes_nothing(components: NDArray[np.float32]) -> None:
    obs = in_batches(300, len(components) - 300)
    order = np.random.default_rng(0).permutation(len(obs))
    moved = shift(components, find_batches(obs, "batch"))
    again = shift(components[order], find_batches(obs.iloc[order], "batch"))
    np.testing.assert_allclose(again, moved[order], atol=1e-5)


def test_of_a_large_batch_some_cells_are_compared(components: NDArray[np.float32]) -> None:
    """Drawn by seed; another draw gives nearly the same."""
    n, dim = components.shape
    rng = np.random.default_rng(0)
    many = np.vstack([components + 0.05 * rng.normal(size=(n, dim)) for _ in range(20)]).astype(np.float32)
    half = len(many) // 2
    many[half:] += away(dim, 3)
    batches = find_batches(in_batches(half, len(many) - half), "batch")
    first, again, other = (shift(many, batches, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.linalg.norm(first[:half].mean(axis=0) - first[half:].mean(axis=0)) < 0.1
    assert np.abs(first - other).max() < 0.05


def test_batches_of_a_cell_or_two(components: NDArray[np.float32]) -> None:
    moved = shift(components[:50], find_batches(in_batches(47, 2, 1), "batch"))
    assert np.isfinite(moved).all()


def test_cells_that_are_all_the_same_count_as_one(components: NDArray[np.float32]) -> None:
    """Those without counts, say: each is among the nearest of all others."""
    n, dim = components.shape
    same = np.repeat(components.mean(axis=0, keepdims=True), 100, axis=0)
    half = np.vstack([components, same])
    space = np.vstack([half, half + away(dim, 3)])
    space[n + 100 + n :] -= away(dim, 3)  # they do not differ between batches
    moved = shift(space, find_batches(in_batches(n + 100, n + 100), "batch"))
    assert np.linalg.norm(moved[:n] - moved[n + 100 : 2 * n + 100], axis=1).max() < 0.1


def test_many_batches(components: NDArray[np.float32]) -> None:
    """Not all pairs of them are compared."""
    generator = np.random.default_rng(0)
    cells = np.vstack([components[generator.permutation(len(components))[:60]] for _ in range(60)])
    obs = in_batches(*[60] * 60)
    batches = find_batches(obs, "batch")
    moved = shift(cells + generator.normal(size=(60, cells.shape[1]))[batches.codes] * 0.5, batches) - cells
    centres = np.array([moved[batches.codes == code].mean(axis=0) for code in range(60)])
    assert np.linalg.norm(centres - centres.mean(axis=0), axis=1).max() < 0.5  # they were 2.2 apart on average
