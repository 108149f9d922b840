"""Streams of tokens: made on the fly, and taken from what was stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import cfm
from cfm import infer, models
from cfm.tokens import TokenBatch


def stream_of(adata: AnnData, chunk_cells: int) -> infer.TokenStream:
    with cfm.settings.override(chunk_cells=chunk_cells):
        plain = {"layer": None, "gene_column": None, "species": None, "gene_table": None}
        return infer.prepare(adata, models.load("cfm-mini", device="cpu"), **plain).stream


def joined(batches: list[TokenBatch]) -> tuple[bytes, ...]:
    """All of some batches as bytes, whatever the cuts between them."""
    values = [batch.values for batch in batches if batch.values is not None]
    parts = ([b.ids for b in batches], values, [b.lengths for b in batches], [b.rows for b in batches])
    return tuple(np.concatenate(part).tobytes() for part in parts)


@pytest.mark.parametrize("chunk_cells", [1, 7, 60])
def test_chunks_change_no_token(few: AnnData, chunk_cells: int) -> None:
    batches = list(stream_of(few, chunk_cells))
    assert max(batch.n_cells for batch in batches) == chunk_cells
    assert joined(batches) == joined(list(stream_of(few, 2048)))


def test_totals_are_the_counts_of_each_column(few: AnnData) -> None:
    stream = stream_of(few, 7)
    assert not stream.totals.any()
    for _ in stream:
        pass
    np.testing.assert_array_equal(stream.totals, np.asarray(few.X.sum(axis=0)).ravel())


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csr_array])
@pytest.mark.parametrize("chunk_cells", [1, 7, 2048])
def test_stored_tokens_give_back_the_batches(
    few: AnnData, chunk_cells: int, kind: type, emptied: Callable[[AnnData, list[int]], AnnData]
) -> None:
    few = emptied(few, [5])
    cfm.pp.tokenize(few)
    tokens, values = kind(few.obsm["cfm_tokens"]), kind(few.obsm["cfm_values"])
    back = list(infer.stored_tokens(tokens, values, chunk_cells))
    assert joined(back) == joined(list(stream_of(few, 2048)))
    assert [batch.n_cells for batch in back[:-1]] == [min(chunk_cells, 60)] * (len(back) - 1)
    assert (back[0].ids.dtype, back[0].offsets.dtype) == (np.int32, np.int64)


def test_stored_tokens_without_values_and_without_cells() -> None:
    tokens = sp.csr_matrix((np.array([3, 0, 7], np.int32), np.array([0, 1, 0]), np.array([0, 2, 2, 3])), shape=(3, 9))
    (batch,) = infer.stored_tokens(tokens, None, 10)
    assert batch.values is None
    assert (batch.ids.tolist(), batch.lengths.tolist()) == ([3, 0, 7], [2, 0, 1])
    assert list(infer.stored_tokens(tokens[:0], None, 10)) == []


def test_tokens_and_values_that_do_not_fit_are_refused(few: AnnData) -> None:
    cfm.pp.tokenize(few)
    tokens, values = few.obsm["cfm_tokens"], few.obsm["cfm_values"].copy()
    values.data[::2] = 0
    values.eliminate_zeros()
    with pytest.raises(cfm.errors.OptionError, match=r"different lengths per cell.*cfm\.pp\.tokenize again"):
        list(infer.stored_tokens(tokens, values, 100))
