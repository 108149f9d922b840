"""Tokens: the official arithmetic in every dtype, names of genes, ends and truncation."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

import cfm
from cfm.errors import GeneMatchError, MissingKeyError, OptionError
from cfm.genes import match
from cfm.models.geneformer import GeneformerModel, tokenizer
from cfm.models.geneformer.tokenizer import GeneformerTokenizer, tie_places
from cfm.tokens import TokenBatch

Load = Callable[..., GeneformerModel]
TokenizerFor = Callable[..., GeneformerTokenizer]
TokensOf = Callable[[TokenBatch], list[list[int]]]
OfficialArithmetic = Callable[..., list[list[int]]]

VERSIONS = ("V1", "V2")
# Each kind of route of the official code: X and n_counts decide together where it rounds to float32.
DTYPES = [
    (x, n)
    for x in ("float32", "float64", "int32", "int64", "uint16", "int16", "uint8")
    for n in ("float32", "float64", "int32", "int64")
    if n.startswith("float") or x in ("float32", "float64", "int64")
]


def whole(made: GeneformerTokenizer, **changes: Any) -> GeneformerTokenizer:
    """All tokens of a cell, without ends."""
    return replace(made, max_tokens=10**9, ends=None, **changes)


def columns_of(model: GeneformerModel, adata: AnnData) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Token (-1 for none) and median of each column, by the plain identity of ids."""
    known = dict(zip(model.vocabulary.ensembl_ids, zip(model.dictionaries.tokens, model.dictionaries.medians, strict=True), strict=True))  # fmt: skip
    pairs = [known.get(gene, (-1, np.nan)) for gene in adata.var["ensembl_id"]]
    return np.array([t for t, _ in pairs], np.int32), np.array([m for _, m in pairs])


@pytest.mark.parametrize("arithmetic", ["sparse", "dense"])
@pytest.mark.parametrize(("x", "n"), DTYPES)
def test_the_official_arithmetic(
    load: Load, cells: AnnData, tokenizer_for: TokenizerFor, tokens_of: TokensOf,
    official_arithmetic: OfficialArithmetic, x: str, n: str, arithmetic: str,
) -> None:  # fmt: skip
    some = cells[:14].copy()
    if x == "uint8":
        some.X.data = np.minimum(some.X.data, 255)
    counts = some.X.astype(x)
    n_counts = np.asarray(some.X.astype(np.float64).sum(axis=1)).ravel().astype(n)
    for version in VERSIONS:
        model = load(f"{version}_mlm", arithmetic=arithmetic)
        made = whole(tokenizer_for(model, some, n_counts=n_counts))
        official = official_arithmetic(
            counts if arithmetic == "sparse" else counts.toarray(), n_counts, *columns_of(model, some)
        )
        assert tokens_of(made(counts, 0)) == official


def test_rounding_decides_in_these_cells(cells: AnnData, load: Load, official_arithmetic: OfficialArithmetic) -> None:
    # The dictionaries of the fixture make near ties; without them the test above could not tell the routes apart.
    some = cells[:14]
    n_counts = np.asarray(some.X.astype(np.float64).sum(axis=1)).ravel()
    columns = columns_of(load("V2_mlm"), some)
    routes = [
        official_arithmetic(some.X, n_counts, *columns),
        official_arithmetic(some.X, n_counts.astype(np.float32), *columns),
        official_arithmetic(some.X.toarray(), n_counts, *columns),
        official_arithmetic(some.X.toarray(), n_counts.astype(np.float32), *columns),
    ]
    assert all(a != b for i, a in enumerate(routes) for b in routes[:i])
    assert all(sorted(a) == sorted(b) for route in routes for a, b in zip(route, routes[0], strict=True))


