"""Sentences: what every one has to be, the law of the draws, and what they hang on."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cfm import models
from cfm.errors import OptionError
from cfm.genes import match
from cfm.models.uce import UceModel
from cfm.models.uce.official import drawn_genes, weights
from cfm.models.uce.species import Genes
from cfm.models.uce.tokenizer import Atlas, UceTokenizer
from cfm.tokens import TokenBatch

CLS, RIGHT = 3, 2


def tokenizer_of(folder: Path, adata: AnnData, **options: Any) -> Any:
    model = models.load(folder, device="cpu", **options)
    assert isinstance(model, UceModel)
    return model.tokenizer(match(adata.var, model.vocabulary, gene_column="var_names", min_genes=1))


def sentences(batch: TokenBatch) -> list[list[int]]:
    return [batch.ids[a:b].tolist() for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]


def small(n_genes: int, n_chromosomes: int, **options: Any) -> UceTokenizer:
    """A tokeniser of made-up genes, each in a column of its own; genes of one chromosome stand apart in the file."""
    rng = np.random.default_rng(0)
    genes = Genes(
        "human",
        tuple(f"G{i}" for i in range(n_genes)),
        np.arange(4, 4 + n_genes, dtype=np.int32),
        (1000 + np.arange(n_genes) % n_chromosomes).astype(np.int32),
        rng.integers(0, 50, n_genes),
    )
    atlas = Atlas.of(genes)
    return UceTokenizer(atlas.number, atlas, **options)


def test_every_sentence_is_one(cells: AnnData, fixtures: Path) -> None:
    model = models.load(fixtures, device="cpu")
    genes = model.genes
    of_row = {row: i for i, row in enumerate(genes.rows.tolist())}
    counts = sp.csr_matrix(cells.X)
    by_symbol = dict(zip(genes.symbols, genes.rows.tolist(), strict=True))
    columns = np.array([by_symbol.get(name, -1) for name in cells.var_names.str.upper()])
    found = sentences(tokenizer_of(fixtures, cells)(counts, 0))
    assert [len(sentence) == 0 for sentence in found] == (counts.getnnz(axis=1) == 0).tolist()
    for cell, sentence in enumerate(found):
        if not sentence:
            continue
        assert sentence[0] == CLS
        expressed = set(columns[counts[cell].indices].tolist())
        read, seen = [], []
        for token in sentence[1:]:
            if token == RIGHT:
                starts = [(genes.starts[of_row[row]], row) for row in read]
                assert starts == sorted(starts)
                read = []
            elif token in of_row:
                assert genes.chromosomes[of_row[token]] == seen[-1]
                assert token in expressed
                read.append(token)
            else:
                assert not read
                seen.append(token)
        assert len(seen) == len(set(seen))
        assert len(sentence) == 1 + 1024 + 2 * len(seen)


def test_genes_are_drawn_by_the_official_law(cells: AnnData, fixtures: Path) -> None:
    """Over many seeds, each gene as often as log(1 + count) says, and each chromosome as often in each place."""
    cell = cells[3]
    tokenizer = tokenizer_of(fixtures, cell, sample_size=200)
    counts = sp.csr_matrix(cell.X)
    n_seeds = 150
    drawn = [sentences(replace(tokenizer, seed=seed)(counts, 0))[0] for seed in range(n_seeds)]
    model = models.load(fixtures, device="cpu")
    symbols = cell.var_names.str.upper()
    of_gene = np.array([counts[0, symbols.get_loc(s)] if s in symbols else 0 for s in model.genes.symbols])
    expected = np.log1p(of_gene)
    expected *= 200 * n_seeds / expected.sum()
    tokens = np.concatenate([np.array(sentence) for sentence in drawn])
    times = np.bincount(tokens, minlength=600)[model.genes.rows]
    assert not times[expected == 0].any()
    kept = expected > 0
    statistic = ((times[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    n = kept.sum() - 1
    assert abs(statistic - n) < 5 * np.sqrt(2 * n)
    first = [sentence[1] for sentence in drawn]
    assert len(set(first)) > 15
    assert len({tuple(sentence) for sentence in drawn}) == n_seeds


def test_draws_hang_on_the_counts_of_the_cell_and_on_nothing_else() -> None:
    rng = np.random.default_rng(0)
    tokenizer = small(300, 7, sample_size=50)
    counts = sp.csr_matrix(rng.poisson(0.4, (40, 300)).astype(np.float32))
    whole = sentences(tokenizer(counts, 0))
    order = rng.permutation(40)
    assert sentences(tokenizer(counts[order], 5)) == [whole[i] for i in order]
    columns = rng.permutation(300)
    mixed = replace(tokenizer, columns=tokenizer.columns[columns])
    assert sentences(mixed(counts[:, columns], 0)) == whole
    for dtype in (np.int64, np.uint16, np.float64):
        assert sentences(tokenizer(counts.astype(dtype), 0)) == whole
    more = counts.tolil()
    more[0, np.flatnonzero(counts[0].toarray()[0])[0]] += 1
    changed = sentences(tokenizer(sp.csr_matrix(more), 0))
    assert changed[0] != whole[0]
    assert changed[1:] == whole[1:]


def test_genes_of_equal_start_go_by_row() -> None:
    """Official: undefined, as its sorts are not stable."""
    genes = Genes(
        "human", ("A", "B", "C"), np.array([9, 7, 8], np.int32), np.full(3, 20, np.int32), np.array([5, 5, 1])
    )
    atlas = Atlas.of(genes)
    assert atlas.rows.tolist() == [8, 7, 9]
    tokenizer = UceTokenizer(atlas.number, atlas, sample_size=100)
    sentence = sentences(tokenizer(sp.csr_matrix(np.ones((1, 3))), 0))[0]
    assert sentence[:2] == [CLS, 20]
    assert sentence[2:-1] == sorted(sentence[2:-1], key=[8, 7, 9].index)


def test_a_sentence_that_is_too_long_is_cut() -> None:
    """Official: more than 255 chromosomes are an error."""
    counts = sp.csr_matrix(np.ones((3, 400)))
    whole = small(400, 400, sample_size=100, pad_length=1536)(counts, 0)
    assert whole.lengths.max() > 200
    cut = small(400, 400, sample_size=100, pad_length=120)(counts, 0)
    assert cut.lengths.tolist() == [120] * 3
    for short, long in zip(sentences(cut), sentences(whole), strict=True):
        assert short == long[:120]


def test_cells_below_the_filter_get_no_sentence() -> None:
    """Genes count that the model does not know, and stored zeros do not."""
    tokenizer = replace(small(10, 2, sample_size=20), columns=np.r_[np.arange(10), np.full(20, -1)].astype(np.int32))
    dense = np.zeros((3, 30))
    dense[0, :25], dense[1, :24], dense[2, 5:] = 1, 1, 1
    counts = sp.csr_matrix(dense)
    stored = counts.copy()
    stored.data[counts.indptr[2]] = 0
    assert tokenizer(counts, 0).lengths.all()
    filtered = replace(tokenizer, min_genes=25)
    assert (filtered(counts, 0).lengths > 0).tolist() == [True, False, True]
    assert (filtered(stored, 0).lengths > 0).tolist() == [True, False, False]


@pytest.mark.parametrize("compat", [None, "official"])
def test_it_survives_pickle(cells: AnnData, fixtures: Path, compat: str | None) -> None:
    tokenizer = tokenizer_of(fixtures, cells, compat=compat)
    counts = sp.csr_matrix(cells.X)[:5]
    expected = tokenizer(counts, 0)
    again = pickle.loads(pickle.dumps(tokenizer))(counts, 0)
    np.testing.assert_array_equal(again.ids, expected.ids)


def test_official_draws_go_cell_after_cell(cells: AnnData, fixtures: Path) -> None:
    counts = sp.csr_matrix(cells.X)
    tokenizer = tokenizer_of(fixtures, cells, compat="official", filter="none", batch_size=1)
    whole = sentences(tokenizer(counts, 0))
    assert sentences(tokenizer(counts[:20], 0)) + sentences(tokenizer(counts[20:], 20)) == whole
    assert sentences(tokenizer(counts, 0)) == whole, "the first cell seeds anew"
    with pytest.raises(OptionError, match="it cannot begin at cell 3"):
        tokenizer(counts[3:], 3)


def test_official_probabilities_and_choice(official: dict[str, NDArray[Any]]) -> None:
    counts = sp.csr_matrix(
        tuple(official[f"sentences/counts_{name}"] for name in ("data", "indices", "indptr")),
        shape=(46, len(official["sentences/genes_kept"])),
    ).toarray()
    for row, expected, uniforms, choice in zip(
        counts[:3],
        official["sentences/weights_f32"],
        official["sentences/uniforms"],
        official["sentences/choice"],
        strict=False,
    ):
        found = weights(row)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_array_equal(drawn_genes(found, uniforms), choice)
