"""What the encoders read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import scipy.sparse as sp

from cfm._core.errors import OptionError
from cfm.integration.features import Kind
from cfm.integration.joint.inputs import N_COMPONENTS, Projection, geometric_means, normalised
from cfm.integration.joint.table import Measured

KINDS: tuple[Kind, ...] = ("rna", "protein", "atac")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def fitted(kind: Kind, part: Measured) -> Projection:
    return Projection.fit(kind, part.counts, part.totals)


def test_a_cell_is_projected_the_same_alone_and_in_a_group(kind: Kind, parts: Mapping[Kind, Measured]) -> None:
    part = parts[kind]
    projection = fitted(kind, part)
    group = projection.project(part.counts, part.totals)
    assert group.dtype == np.float32
    for cell in (0, 7, 33):
        alone = projection.project(part.counts[[cell]], part.totals[[cell]])
        np.testing.assert_allclose(alone[0], group[cell], rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(part.totals))
    mixed = projection.project(part.counts[order], part.totals[order])
    np.testing.assert_allclose(mixed, group[order], rtol=1e-4, atol=1e-5)


def test_the_mean_square_is_one_and_the_dimensions_are_few(kind: Kind, parts: Mapping[Kind, Measured]) -> None:
    part = parts[kind]
    projection = fitted(kind, part)
    found = projection.project(part.counts, part.totals)
    assert np.square(found).mean() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-3)
    assert found.shape[1] == min(N_COMPONENTS[kind], min(part.counts.shape) - 1)
    np.testing.assert_allclose(
        projection.components.T @ projection.components, np.eye(found.shape[1]), atol=1e-4, rtol=0
    )


def test_the_same_cells_give_the_same_projection(kind: Kind, parts: Mapping[Kind, Measured]) -> None:
    first, second = fitted(kind, parts[kind]), fitted(kind, parts[kind])
    np.testing.assert_array_equal(first.components, second.components)
    assert first.scale == second.scale


def test_the_first_direction_of_peaks_is_left_out(parts: Mapping[Kind, Measured]) -> None:
    part = parts["atac"]
    projection = fitted("atac", part)
    values = normalised("atac", part.counts, part.totals, projection.feature_weights)
    assert sp.issparse(values)
    _, sizes, directions = np.linalg.svd(values.toarray(), full_matrices=False)
    assert np.abs(directions[0] @ projection.components).max() < 1e-3
    # The next is there, whatever its sign.
    assert abs(directions[1] @ projection.components[:, 0]) > 0.999
    assert sizes[0] > 1.5 * sizes[1]


def test_formulas() -> None:
    counts = sp.csr_matrix(np.array([[0, 3, 1], [2, 0, 6]], np.float32))
    totals = np.array([10.0, 8.0])
    ones = np.ones(3, np.float32)
    dense = counts.toarray().astype(np.float64)
    rna = normalised("rna", counts, totals, ones)
    assert sp.issparse(rna)
    np.testing.assert_allclose(rna.toarray(), np.log1p(1e4 * dense / totals[:, None]), rtol=1e-6)
    sizes = np.exp(np.log1p(dense).mean(axis=1))
    np.testing.assert_allclose(geometric_means(counts.toarray()), sizes, rtol=1e-6)
    np.testing.assert_allclose(normalised("protein", counts, totals, ones), np.log1p(dense / sizes[:, None]), rtol=1e-6)
    weights = np.array([2, 4, 1], np.float32)
    atac = normalised("atac", counts, totals, weights)
    assert sp.issparse(atac)
    np.testing.assert_allclose(atac.toarray(), np.log1p(1e4 * (dense > 0) * weights / totals[:, None]), rtol=1e-6)
    np.testing.assert_array_equal(counts.toarray(), dense)  # as it was


def test_counts_of_peaks_do_not_matter_but_through_the_total(parts: Mapping[Kind, Measured]) -> None:
    part = parts["atac"]
    projection = fitted("atac", part)
    more = part.counts.copy()
    more.data *= 2
    np.testing.assert_array_equal(projection.project(more, part.totals), projection.project(part.counts, part.totals))


def test_empty_cells_and_constant_features_are_finite(kind: Kind, parts: Mapping[Kind, Measured]) -> None:
    dense = parts[kind].counts.toarray()
    dense[3] = 0
    dense[:, 1] = 1
    dense[:, 2] = 0
    dense[[5, 6], 2] = 40
    dense[7] = 0  # with nothing at all, not even the constant
    counts = sp.csr_matrix(dense)
    projection = Projection.fit(kind, counts, np.asarray(counts.sum(axis=1), np.float64).ravel())
    found = projection.project(counts, np.asarray(counts.sum(axis=1), np.float64).ravel())
    assert np.isfinite(found).all()
    assert np.isfinite(projection.scale)
    assert np.abs(found).max() < 1e3


@pytest.mark.parametrize("shape", [(20, 3), (3, 20), (3, 3)])
def test_few_features_or_cells(kind: Kind, shape: tuple[int, int]) -> None:
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(2, shape).astype(np.float32))
    totals = np.asarray(counts.sum(axis=1), np.float64).ravel()
    found = Projection.fit(kind, counts, totals).project(counts, totals)
    assert len(found) == shape[0]
    assert 1 <= found.shape[1] <= max(shape)
    assert np.isfinite(found).all()


def test_one_protein() -> None:
    counts = sp.csr_matrix(np.arange(20, dtype=np.float32)[:, None])
    found = Projection.fit("protein", counts, np.ones(20)).project(counts, np.ones(20))
    assert found.shape == (20, 1)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("kind", "shape"), [("rna", (20, 1)), ("atac", (20, 2)), ("atac", (2, 20)), ("protein", (1, 9))]
)
def test_too_few_features_or_cells(kind: Kind, shape: tuple[int, int]) -> None:
    with pytest.raises(
        OptionError, match=f"{kind} has {shape[0]} cells and {shape[1]} features in use, which are too few"
    ):
        Projection.fit(kind, sp.csr_matrix(np.ones(shape, np.float32)), np.ones(shape[0]))