def test_without_a_column_it_is_the_float64_route(
    load: Load,
    cells: AnnData,
    tokenizer_for: TokenizerFor,
    tokens_of: TokensOf,
    official_arithmetic: OfficialArithmetic,
) -> None:
    model = load("V2_mlm")
    made = whole(tokenizer_for(model, cells))
    assert made.n_counts is None
    n_counts = np.asarray(cells.X.astype(np.float64).sum(axis=1)).ravel()
    n_counts[n_counts == 0] = 1
    assert tokens_of(made(cells.X, 0)) == official_arithmetic(cells.X, n_counts, *columns_of(model, cells))


def test_total_is_of_all_genes_known_or_not(load: Load, cells: AnnData, tokenizer_for: TokenizerFor) -> None:
    made = tokenizer_for(load("V1_mlm"), cells)
    rows, values = made.normalised(cells.X, 0)
    first = slice(rows.offsets[0], rows.offsets[1])
    np.testing.assert_allclose(values[first], rows.counts[first] / cells.X[0].sum() * 1e4, rtol=1e-15)
    assert rows.counts[first].sum() < 0.5 * cells.X[0].sum()


def test_ties_stay_in_the_order_of_columns(load: Load, tokens_of: TokensOf) -> None:
    model = load("V1_mlm")
    counts = sp.csr_matrix(np.array([[2, 2, 7, 2, 2, 1, 2]], np.float32))
    for columns in (np.arange(7), np.arange(7)[::-1], np.array([40, 3, 9, 400, 8, 2, 7])):
        places, genes = tie_places(columns.astype(np.int32))
        made = GeneformerTokenizer(places, model.dictionaries.tokens[genes], np.full(7, 1.7), 256, None)
        ranked = columns[[2, 0, 1, 3, 4, 6, 5]]
        assert tokens_of(made(counts, 0)) == [model.dictionaries.tokens[ranked].tolist()]


def test_several_columns_of_a_gene_stand_where_the_official_code_puts_them() -> None:
    # 9, 4 and 7 once each, then 5 and 6, in the order in which they are met first.
    places, genes = tie_places(np.array([6, 9, -1, 5, 4, 5, 7, 6, 6], np.int32))
    assert genes.tolist() == [9, 4, 7, 6, 5]
    assert places.tolist() == [3, 0, -1, 4, 1, 4, 2, 3, 3]
    places, genes = tie_places(np.array([-1, -1], np.int32))
    assert (places.tolist(), genes.tolist()) == ([-1, -1], [])


# Containers and parts


def test_containers_and_parts_change_nothing(
    load: Load, cells: AnnData, tokenizer_for: TokenizerFor, tokens_of: TokensOf
) -> None:
    made = tokenizer_for(load("V2_mlm"), cells)
    expected = tokens_of(made(cells.X, 0))
    backwards = cells.X.copy()
    for start, stop in zip(backwards.indptr[:-1], backwards.indptr[1:], strict=True):
        backwards.indices[start:stop] = backwards.indices[start:stop][::-1].copy()
        backwards.data[start:stop] = backwards.data[start:stop][::-1].copy()
    backwards.has_sorted_indices = False
    assert tokens_of(made(backwards, 0)) == expected
    assert tokens_of(made(sp.csr_array(cells.X), 0)) == expected
    parts = [tokens_of(made(cells.X[i : i + 7], i)) for i in range(0, 48, 7)]
    assert sum(parts, []) == expected
    batch = made(cells.X[10:20], 10)
    assert batch.rows.tolist() == list(range(10, 20))
    assert (batch.ids.dtype, batch.values) == (np.int32, None)


def test_threads_change_nothing(load: Load, cells: AnnData, tokenizer_for: TokenizerFor) -> None:
    made = tokenizer_for(load("V2_mlm"), cells)
    many = sp.vstack([cells.X] * 4, format="csr")
    found = []
    for threads in (1, 2, 5):
        with cfm.settings.override(threads=threads):
            found.append(made(many, 0).ids)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_stored_zeros_leave_no_trace(
    load: Load, cells: AnnData, tokenizer_for: TokenizerFor, tokens_of: TokensOf
) -> None:
    made = tokenizer_for(load("V2_mlm"), cells)
    zeros = cells.X.copy()
    zeros.data[::3] = 0
    without = zeros.copy()
    without.eliminate_zeros()
    assert zeros.nnz > without.nnz
    assert tokens_of(made(zeros, 0)) == tokens_of(made(without, 0))


