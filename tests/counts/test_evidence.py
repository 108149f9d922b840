from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cfm.counts import Evidence
from cfm.counts.evidence import is_count

FLOATS = ["float32", "float64"]
WHOLE = ["bool", "int8", "uint8", "uint16", "int32", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE])
def test_real_counts_are_counts_in_every_dtype(pbmc: AnnData, dtype: str) -> None:
    values = np.minimum(pbmc.X.data, 1 if dtype == "bool" else 127).astype(dtype)
    evidence = Evidence.of(values)
    assert evidence.is_counts
    assert evidence == Evidence(len(values), 0.0, 1.0, float(values.max()), 0)
    assert str(evidence).startswith(f"0.0% of {len(values):,} stored values are not whole numbers, minimum 1, maximum")
    assert str(evidence).endswith("(counts)")


def test_log_normalised_cells(pbmc: AnnData) -> None:
    sc.pp.normalize_total(pbmc, target_sum=1e4)
    sc.pp.log1p(pbmc)
    evidence = Evidence.of(pbmc.X.data)
    assert not evidence.is_counts
    assert evidence.share_fractional > 0.99
    assert str(evidence) == (
        f"{evidence.share_fractional:.1%} of {pbmc.X.nnz:,} stored values are not whole numbers, "
        f"minimum {pbmc.X.data.min():.4g}, maximum {pbmc.X.data.max():.4g} (log-normalised)"
    )


def test_normalised_cells_without_logarithm(pbmc: AnnData) -> None:
    sc.pp.normalize_total(pbmc, target_sum=1e4)
    assert str(Evidence.of(pbmc.X.data)).endswith("(normalised, imputed or corrected)")


def test_scaled_cells() -> None:
    scaled = sc.datasets.pbmc68k_reduced().X
    evidence = Evidence.of(scaled.ravel())
    assert evidence.minimum < 0
    assert str(evidence).endswith("(scaled or centred)")


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_negative_whole_numbers(dtype: str) -> None:
    evidence = Evidence.of(np.array([3, -2, 1], dtype))
    assert not evidence.is_counts
    assert str(evidence) == (
        "0.0% of 3 stored values are not whole numbers, minimum -2, maximum 3 (negative whole numbers: no counts)"
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(dtype: str, bad: float) -> None:
    evidence = Evidence.of(np.array([1, bad, 7, bad], dtype))
    assert not evidence.is_counts
    assert evidence == Evidence(4, 0.5, 1.0, 7.0, 2)
    assert str(evidence) == (
        "50.0% of 4 stored values are not whole numbers, minimum 1, maximum 7, 2 NaN or infinite "
        "(damaged: counts have neither)"
    )


def test_nothing_finite() -> None:
    assert Evidence.of(np.array([np.nan, np.inf])) == Evidence(2, 1.0, 0.0, 0.0, 2)


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE])
def test_no_values_are_no_evidence_against_counts(dtype: str) -> None:
    evidence = Evidence.of(np.empty(0, dtype))
    assert evidence == Evidence(0, 0.0, 0.0, 0.0, 0)
    assert evidence.is_counts


def test_one_fraction_among_many_is_seen_and_said() -> None:
    values = np.ones(200_000, np.float64)
    values[-1] = 1 + 1e-9
    evidence = Evidence.of(values)
    assert not evidence.is_counts
    assert str(evidence).startswith("less than 0.1% of 200,000 stored values are not whole numbers")


def test_counts_beyond_the_integers_of_float32_are_whole() -> None:
    assert Evidence.of(np.array([1, 2**24 + 2, 2**60], np.float32)).is_counts


def test_stored_zeros_and_negative_zero_are_counts() -> None:
    assert Evidence.of(np.array([0.0, -0.0, 2.0])).is_counts


@given(
    hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=True, allow_infinity=True))
    | hnp.arrays(np.float32, st.integers(0, 50), elements=st.integers(0, 9))
)
def test_evidence_agrees_with_a_look_at_each_value(values: np.ndarray) -> None:
    whole = [bool(np.isfinite(v)) and float(v).is_integer() for v in values]
    evidence = Evidence.of(values)
    assert evidence.n_values == len(values)
    assert evidence.share_fractional == (1 - sum(whole) / len(whole) if whole else 0) or evidence.n_values
    assert round(evidence.share_fractional * len(values)) == len(values) - sum(whole)
    assert evidence.is_counts == all(w and v >= 0 for w, v in zip(whole, values, strict=True))
    assert is_count(values).tolist() == [w and v >= 0 for w, v in zip(whole, values, strict=True)]


def test_looking_at_a_chunk_copies_none_of_it(pbmc: AnnData) -> None:
    values = np.tile(pbmc.X.data, 20)
    Evidence.of(values)
    tracemalloc.start()
    Evidence.of(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert values.nbytes > 10e6
    assert peak < values.nbytes / 10


def test_looking_changes_nothing(pbmc: AnnData) -> None:
    before = sp.csr_matrix(pbmc.X, copy=True)
    Evidence.of(pbmc.X.data)
    np.testing.assert_array_equal(pbmc.X.data, before.data)
