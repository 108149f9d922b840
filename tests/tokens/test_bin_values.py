"""Quantile bins against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import cfm
from cfm.tokens import bin_values, quantile_edges

DTYPES = ("float32", "float64")


def digitize_rows(values: NDArray[np.generic], offsets: NDArray[np.int64], n_bins: int) -> NDArray[np.int64]:
    """What `bin_values` says that it equals."""
    rows = [values[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    levels = np.linspace(0, 1, n_bins)
    return np.concatenate([np.digitize(row, np.quantile(row, levels)) if len(row) else row.astype(int) for row in rows])


@pytest.mark.parametrize("n_bins", [1, 2, 5, 51, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_cells(pbmc: AnnData, dtype: str, n_bins: int) -> None:
    counts, offsets = pbmc.X.data.astype(dtype), pbmc.X.indptr.astype(np.int64)
    for values in (counts, np.log1p(counts), counts / np.float32(3)):
        got = bin_values(values.astype(dtype), offsets, n_bins)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, digitize_rows(values.astype(dtype), offsets, n_bins))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_digitize_on_anything(data: st.DataObject, dtype: str) -> None:
    # Not so large that the difference of two values overflows, which numpy's interpolation does not survive either.
    numbers = st.floats(-(2.0**60), 2.0**60, width=int(dtype[-2:]))
    rows = data.draw(st.lists(st.lists(numbers, max_size=30), min_size=1, max_size=4))
    n_bins = data.draw(st.integers(1, 60))
    values = np.array([value for row in rows for value in row], dtype=dtype)
    offsets = np.cumsum([0, *map(len, rows)])
    np.testing.assert_array_equal(bin_values(values, offsets, n_bins), digitize_rows(values, offsets, n_bins))


def test_one_value_and_empty_rows() -> None:
    values, offsets = np.array([4.0, 1.0, 9.0]), np.array([0, 0, 1, 1, 3, 3])
    assert bin_values(values, offsets, 5).tolist() == [5, 1, 5]
    assert bin_values(np.empty(0), np.array([0, 0]), 5).tolist() == []


def test_library_size_and_logarithm_change_no_bin(pbmc: AnnData) -> None:
    offsets = pbmc.X.indptr.astype(np.int64)
    counts = pbmc.X.data.astype(np.float64)
    plain = bin_values(counts, offsets, 7)
    # Doubling is exact in floating point, so that edges stay edges.
    np.testing.assert_array_equal(bin_values(counts * 8, offsets, 7), plain)
    assert plain.min() >= 1
    assert plain.max() == 7


@pytest.mark.parametrize("dtype", ["int32", "uint16", "float16"])
def test_other_dtypes_are_read_as_float64(pbmc: AnnData, dtype: str) -> None:
    counts, offsets = pbmc.X.data.astype(dtype), pbmc.X.indptr.astype(np.int64)
    np.testing.assert_array_equal(bin_values(counts, offsets, 51), digitize_rows(counts.astype(float), offsets, 51))


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN cannot be binned"):
        bin_values(np.array([1.0, np.nan, 2.0]), np.array([0, 3]), 5)


def test_threads_change_nothing(threaded: Callable[[], int]) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 900, 400)
    values = np.log1p(rng.poisson(3, lengths.sum()) + 1).astype(np.float32)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    results = []
    for threads in (1, 2, 5):
        with cfm.settings.override(threads=threads):
            results.append(bin_values(values, offsets, 51).tobytes())
            assert threaded() == threads
    assert len(set(results)) == 1


def official_binning(row: NDArray[np.generic], n_bins: int, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rule for values on several edges, written out."""
    edges = np.quantile(row, np.linspace(0, 1, n_bins))
    left, right = np.digitize(row, edges), np.digitize(row, edges, right=True)
    return np.ceil(draws * (right - left) + left)


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_ties(pbmc: AnnData, dtype: str) -> None:
    counts, offsets = pbmc.X.data.astype(dtype), pbmc.X.indptr.astype(np.int64)
    draws = np.random.default_rng(0).random(len(counts))
    rows = [slice(a, b) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    expected = np.concatenate([official_binning(counts[row], 50, draws[row]) for row in rows])
    found = bin_values(counts, offsets, 50, draws)
    np.testing.assert_array_equal(found, expected)
    plain = bin_values(counts, offsets, 50)
    assert (found <= plain).all(), "the upper bin is the highest of those that can be drawn"
    assert (found != plain).mean() > 0.3, "ties are common in counts"


def test_one_value_takes_any_bin() -> None:
    draws = (np.arange(1000) + 0.5) / 1000
    found = bin_values(np.ones(1000), np.arange(1001), 50, draws)
    assert np.bincount(found).tolist() == [0, *[20] * 50]


def test_as_many_draws_as_values() -> None:
    with pytest.raises(ValueError, match="1 draws do not go with 2 values"):
        bin_values(np.ones(2), np.array([0, 2]), 5, np.zeros(1))


def test_edges_are_numpys_quantiles(pbmc: AnnData) -> None:
    counts, offsets = pbmc.X.data, pbmc.X.indptr.astype(np.int64)
    found = quantile_edges(counts, offsets, 50)
    rows = [counts[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    np.testing.assert_array_equal(found, [np.quantile(row, np.linspace(0, 1, 50)) for row in rows])
    assert quantile_edges(np.empty(0), np.array([0, 0]), 3).tolist() == [[0, 0, 0]]