@pytest.mark.parametrize("version", VERSIONS)
def test_tokens_are_genes_of_the_cell_each_once(
    load: Load, cells: AnnData, tokenizer_for: TokenizerFor, tokens_of: TokensOf, version: str
) -> None:
    model = load(f"{version}_mlm")
    token_of_column, _ = columns_of(model, cells)
    found = tokens_of(whole(tokenizer_for(model, cells))(cells.X, 0))
    first_gene = len(model.dictionaries.specials)
    for cell, tokens in enumerate(found):
        expressed = token_of_column[cells.X[cell].indices]
        assert sorted(tokens) == sorted(expressed[expressed >= 0])
        assert len(set(tokens)) == len(tokens)
        assert min(tokens, default=first_gene) >= first_gene, "no <pad>, no <mask>"


# Length


@pytest.mark.parametrize("max_tokens", [3, 4, 50, 131, 132, 133, 256])
def test_truncation_and_ends(
    load: Load, cells: AnnData, tokenizer_for: TokenizerFor, tokens_of: TokensOf, max_tokens: int
) -> None:
    v1, v2 = (replace(tokenizer_for(load(f"{v}_mlm"), cells), max_tokens=max_tokens) for v in VERSIONS)
    everything = tokens_of(whole(v1)(cells.X, 0))
    assert tokens_of(v1(cells.X, 0)) == [tokens[:max_tokens] for tokens in everything]
    everything = tokens_of(whole(v2)(cells.X, 0))
    assert max(map(len, everything)) > 254
    # An empty cell gets no ends: between them there is nothing to read.
    expected = [[2, *tokens[: max_tokens - 2], 3] if tokens else [] for tokens in everything]
    assert tokens_of(v2(cells.X, 0)) == expected


def test_cells_with_one_gene_and_with_none(
    load: Load, cells: AnnData, tokenizer_for: TokenizerFor, tokens_of: TokensOf
) -> None:
    model = load("V2_mlm")
    last = cells[46:].copy()
    (column,) = last.X[1].indices
    (token,) = (model.dictionaries.tokens[model.vocabulary.by_ensembl[last.var["ensembl_id"].iloc[column]]],)
    assert tokens_of(tokenizer_for(model, last)(last.X, 46)) == [[], [2, token, 3]]
    # V1 does not have that gene.
    assert tokens_of(tokenizer_for(load("V1_mlm"), last)(last.X, 46)) == [[], []]
    none = tokenizer_for(model, last)(last.X[:0], 0)
    assert (none.n_cells, len(none.ids)) == (0, 0)


# Names of genes


def renamed(adata: AnnData, change: Callable[[str], str]) -> AnnData:
    other = adata.copy()
    other.var["ensembl_id"] = [change(name) for name in other.var["ensembl_id"]]
    return other


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("change", [str.lower, lambda i: f"{i}.7", lambda i: f"{i}.12_PAR_Y", lambda i: f"{i.lower()}.3"],
                         ids=["lower", "versioned", "PAR_Y", "both"])  # fmt: skip
def test_other_spellings_of_ids(
    load: Load, cells: AnnData, tokenizer_for: TokenizerFor, change: Callable[[str], str], version: str
) -> None:
    # The official code matches no versioned id at all, and drops every cell.
    model = load(f"{version}_mlm")
    expected = tokenizer_for(model, cells)(cells.X, 0)
    found = tokenizer_for(model, renamed(cells, change))(cells.X, 0)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


