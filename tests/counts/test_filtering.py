"""Leaving out genes that few cells express."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cfm.counts import CountSource, find_counts, genes_in_cells


@pytest.mark.parametrize("chunk_cells", [7, 1000])
@pytest.mark.filterwarnings("ignore:Setting element:anndata.ImplicitModificationWarning")
def test_genes_of_few_cells_are_left_out(
    few: AnnData, stored_as: Callable[[AnnData, str], AnnData], form: str, chunk_cells: int
) -> None:
    counts = sp.csr_matrix(few.X)
    expected = few.var_names[counts.getnnz(axis=0) >= 10]
    found = genes_in_cells(find_counts(stored_as(few, form)), 10, chunk_cells)
    assert found.var.index.tolist() == expected.tolist()
    assert 0 < len(expected) < few.n_vars
    chunks = [chunk.counts.toarray() for chunk in found.chunks(chunk_cells)]
    np.testing.assert_array_equal(np.vstack(chunks), few[:, expected].X.toarray())


def test_a_value_in_two_parts_is_one_cell() -> None:
    counts = sp.csr_matrix((np.ones(3), np.array([0, 0, 1]), np.array([0, 2, 3])), shape=(2, 2))
    source = CountSource("X", pd.DataFrame(index=["A", "B"]), 2, lambda start, stop: counts[start:stop])
    assert genes_in_cells(source, 2, 10).var.index.tolist() == []
    assert genes_in_cells(source, 1, 10).var.index.tolist() == ["A", "B"]
