"""Tokens of scGPT: official ones where those are fixed, our own rules where they are random."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray

from cfm import models
from cfm.errors import OptionError
from cfm.genes import match
from cfm.models.scgpt import ScgptModel
from cfm.models.scgpt.genes import genes_of
from cfm.models.scgpt.official import TorchWords
from cfm.tokens import TokenBatch

Official = dict[str, NDArray[Any]]
CENSUS = Path(__file__).parents[4] / "shared" / "data" / "vocab" / "scgpt" / "default_census_vocab.json"


def tokenizer_of(folder: Path, adata: AnnData, **options: Any) -> Any:
    model = models.load(folder, device="cpu", **options)
    return model.tokenizer(match(adata.var, model.vocabulary, gene_column="var_names", min_genes=1))


def tokens_of(folder: Path, adata: AnnData, **options: Any) -> TokenBatch:
    return tokenizer_of(folder, adata, **options)(sp.csr_matrix(adata.X), 0)


def as_sets(batch: TokenBatch) -> list[dict[int, float]]:
    assert batch.values is not None
    cells = [slice(a, b) for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
    return [dict(zip(batch.ids[c].tolist(), batch.values[c].tolist(), strict=True)) for c in cells]


def test_which_genes_are_tokens_is_the_official_choice(cells: AnnData, fixtures: Path, official: Official) -> None:
    found = as_sets(tokens_of(fixtures / "human", cells[official["embed/cells"]]))
    for ours, theirs, bins in zip(found, official["embed/gene_full"], official["embed/expr_full"], strict=True):
        genuine = np.r_[True, bins[1:] != -2]
        assert set(ours) == set(theirs[genuine].tolist())


def test_left_ties_are_the_upper_end_of_what_official_draws(cells: AnnData, fixtures: Path, official: Official) -> None:
    """Official: any of the tied bins, by a generator with a state. Ours by default: the highest, as in pretraining."""
    found = as_sets(tokens_of(fixtures / "human", cells[official["embed/cells"]]))
    differing = 0
    for ours, theirs, bins in zip(found, official["embed/gene_full"], official["embed/expr_full"], strict=True):
        drawn = {gene: value for gene, value in zip(theirs.tolist(), bins.tolist(), strict=True) if value != -2}
        assert all(ours[gene] >= value for gene, value in drawn.items())
        differing += sum(ours[gene] > value for gene, value in drawn.items())
    assert differing > 1000, "most values are tied"


def test_random_ties_follow_the_official_law(cells: AnnData, fixtures: Path) -> None:
    """Over many seeds, the bins of a tied count are spread evenly between its edges."""
    cell = cells[3]
    tokenizer = tokenizer_of(fixtures / "human", cell, ties="random")
    drawn = [as_sets(replace(tokenizer, seed=seed)(cell.X, 0))[0] for seed in range(300)]
    upper = as_sets(tokens_of(fixtures / "human", cell))[0]
    ones = max(upper, key=lambda gene: sum(value == upper[gene] for value in upper.values()))
    bins = np.array([cells[ones] for cells in drawn])
    assert bins.max() == upper[ones]
    counts = np.bincount(bins.astype(int))[1:]
    assert (counts > 0).all()
    expected = 300 / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 4 * np.sqrt(2 * len(counts))


def test_first_token_is_cls_with_the_padding_value(cells: AnnData, fixtures: Path) -> None:
    model = models.load(fixtures / "human", device="cpu")
    batch = tokens_of(fixtures / "human", cells)
    filled = batch.lengths > 0
    assert (~filled).sum() == 1, "the empty cell has no tokens, not even <cls>"
    assert set(batch.ids[batch.offsets[:-1][filled]].tolist()) == {model.token_ids["<cls>"]}
    assert set(batch.values[batch.offsets[:-1][filled]].tolist()) == {-2.0}
    other = tokens_of(fixtures / "human", cells, cls_value=0)
    assert set(other.values[other.offsets[:-1][filled]].tolist()) == {0.0}


@pytest.mark.parametrize("select", ["random", "top"])
def test_longer_cells_lose_genes_and_keep_the_bins_of_all(cells: AnnData, fixtures: Path, select: str) -> None:
    whole = as_sets(tokens_of(fixtures / "human", cells))
    cut = tokens_of(fixtures / "human", cells, select=select, max_length=60)
    assert cut.lengths.max() == 60
    counts = match_counts(cells, fixtures)
    for i, (ours, full) in enumerate(zip(as_sets(cut), whole, strict=True)):
        assert len(ours) == min(60, len(full))
        assert ours.items() <= full.items()
        if select == "top" and len(full) > 60:
            kept = [counts[i][gene] for gene in list(ours)[1:]]
            assert min(kept) >= max(counts[i][gene] for gene in full if gene not in ours)


def match_counts(cells: AnnData, fixtures: Path) -> list[dict[int, float]]:
    ids = models.load(fixtures / "human", device="cpu").token_ids
    dense = cells.X.toarray()
    return [{ids[g]: row[j] for j, g in enumerate(cells.var_names) if g in ids and row[j]} for row in dense]


def test_samples_are_even_and_hang_on_the_seed(cells: AnnData, fixtures: Path) -> None:
    cell = cells[1]
    n = len(as_sets(tokens_of(fixtures / "human", cell))[0]) - 1
    tokenizer = tokenizer_of(fixtures / "human", cell, max_length=101)
    chosen = [set(as_sets(replace(tokenizer, seed=seed)(cell.X, 0))[0]) for seed in range(60)]
    assert len({frozenset(genes) for genes in chosen}) == 60
    times = np.bincount([gene for genes in chosen for gene in genes])
    times = np.sort(times[times > 0])[:-1]  # without <cls>
    assert len(times) == n
    share = 100 / n
    assert abs(times.std() - np.sqrt(60 * share * (1 - share))) < 0.8


def test_zeros_are_tokens_where_asked_for(cells: AnnData, fixtures: Path) -> None:
    some = cells[[0, 5, 46, 47]]
    plain, zeros = (as_sets(tokens_of(fixtures / "human", some, zeros=z)) for z in (False, True))
    n_known = (match(cells.var, models.load(fixtures / "human").vocabulary, min_genes=1).tokens >= 0).sum()
    for expressed, everything in zip(plain, zeros, strict=True):
        if not expressed:
            assert not everything
            continue
        assert len(everything) == 1 + n_known
        assert expressed.items() <= everything.items()
        assert all(value == 0 for gene, value in everything.items() if gene not in expressed)


def test_chunks_of_zeros_change_nothing(cells: AnnData, fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokens_of(fixtures / "human", cells, zeros=True, max_length=90)
    monkeypatch.setattr("cfm.models.scgpt.tokenizer._VALUES_AT_A_TIME", 1000)
    parts = tokens_of(fixtures / "human", cells, zeros=True, max_length=90)
    for name in ("ids", "values", "offsets", "rows"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_a_gene_in_two_columns_is_summed(cells: AnnData, fixtures: Path, official: Official) -> None:
    """Official: two tokens of one gene, each with its own bin. Ours: one token, with the sum of the counts."""
    known = [name for name in cells.var_names if name in json.loads((fixtures / "human" / "vocab.json").read_text())]
    one = cells[:5, known].copy()
    two = AnnData(sp.csr_matrix(sp.hstack([one.X, one.X])), var=one.var.iloc[[*range(len(known))] * 2])
    doubled = one.copy()
    doubled.X = doubled.X * 2
    ours = as_sets(tokens_of(fixtures / "human", two))
    assert ours == as_sets(tokens_of(fixtures / "human", doubled))
    theirs = tokens_of(fixtures / "human", two, compat="official")
    assert [n - 1 for n in theirs.lengths] == [2 * (len(cell) - 1) for cell in ours]


@pytest.mark.parametrize("compat", [None, "official"])
def test_tokenizer_is_pickled(cells: AnnData, fixtures: Path, compat: str | None) -> None:
    model = models.load(fixtures / "human", device="cpu", compat=compat, max_length=50)
    tokenizer = model.tokenizer(match(cells.var, model.vocabulary, min_genes=1))
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again(cells.X, 0).ids, tokenizer(cells.X, 0).ids)


# --- the official draws


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5])
def test_permutations_are_torchs(seed: int) -> None:
    theirs, ours = torch.Generator().manual_seed(seed), TorchWords(seed)
    torch.empty((), dtype=torch.int64).random_(generator=theirs)
    ours.skip_int64()
    for n in (5, 1, 0, 2, 3000, 17):
        np.testing.assert_array_equal(ours.permutation(n), torch.randperm(n, generator=theirs).numpy())


def test_official_draws_go_on_from_chunk_to_chunk(cells: AnnData, fixtures: Path) -> None:
    model = models.load(fixtures / "human", device="cpu", compat="official", seed=(3, 4), max_length=50)
    tokenizer = model.tokenizer(match(cells.var, model.vocabulary, min_genes=1))
    counts = sp.csr_matrix(cells.X)
    whole = tokenizer(counts, 0)
    parts = [tokenizer(counts[:20], 0), tokenizer(counts[20:], 20)]
    np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), whole.ids)
    with pytest.raises(OptionError, match="cannot begin at cell 20"):
        tokenizer(counts[20:], 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ties": "up"}, "ties='up' is unknown"),
        ({"select": "first"}, "select='first' is unknown"),
        ({"compat": "old"}, "compat='old' is unknown"),
        ({"seed": (1, 2)}, "is no whole number"),
        ({"seed": 0.5}, "is no whole number"),
        ({"seed": (1, 2, 3), "compat": "official"}, "is no whole number"),
        ({"max_length": 1}, "max_length=1 leaves no room"),
        ({"max_length": 99.5}, "max_length=99.5 leaves no room"),
        ({"cls_value": "pad"}, "cls_value='pad' is no number"),
        ({"compat": "official", "zeros": True}, "zeros=True has no counterpart"),
        ({"batch_key": "donor"}, "was not fine-tuned with batches"),
    ],
)
def test_options_are_checked(fixtures: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        models.load(fixtures / "human", device="cpu", **options)


# --- genes


def test_ids_of_genes_come_from_the_surest_source() -> None:
    names = ["<pad>", "TP53", "MATR3_ENSG00000280987", "ENSG00000139618", "p_CD3", "SELT", "BRCA2", "<cls>", "RP11-1.1"]
    vocabulary, ids = genes_of(names)
    assert ids.tolist() == [1, 2, 3, 4, 5, 6, 8]
    assert vocabulary.symbols == tuple(names[i] for i in ids)
    assert vocabulary.ensembl_ids == (
        "ENSG00000141510",
        "ENSG00000280987",
        "ENSG00000139618",
        "",
        "ENSG00000198843",
        "",  # BRCA2's id is another token already
        "",
    )


def test_exact_names_match_as_in_the_official_code(cells: AnnData, fixtures: Path) -> None:
    model = models.load(fixtures / "human", device="cpu")
    assert isinstance(model, ScgptModel)
    exact = np.array([model.token_ids.get(name, -1) for name in cells.var_names])
    found = match(cells.var, model.vocabulary).tokens
    ids = np.where(found >= 0, model.gene_tokens()[found], -1)
    np.testing.assert_array_equal(ids[exact >= 0], exact[exact >= 0])


@pytest.mark.skipif(not CENSUS.is_file(), reason="the census vocabulary of 60,694 names is not beside the repository")
def test_the_whole_census_vocabulary(cells: AnnData, pbmc: AnnData) -> None:
    tokens = json.loads(CENSUS.read_text())
    vocabulary, ids = genes_of(sorted(tokens, key=tokens.__getitem__))
    assert len(vocabulary) == len(tokens) == 60_694
    assert (ids == np.arange(60_694)).all()
    kept = [identifier for identifier in vocabulary.ensembl_ids if identifier]
    assert len(kept) == len(set(kept)) > 40_000
    for adata in (cells, pbmc):
        exact = np.array([tokens.get(name, -1) for name in adata.var_names])
        found = match(adata.var, vocabulary)
        np.testing.assert_array_equal(found.tokens[exact >= 0], exact[exact >= 0])
        assert found.n_columns > (exact >= 0).sum(), "withdrawn and new names are found too"
        assert len(np.unique(found.tokens[found.tokens >= 0])) > 0.98 * found.n_columns
    by_id = match(cells.var, vocabulary, gene_column="ensembl_id")
    same = by_id.tokens == match(cells.var, vocabulary).tokens
    assert same[by_id.tokens >= 0].mean() > 0.99


def test_a_model_of_a_panel_reads_its_few_genes(cells: AnnData, copied: Callable[[str], Path]) -> None:
    """The floor of 100 genes is for models that know thousands."""
    import cfm

    cfm.tl.embed(cells, model=copied("annotation"), device="cpu")
    assert np.isfinite(cells.obsm["X_cfm"]).all()
    assert cells.obs["cfm_n_genes"].max() > 30
