"""The radix rank against a stable argsort."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import cfm
from cfm.tokens import rank_ids, rank_order


def argsort_rows(values: NDArray[np.generic], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """What `rank_order` says that it equals."""
    rows = [values[a:b].astype(np.float64) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    return np.concatenate([np.argsort(-row, kind="stable") for row in rows] or [np.empty(0, np.int64)])


def ragged(rows: list[list[float]], dtype: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    values = np.array([value for row in rows for value in row], dtype=dtype)
    return values, np.cumsum([0, *map(len, rows)])


DTYPES = ("float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "row",
    [
        [],
        [3.5],
        [0.0],
        [2.0] * 300,
        [0.0, -0.0, 1.0, -0.0, 0.0, -1.0],
        [-5.0, -2.0, -2.0, -1000.0, 0.5],
        [np.inf, -np.inf, 3.0, np.inf, -np.inf, 0.0],
        [1e-40, 1e-45, 0.0, -1e-45, 1e-38],
        [float(n) for n in range(300)],
        [float(n) for n in range(300, 0, -1)],
        [1.0, 1.0000001, 0.9999999, 1.0],
        [16777216.0, 16777217.0, 16777215.0],
    ],
    ids=["empty", "one", "zero", "all equal", "signed zeros", "negative", "infinite", "subnormal", "ascending",
         "descending", "near one", "beyond float32 integers"],
)  # fmt: skip
def test_equals_stable_argsort(row: list[float], dtype: str) -> None:
    # Between other rows: what a row leaves in the buffers must not reach the next.
    values, offsets = ragged([[1.0, 7.0, 7.0, 2.0], row, [], [9.0, 1.0, 1.0]], dtype)
    got = rank_order(values, offsets)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, argsort_rows(values, offsets))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_stable_argsort_on_anything(data: st.DataObject, dtype: str) -> None:
    width = int(dtype[-2:])
    numbers = st.one_of(st.floats(allow_nan=False, width=width), st.integers(0, 3).map(float))
    rows = data.draw(st.lists(st.lists(numbers, max_size=40), max_size=6))
    values, offsets = ragged(rows, dtype)
    np.testing.assert_array_equal(rank_order(values, offsets), argsort_rows(values, offsets))


@pytest.mark.parametrize("dtype", [*DTYPES, "int32", "uint8", "float16", ">f4"])
def test_real_cells_in_any_dtype(pbmc: AnnData, dtype: str) -> None:
    counts = pbmc.X.data.clip(max=200).astype(dtype)
    offsets = pbmc.X.indptr.astype(np.int64)
    np.testing.assert_array_equal(rank_order(counts, offsets), argsort_rows(counts, offsets))


def test_input_is_left_alone_and_need_not_be_contiguous() -> None:
    values = np.array([-0.0, 9.0, 1.0, 8.0, 2.0, 7.0])
    before = values.tobytes()
    assert rank_order(values[::2], np.array([0, 3])).tolist() == [2, 1, 0]
    assert values.tobytes() == before


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN cannot be ranked"):
        rank_order(np.array([1.0, np.nan]), np.array([0, 2]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_nothing(dtype: str, threaded: Callable[[], int]) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 900, 400)
    lengths[[0, 5, 399]] = 0
    values = rng.poisson(3, lengths.sum()).astype(dtype) * rng.choice([1, 0.37], lengths.sum()).astype(dtype)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    results = []
    for threads in (1, 2, 5):
        with cfm.settings.override(threads=threads):
            results.append(rank_order(values, offsets).tobytes())
            assert threaded() == threads
    assert len(set(results)) == 1
    assert results[0] == argsort_rows(values, offsets).astype(np.int32).tobytes()


def test_ids_come_in_rank_order(pbmc: AnnData) -> None:
    counts = pbmc.X
    offsets = counts.indptr.astype(np.int64)
    ids = np.random.default_rng(0).permutation(counts.nnz).astype(np.int32)
    expected = ids[rank_order(counts.data, offsets) + np.repeat(offsets[:-1], np.diff(offsets))]
    np.testing.assert_array_equal(rank_ids(ids, counts.data, offsets), expected)


def test_ids_and_values_go_together() -> None:
    with pytest.raises(ValueError, match="2 ids do not go with 3 values"):
        rank_ids(np.zeros(2, np.int32), np.zeros(3), np.array([0, 3]))