@pytest.mark.parametrize("change", [str, str.lower, lambda s: f"{s}-OLD"], ids=["symbol", "lower", "old"])
def test_symbols_and_old_symbols_of_v2(
    load: Load, cells: AnnData, tokenizer_for: TokenizerFor, change: Callable[[str], str]
) -> None:
    model = load("V2_mlm")
    aliases = model.vocabulary.aliases
    ids = list(cells.var["ensembl_id"])
    symbol_of = {gene: name for name, gene in aliases.items() if not name.startswith("ENSG") and "-" not in name}
    spelled = [change(symbol_of[i]) if change(symbol_of.get(i, "?")).upper() in aliases else i for i in ids]
    assert sum(a != b for a, b in zip(spelled, ids, strict=True)) > 70
    other = cells.copy()
    other.var["name"] = spelled
    np.testing.assert_array_equal(
        tokenizer_for(model, other, column="name")(cells.X, 0).ids, tokenizer_for(model, cells)(cells.X, 0).ids
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_symbols_alone_are_read(load: Load, cells: AnnData, tokenizer_for: TokenizerFor, version: str) -> None:
    # V1's official code knows no symbols; ours takes them from gene_name_id_dict.
    model = load(f"{version}_mlm")
    found = match(cells.var[[]], model.vocabulary)
    assert (found.column, found.identifier) == ("var_names", "symbol")
    by_id = match(cells.var, model.vocabulary, gene_column="ensembl_id")
    np.testing.assert_array_equal(found.tokens, by_id.tokens)


def test_retired_ids_of_v2(load: Load, cells: AnnData, tokenizer_for: TokenizerFor) -> None:
    model = load("V2_mlm")
    retired = {gene: old for old, gene in model.vocabulary.aliases.items() if old.startswith("ENSG008")}
    assert len(retired) > 20
    other = renamed(cells, lambda gene: retired.get(gene, gene))
    assert set(retired.values()) & set(other.var["ensembl_id"])
    np.testing.assert_array_equal(
        tokenizer_for(model, other)(cells.X, 0).ids, tokenizer_for(model, cells)(cells.X, 0).ids
    )


def test_counts_of_a_gene_in_two_columns_are_added(
    load: Load, cells: AnnData, tokenizer_for: TokenizerFor, tokens_of: TokensOf
) -> None:
    # Its counts split over two columns, the second in a retired spelling at the end of the file.
    model = load("V2_mlm")
    retired = {gene: old for old, gene in model.vocabulary.aliases.items() if old.startswith("ENSG008")}
    ids = cells.var["ensembl_id"].to_numpy()
    doubled = [i for i, gene in enumerate(ids) if gene in retired and model.vocabulary.by_ensembl.get(gene)]
    half = cells.X.tocsc()[:, doubled].copy()
    half.data = np.floor(half.data / 2)
    rest = cells.X.tolil()
    rest[:, doubled] = cells.X.tocsc()[:, doubled] - half
    split = sp.csr_matrix(sp.hstack([rest, half]))
    names = [*ids, *(retired[ids[i]] for i in doubled)]
    other = AnnData(split.astype(np.float32), var={"ensembl_id": names})
    found = tokens_of(whole(tokenizer_for(model, other))(other.X, 0))
    plain = tokens_of(whole(tokenizer_for(model, cells))(cells.X, 0))
    assert [sorted(tokens) for tokens in found] == [sorted(tokens) for tokens in plain]
    # The order is the same where no keys are equal: a gene of two columns stands last among its equals.
    rows, keys = whole(tokenizer_for(model, cells)).keys(cells.X, 0)
    distinct = [len(set(keys[a:b].round(9))) == b - a for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]
    assert any(ours != theirs for ours, theirs in zip(found, plain, strict=True))
    assert all(ours == theirs for ours, theirs, clear in zip(found, plain, distinct, strict=True) if clear)


def test_genes_of_nobody(load: Load, cells: AnnData, tokenizer_for: TokenizerFor) -> None:
    with pytest.raises(GeneMatchError, match=r"Only 0 of 9,571 genes are among the 412 genes of the model"):
        tokenizer_for(load("V2_mlm"), renamed(cells, lambda i: f"x{i}"))


# n_counts=


def test_a_column_of_totals_decides_by_its_dtype(fixtures: Path, cells: AnnData, load: Load) -> None:
    totals = np.asarray(cells.X.astype(np.float64).sum(axis=1)).ravel()
    found = {}
    for dtype in ("float32", "float64", "int64"):
        cells.obs["n"] = totals.astype(dtype)
        cfm.pp.tokenize(cells, model=fixtures / "V2_mlm", gene_column="ensembl_id", n_counts="n")
        found[dtype] = cells.obsm["cfm_tokens"].data.copy()
    cfm.pp.tokenize(cells, model=fixtures / "V2_mlm", gene_column="ensembl_id")
    np.testing.assert_array_equal(found["float64"], cells.obsm["cfm_tokens"].data)
    np.testing.assert_array_equal(found["int64"], found["float64"])
    assert not np.array_equal(found["float32"], found["float64"])


@pytest.mark.parametrize("bad", [0, -1, np.inf])
def test_totals_that_cannot_divide(fixtures: Path, cells: AnnData, bad: float) -> None:
    # n_counts = 0 gives the official code infinities, whose order means nothing.
    cells.obs["n"] = np.where(np.arange(48) == 37, bad, 1000.0)
    with cfm.settings.override(chunk_cells=10), pytest.raises(OptionError) as raised:
        cfm.tl.embed(cells, model=fixtures / "V2_mlm", n_counts="n", gene_column="ensembl_id")
    assert f"n_counts= names a column that holds {float(bad)} for cell 37, which has counts" in str(raised.value)
    assert "Leave n_counts= out" in str(raised.value)
    assert "X_cfm" not in cells.obsm


def test_totals_that_are_missing(fixtures: Path, cells: AnnData, load: Load, tokenizer_for: TokenizerFor) -> None:
    totals = np.where(np.arange(48) == 37, np.nan, 1000.0)
    with pytest.raises(OptionError, match="holds nan for cell 37, which has counts"):
        tokenizer_for(load("V2_mlm"), cells, n_counts=totals)(cells.X, 0)
    cells.obs["n"] = totals
    with pytest.raises(MissingKeyError, match=r"obs\['n'\] has no value for 1 of 48 cells"):
        cfm.tl.embed(cells, model=fixtures / "V2_mlm", n_counts="n")
    with pytest.raises(MissingKeyError, match=r"obs has no 'm'. It has \['n_counts', 'source', 'n'\]"):
        cfm.tl.embed(cells, model=fixtures / "V2_mlm", n_counts="m")


def test_an_empty_cell_may_have_a_total_of_zero(fixtures: Path, cells: AnnData) -> None:
    assert cells.obs["n_counts"].iloc[46] == 0
    cfm.pp.tokenize(cells, model=fixtures / "V2_mlm", n_counts="n_counts", gene_column="ensembl_id")
    assert cells.obs["cfm_n_tokens"].iloc[46] == 0


# Other processes


def test_it_can_be_sent_to_another_process(load: Load, cells: AnnData, tokenizer_for: TokenizerFor) -> None:
    totals = cells.obs["n_counts"].to_numpy()
    made = tokenizer_for(load("V2_mlm"), cells, n_counts=totals)
    there = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(there(cells.X[:9], 0).ids, made(cells.X[:9], 0).ids)
    held = [value for value in vars(there).values() if value is not None]
    assert all(isinstance(value, np.ndarray | int | tuple | str) for value in held), "no tensors"


def test_its_file_knows_no_tensors() -> None:
    tree = ast.parse(Path(tokenizer.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name.split(".")[0] == "torch"}
