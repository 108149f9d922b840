"""Tokens of scBERT: the official ones, exactly, and where ours differ on purpose."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cfm.genes import Vocabulary, match
from cfm.models.scbert.genes import columns_of
from cfm.models.scbert.tokenizer import ScbertTokenizer
from cfm.tokens import TokenBatch


def tokenizer(cells: AnnData, symbols: list[str], *, official: bool = False) -> ScbertTokenizer:
    vocabulary = Vocabulary.of_symbols(symbols)
    found = match(cells.var, vocabulary, gene_column="var_names", min_genes=1)
    return ScbertTokenizer(columns_of(found, vocabulary, official=official), len(symbols), 5)


def dense(batch: TokenBatch, width: int) -> NDArray[np.float32]:
    assert batch.values is not None
    out = np.zeros((batch.n_cells, width), np.float32)
    out[np.repeat(np.arange(batch.n_cells), batch.lengths), batch.ids] = batch.values
    return out


def by_scanpy(cells: AnnData, symbols: list[str]) -> NDArray[np.int64]:
    """The official recipe with the functions that it calls: align, normalise, log2, cut, truncate."""
    place = {name: i for i, name in reversed(list(enumerate(cells.var_names)))}
    aligned = np.zeros((cells.n_obs, len(symbols)), np.float32)
    for i, name in enumerate(symbols):
        if name in place:
            aligned[:, i] = np.asarray(cells.X[:, place[name]].todense())[:, 0]
    data = AnnData(sp.csr_matrix(aligned))
    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data, base=2)
    return np.minimum(data.X.toarray(), 5).astype(np.int64)


@pytest.mark.parametrize(("name", "genes"), [("preprocess", "genes.txt"), ("preprocess_wide", "genes_wide.txt")])
def test_official_tokens(
    cells: AnnData, fixtures: Path, official: dict[str, np.ndarray], name: str, genes: str
) -> None:
    symbols = (fixtures / genes).read_text().split()
    for by_official_rule in (True, False):
        batch = tokenizer(cells, symbols, official=by_official_rule)(cells.X, 0)
        kept = np.flatnonzero(batch.lengths >= 200)
        assert cells.obs_names[kept].tolist() == official[f"{name}/kept"].tolist()
        np.testing.assert_array_equal(dense(batch.take(kept), len(symbols) + 1), official[f"{name}/tokens"])


@pytest.mark.filterwarnings("ignore")
def test_tokens_are_those_of_scanpys_functions(pbmc: AnnData) -> None:
    symbols = [*pbmc.var_names[::-2], "NOT A GENE"]
    found = dense(tokenizer(pbmc, symbols, official=True)(pbmc.X, 0), len(symbols))
    np.testing.assert_array_equal(found, by_scanpy(pbmc, symbols))


def test_edges_of_bins() -> None:
    """A cell of 10,000 counts: a bin begins where the count plus one is a power of two."""
    counts = np.array([[1, 2, 3, 6, 7, 14, 15, 30, 31, 32, 0, 0]], np.float32)
    counts[0, -1] = 10_000 - counts.sum()
    batch = ScbertTokenizer(np.arange(12, dtype=np.int32), 12, 5)(sp.csr_matrix(counts), 7)
    assert batch.values is not None
    assert batch.ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert batch.values.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]
    assert batch.rows.tolist() == [7]


def test_weak_genes_are_tokens_of_bin_0() -> None:
    """The network takes them for absent, as the official one does; they count as genes of the cell."""
    counts = sp.csr_matrix(np.array([[1, 0, 99_999], [0, 0, 0]], np.float32))
    batch = ScbertTokenizer(np.arange(3, dtype=np.int32), 3, 5)(counts, 0)
    assert batch.values is not None
    assert (batch.ids.tolist(), batch.values.tolist(), batch.lengths.tolist()) == ([0, 2], [0.0, 5.0], [2, 0])


def test_totals_are_those_of_the_list_alone() -> None:
    """Genes outside the list are dropped before the scaling: 10 of 100 listed counts are 1,000 of 10,000."""
    counts = sp.csr_matrix(np.array([[10, 90, 900_000]], np.float32))
    batch = ScbertTokenizer(np.array([0, 1, -1], np.int32), 2, 20)(counts, 0)
    assert batch.values is not None
    assert batch.values.tolist() == [np.floor(np.log2(1001)), np.floor(np.log2(9001))]


def test_repeated_columns_are_added_and_the_official_code_takes_the_first() -> None:
    """Both hold reads of the gene, and dropping the second would make the vector depend on the order of columns."""
    names = ["CD3E", "CD19", "CD3E", "LYZ"]
    counts = sp.csr_matrix(np.array([[1, 0, 6, 9_993]], np.float32))
    var = pd.DataFrame(index=names)
    vocabulary = Vocabulary.of_symbols(["LYZ", "CD3E", "CD19"])
    found = match(var, vocabulary, min_genes=1)
    bins = {}
    for official in (True, False):
        columns = columns_of(found, vocabulary, official=official)
        bins[official] = dense(ScbertTokenizer(columns, 3, 5)(counts, 0), 3)[0].tolist()
    assert bins == {True: [5, 1, 0], False: [5, 3, 0]}


def test_columns_by_other_names_count_where_none_bears_that_of_the_list() -> None:
    """RPS17L is a withdrawn name of RPS17; the official code knows exact names only."""
    vocabulary = Vocabulary.of_symbols(["RPS17L", "CD3E"])

    def columns(*names: str, official: bool = False) -> list[int]:
        found = match(pd.DataFrame(index=list(names)), vocabulary, min_genes=1)
        return columns_of(found, vocabulary, official=official).tolist()

    assert columns("RPS17", "CD3E") == [0, 1]
    assert columns("RPS17", "CD3E", official=True) == [-1, 1]
    assert columns("RPS17", "RPS17L", "CD3E") == [-1, 0, 1]
    assert columns("RPS17L", "RPS17L-1", "CD3E") == [0, 0, 1], "what var_names_make_unique makes of a repeated name"


def test_ensembl_ids_are_mapped(cells: AnnData, fixtures: Path) -> None:
    symbols = (fixtures / "genes.txt").read_text().split()
    vocabulary = Vocabulary.of_symbols(symbols)
    by_id = cells.copy()
    by_id.var_names = cells.var["ensembl_id"].to_numpy()
    by_id.var = by_id.var[[]]
    found = match(by_id.var, vocabulary)
    assert found.identifier == "ensembl"
    assert found.n_tokens > 350


def test_the_tokeniser_is_picklable(cells: AnnData, fixtures: Path) -> None:
    made = tokenizer(cells, (fixtures / "genes.txt").read_text().split())
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again(cells.X, 0).ids, made(cells.X, 0).ids)
