"""From columns of a file to tokens of a vocabulary, against a dense matrix product."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

import cfm
from cfm.tokens import GeneRows, gene_rows


def reference(counts: sp.csr_matrix, tokens: NDArray[np.int32], n_tokens: int) -> sp.csr_array:
    """Counts over the vocabulary: cells x columns times columns x tokens, in float64."""
    known = np.flatnonzero(tokens >= 0)
    to_token = sp.csr_array((np.ones(len(known)), (known, tokens[known])), shape=(len(tokens), n_tokens))
    product = sp.csr_array(counts.astype(np.float64) @ to_token)
    product.sum_duplicates()
    product.eliminate_zeros()
    product.sort_indices()
    return product


def check(got: GeneRows, counts: sp.csr_matrix, tokens: NDArray[np.int32], n_tokens: int) -> None:
    want = reference(counts, tokens, n_tokens)
    assert (got.ids.dtype, got.counts.dtype, got.offsets.dtype, got.totals.dtype) == (
        np.int32, np.float64, np.int64, np.float64,
    )  # fmt: skip
    np.testing.assert_array_equal(got.offsets, want.indptr)
    np.testing.assert_array_equal(got.ids, want.indices)
    np.testing.assert_array_equal(got.counts, want.data)
    np.testing.assert_array_equal(got.totals, np.asarray(counts.astype(np.float64).sum(axis=1)).ravel())


def some_tokens(n_columns: int, n_tokens: int, seed: int = 0) -> NDArray[np.int32]:
    """Tokens with unknown columns and columns that share a token."""
    return np.random.default_rng(seed).integers(-1, n_tokens, n_columns).astype(np.int32)


@pytest.mark.parametrize("n_tokens", [1, 7, 8, 9, 63, 64, 65, 1000, 16_001])
def test_real_cells_and_vocabularies_of_any_size(pbmc: AnnData, n_tokens: int) -> None:
    tokens = some_tokens(pbmc.n_vars, n_tokens)
    check(gene_rows(pbmc.X, tokens, n_tokens), pbmc.X, tokens, n_tokens)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint16", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
def test_dtypes_of_values_and_indices(few: AnnData, dtype: str, index_dtype: str) -> None:
    counts = few.X.copy()
    counts.data = counts.data.clip(max=100).astype(dtype)
    counts.indices, counts.indptr = counts.indices.astype(index_dtype), counts.indptr.astype(index_dtype)
    tokens = some_tokens(few.n_vars, 500)
    check(gene_rows(counts, tokens, 500), counts, tokens, 500)


def test_order_of_columns_and_of_indices_leaves_no_trace(few: AnnData) -> None:
    tokens = some_tokens(few.n_vars, 300)
    plain = gene_rows(few.X, tokens, 300)
    shuffled = np.random.default_rng(1).permutation(few.n_vars)
    columns = gene_rows(few.X[:, shuffled], tokens[shuffled], 300)
    unsorted = few.X.tocsc()[:, ::-1].tocsr()[:, ::-1]
    assert not unsorted.has_sorted_indices
    for other in (columns, gene_rows(unsorted, tokens, 300)):
        for field in ("ids", "counts", "offsets", "totals"):
            np.testing.assert_array_equal(getattr(plain, field), getattr(other, field))


def test_stored_zeros_repeated_indices_and_empty_rows() -> None:
    counts = sp.csr_matrix(
        (np.array([2.0, 0.0, 3.0, 5.0, 1.0, 0.0]), np.array([3, 0, 3, 1, 2, 2]), np.array([0, 0, 4, 4, 5, 6, 6])),
        shape=(6, 4),
    )
    tokens = np.array([0, 4, -1, 2], np.int32)
    got = gene_rows(counts, tokens, 5)
    # Row 1: column 3 twice (2 + 3, token 2), a stored zero in column 0, column 1 (token 4). Rows 3, 4: unknown, zero.
    assert got.offsets.tolist() == [0, 0, 2, 2, 2, 2, 2]
    assert got.ids.tolist() == [2, 4]
    assert got.counts.tolist() == [5.0, 5.0]
    assert got.totals.tolist() == [0.0, 10.0, 0.0, 1.0, 0.0, 0.0]


def test_columns_of_one_gene_are_added_up(few: AnnData) -> None:
    counts = sp.csr_matrix(sp.hstack([few.X, few.X, few.X]))
    tokens = np.tile(np.arange(few.n_vars, dtype=np.int32), 3)
    tripled, plain = gene_rows(counts, tokens, few.n_vars), gene_rows(few.X, tokens[: few.n_vars], few.n_vars)
    np.testing.assert_array_equal(tripled.ids, plain.ids)
    np.testing.assert_array_equal(tripled.counts, 3 * plain.counts)


def test_no_cells_no_genes_known() -> None:
    tokens = np.full(4, -1, np.int32)
    none = gene_rows(sp.csr_matrix((0, 4)), tokens, 3)
    assert (none.offsets.tolist(), none.ids.size, none.totals.size) == ([0], 0, 0)
    unknown = gene_rows(sp.csr_matrix(np.ones((2, 4))), tokens, 3)
    assert (unknown.offsets.tolist(), unknown.ids.size, unknown.totals.tolist()) == ([0, 0, 0], 0, [4.0, 4.0])


def test_tokens_that_do_not_fit_are_refused() -> None:
    counts = sp.csr_matrix(np.ones((2, 4)))
    with pytest.raises(ValueError, match="3 tokens below 9 do not fit 4 columns"):
        gene_rows(counts, np.zeros(3, np.int32), 9)
    with pytest.raises(ValueError, match="do not fit"):
        gene_rows(counts, np.array([0, 1, 2, 9], np.int32), 9)


def test_input_is_left_alone(few: AnnData, digests: Callable[[AnnData], dict[str, str]]) -> None:
    before = digests(few)
    tokens = some_tokens(few.n_vars, 300)
    kept = tokens.copy()
    got = gene_rows(few.X, tokens, 300)
    got.counts[:] = -1
    np.testing.assert_array_equal(tokens, kept)
    assert digests(few) == before


def test_threads_change_nothing(pbmc: AnnData, threaded: Callable[[], int]) -> None:
    # Empty rows first, last and between; enough values for five threads.
    counts = sp.csr_matrix(
        sp.vstack([sp.csr_matrix((3, pbmc.n_vars)), pbmc.X, sp.csr_matrix((2, pbmc.n_vars)), pbmc.X])
    )
    tokens = some_tokens(pbmc.n_vars, 600)
    results = []
    for threads in (1, 2, 5):
        with cfm.settings.override(threads=threads):
            got = gene_rows(counts, tokens, 600)
            assert threaded() == threads
            results.append(b"".join(x.tobytes() for x in (got.ids, got.counts, got.offsets, got.totals)))
    assert len(set(results)) == 1
    check(got, counts, tokens, 600)
