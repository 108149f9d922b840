from __future__ import annotations

import dataclasses
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from cfm._core.errors import GeneMatchError, MissingKeyError, OptionError
from cfm.datasets import pbmc68k
from cfm.genes import Vocabulary, human_genes, human_previous_symbols, match, mouse_orthologs
from cfm.genes.identifiers import human_ensembl_ids
from cfm.genes.matching import read_gene_table

SELENOT = "ENSG00000198843"


def frame(names: list[str], **columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(names, dtype=object))


def token(vocabulary: Vocabulary, symbol: str) -> int:
    return vocabulary.by_ensembl[human_genes()[symbol]]


# --- which column, read how


def test_real_symbols_of_2017_match(pbmc: AnnData, human: Vocabulary) -> None:
    """All but clone names, most of them through a current symbol and 40 or more through a withdrawn one."""
    found = match(pbmc.var, human)
    assert (found.column, found.identifier, found.species) == ("var_names", "symbol", "human")
    assert found.tokens.dtype == np.int32
    assert len(found.tokens) == pbmc.n_vars
    assert found.n_columns == found.n_tokens == 752
    lost = found.names[found.tokens < 0].tolist()
    assert sum(name.startswith(("RP", "AC", "AL", "CTD")) for name in lost) == len(lost) - 1
    withdrawn = [name for name in pbmc.var_names if name in human_previous_symbols()]
    assert len(withdrawn) >= 40
    assert not set(withdrawn) & set(lost)


def test_matching_changes_nothing(pbmc: AnnData, human: Vocabulary) -> None:
    pbmc.var["name"] = pbmc.var_names
    before = pbmc.var.copy()
    match(pbmc.var, human)
    pd.testing.assert_frame_equal(pbmc.var, before)


def test_ensembl_ids_match_with_and_without_version(human: Vocabulary) -> None:
    plain = list(human.ensembl_ids[:200])
    versioned = [f"{identifier}.{i % 20}" for i, identifier in enumerate(plain)]
    for names in (plain, versioned):
        found = match(frame(names), human)
        assert found.identifier == "ensembl"
        np.testing.assert_array_equal(found.tokens, np.arange(200))


def test_symbols_win_over_opaque_names(human: Vocabulary, crowd: list[str]) -> None:
    found = match(frame([f"gene{i}" for i in range(150)], feature_name=crowd), human)
    assert (found.column, found.identifier) == ("feature_name", "symbol")
    assert found.names.tolist() == crowd


def test_the_column_that_finds_most_wins(human: Vocabulary, crowd: list[str]) -> None:
    identifiers = [human_genes()[symbol] for symbol in crowd]
    damaged = [*crowd[:120], *(f"x{i}" for i in range(30))]
    found = match(frame(damaged, gene_ids=identifiers), human)
    assert (found.column, found.identifier, found.n_tokens) == ("gene_ids", "ensembl", 150)


def test_a_draw_goes_to_the_names_of_the_vocabulary_then_to_var_names(human: Vocabulary, crowd: list[str]) -> None:
    identifiers = [human_genes()[symbol] for symbol in crowd]
    assert match(frame(crowd, gene_ids=identifiers), human).column == "gene_ids"
    assert match(frame(identifiers, symbol=crowd), human).column == "var_names"
    of_symbols = dataclasses.replace(human, identifier="symbol")
    assert match(frame(identifiers, symbol=crowd), of_symbols).column == "symbol"
    assert match(frame(crowd, symbol=crowd), of_symbols).column == "var_names"


def test_gene_column_looks_at_one_column_only(human: Vocabulary, crowd: list[str]) -> None:
    identifiers = [human_genes()[symbol] for symbol in crowd]
    var = frame(crowd, gene_ids=identifiers, other=["x"] * 150)
    assert match(var, human, gene_column="gene_ids").column == "gene_ids"
    assert match(var, human, gene_column="var_names").column == "var_names"
    with pytest.raises(GeneMatchError, match=r"Looked at other; best was other, which begins \['x', 'x'"):
        match(var, human, gene_column="other")


def test_missing_gene_column_names_those_that_exist(human: Vocabulary, crowd: list[str]) -> None:
    with pytest.raises(MissingKeyError, match=r"no column 'symbols'. It has \['symbol'\]; 'var_names' is the index"):
        match(frame(crowd, symbol=crowd), human, gene_column="symbols")


@pytest.mark.parametrize("dtype", ["category", "object", "string"])
def test_columns_of_any_text_type_with_gaps(human: Vocabulary, crowd: list[str], dtype: str) -> None:
    column = pd.Series([*crowd, None], dtype=dtype).to_numpy(object)
    var = frame([f"g{i}" for i in range(151)])
    var["symbol"] = pd.array(column, dtype=dtype) if dtype != "category" else pd.Categorical(column)
    found = match(var, human)
    assert (found.column, found.n_columns) == ("symbol", 150)
    assert found.tokens[-1] == -1


def test_numeric_columns_and_repeated_column_names_are_no_trouble(human: Vocabulary, crowd: list[str]) -> None:
    var = frame(crowd, n_cells=list(range(150)), highly_variable=[True] * 150, mean=[0.5] * 150)
    doubled = pd.concat([var, var], axis=1)
    assert match(doubled, human).column == "var_names"


def test_ensembl_ids_among_symbols_are_read_too(human: Vocabulary, crowd: list[str]) -> None:
    """Many files hold the id where a gene has no symbol."""
    names = [*crowd, f"{SELENOT}.12"]
    found = match(frame(names), human)
    assert found.identifier == "symbol"
    assert found.tokens[-1] == token(human, "SELENOT")


def test_an_id_beside_its_own_symbol_is_no_second_column(human: Vocabulary, crowd: list[str]) -> None:
    found = match(frame([*crowd, "SELENOT", SELENOT]), human)
    assert found.tokens[-2:].tolist() == [token(human, "SELENOT"), -1]


def test_columns_without_a_name_match_nothing(crowd: list[str]) -> None:
    genes = human_genes()
    vocabulary = Vocabulary(("ENSG00000000001", *(genes[s] for s in crowd)), ("", *crowd))
    assert match(frame([*crowd, ""]), vocabulary).tokens[-1] == -1
    table = {symbol: symbol for symbol in crowd}
    assert match(frame([*crowd, "unheard of"]), vocabulary, gene_table=table).tokens[-1] == -1


# --- withdrawn symbols


@pytest.mark.parametrize(("old", "new"), [("SELT", "SELENOT"), ("SEP15", "SELENOF"), ("ATP5I", "ATP5ME")])
def test_a_withdrawn_symbol_is_read(human: Vocabulary, crowd: list[str], old: str, new: str) -> None:
    assert match(frame([*crowd, old]), human).tokens[-1] == token(human, new)


def test_a_withdrawn_symbol_gives_way_to_a_column_with_the_current_one(human: Vocabulary, crowd: list[str]) -> None:
    """HNRNPU-AS1 became part of HNRNPU: in data that have both, it is a gene of its own."""
    alone = match(frame([*crowd, "HNRNPU-AS1"]), human)
    both = match(frame([*crowd, "HNRNPU-AS1", "HNRNPU"]), human)
    assert alone.tokens[-1] == token(human, "HNRNPU")
    assert both.tokens[-2:].tolist() == [-1, token(human, "HNRNPU")]


def test_two_withdrawn_symbols_of_one_gene_are_summed(human: Vocabulary, crowd: list[str]) -> None:
    """Files joined from two annotations have ATP5MPL and C14orf2, each filled in half of the cells."""
    found = match(frame([*crowd, "C14orf2", "ATP5MPL"]), human)
    current = token(human, "ATP5MJ")
    assert found.tokens[-2:].tolist() == [current, current]


# --- duplicates


@pytest.mark.parametrize("copy", ["UQCR11-1", "UQCR11.1"])
def test_a_name_made_unique_is_its_plain_names_duplicate(human: Vocabulary, crowd: list[str], copy: str) -> None:
    uqcr11 = token(human, "UQCR11")
    found = match(frame([*crowd, copy, "UQCR11"]), human)
    assert found.tokens[-2:].tolist() == [uqcr11, uqcr11]
    assert found.n_columns == found.n_tokens + 1
    assert match(frame([*crowd, copy]), human).tokens[-1] == -1


def test_a_symbol_that_ends_in_a_number_is_itself(human: Vocabulary, crowd: list[str]) -> None:
    found = match(frame([*crowd, "NKX2-1", "NKX2-5", "HLA-DRB1"]), human)
    assert found.tokens[-3:].tolist() == [token(human, s) for s in ("NKX2-1", "NKX2-5", "HLA-DRB1")]


def test_copies_of_withdrawn_symbols_and_of_ids_are_duplicates_too(human: Vocabulary, crowd: list[str]) -> None:
    selenot = token(human, "SELENOT")
    assert match(frame([*crowd, "SELT", "SELT-1"]), human).tokens[-2:].tolist() == [selenot, selenot]
    identifiers = [human_genes()[symbol] for symbol in crowd]
    found = match(frame([*identifiers, f"{SELENOT}.3", f"{SELENOT}.3-1"]), human)
    assert found.tokens[-2:].tolist() == [selenot, selenot]


def test_both_chromosomes_of_a_pseudoautosomal_gene_are_one(human: Vocabulary) -> None:
    names = [*human.ensembl_ids[:120], "ENSG00000182378.15", "ENSG00000182378.15_PAR_Y"]
    found = match(frame(names), human)
    assert found.tokens[-1] == found.tokens[-2] == human.by_ensembl["ENSG00000182378"]


def test_duplicated_var_names_are_summed_or_refused_as_the_model_wants(human: Vocabulary, crowd: list[str]) -> None:
    var = frame([*crowd, crowd[0]])
    found = match(var, human)
    assert found.tokens[0] == found.tokens[-1]
    message = rf"1 genes stand in several columns of var_names \(for example \['{crowd[0]}', '{crowd[0]}'\]\)"
    with pytest.raises(GeneMatchError, match=message):
        match(var, replace(human, duplicates="reject"))


def test_a_model_that_refuses_duplicates_takes_data_without(human: Vocabulary, crowd: list[str]) -> None:
    found = match(frame([*crowd, "unknown", "unknown"]), replace(human, duplicates="reject"))
    assert found.n_columns == 150


# --- case, species, tables


def test_case_counts_unless_the_model_says_otherwise(human: Vocabulary, crowd: list[str]) -> None:
    lower = [symbol.lower() for symbol in crowd]
    with pytest.raises(GeneMatchError, match="agree with human symbols but for case"):
        match(frame(lower), human)
    loose = replace(human, case_sensitive=False)
    np.testing.assert_array_equal(match(frame(lower), loose).tokens, match(frame(crowd), human).tokens)
    assert match(frame([*lower, "selt"]), loose).tokens[-1] == token(human, "SELENOT")


@pytest.fixture(scope="module")
def as_mouse() -> dict[str, str]:
    """Mouse symbol of each human Ensembl id."""
    return {identifier: symbol for symbol, identifier in mouse_orthologs().items()}


def test_mouse_symbols_are_read_through_orthologs(pbmc: AnnData, human: Vocabulary, as_mouse: dict[str, str]) -> None:
    """The real cells, as if a mouse had given them: each gene with an ortholog keeps its token."""
    straight = match(pbmc.var, human)
    ids = [human.ensembl_ids[t] if t >= 0 else "" for t in straight.tokens]
    renamed = frame([as_mouse.get(identifier, f"Gm{i}") for i, identifier in enumerate(ids)])
    found = match(renamed, human, species="mouse")
    has_ortholog = np.array([identifier in as_mouse for identifier in ids])
    assert has_ortholog.sum() > 550
    np.testing.assert_array_equal(found.tokens[has_ortholog], straight.tokens[has_ortholog])
    assert (found.tokens[~has_ortholog] == -1).all()
    assert found.species == "mouse"


def test_mouse_symbols_without_species_name_the_option(human: Vocabulary) -> None:
    var = frame(list(mouse_orthologs())[:2000])
    with pytest.raises(GeneMatchError, match=r"look like mouse symbols\. Type species='mouse'"):
        match(var, human)
    assert match(var, human, species="mouse").n_tokens > 1900


def test_human_symbols_called_mouse_name_the_option(human: Vocabulary, crowd: list[str]) -> None:
    with pytest.raises(GeneMatchError, match=r"look like human symbols\. Leave out species='mouse'"):
        match(frame(crowd), human, species="mouse")


def test_a_mouse_model_reads_mouse_data_as_they_are() -> None:
    symbols = list(mouse_orthologs())[:200]
    identifiers = tuple(f"ENSMUSG{i:011d}" for i in range(200))
    vocabulary = Vocabulary(identifiers, tuple(symbols), species="mouse")
    np.testing.assert_array_equal(match(frame(symbols), vocabulary).tokens, np.arange(200))
    np.testing.assert_array_equal(match(frame(list(identifiers)), vocabulary).tokens, np.arange(200))


def test_a_species_without_orthologs_names_the_way_out(human: Vocabulary, crowd: list[str]) -> None:
    with pytest.raises(OptionError, match=r"No orthologs from 'rat' to 'human'.*Pass gene_table="):
        match(frame(crowd), human, species="rat")
    table = {f"r{symbol}": symbol for symbol in crowd}
    found = match(frame(list(table)), human, species="rat", gene_table=table)
    assert (found.n_tokens, found.identifier, found.species) == (150, "table", "rat")


def test_gene_table_may_mix_symbols_ids_and_withdrawn_symbols(human: Vocabulary, crowd: list[str]) -> None:
    table = {f"probe{i}": symbol for i, symbol in enumerate(crowd)}
    table |= {"a": f"{SELENOT}.4", "b": "SEP15", "c": "no gene"}
    found = match(frame([*table, "not in the table"]), human, gene_table=table)
    assert found.identifier == "table"
    assert found.tokens[-4:].tolist() == [token(human, "SELENOT"), token(human, "SELENOF"), -1, -1]
    assert found.names[0] == "probe0"


def test_gene_table_from_numbers_in_a_column(human: Vocabulary, crowd: list[str]) -> None:
    """Entrez ids are numbers; a column of numbers is read where the user points at it."""
    var = frame([f"g{i}" for i in range(150)], entrez=list(range(1000, 1150)))
    by_text = {str(1000 + i): symbol for i, symbol in enumerate(crowd)}
    by_number = {1000 + i: symbol for i, symbol in enumerate(crowd)}
    for table in (by_text, by_number):
        found = match(var, human, gene_column="entrez", gene_table=table)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.tokens, match(frame(crowd), human).tokens)


def test_a_table_with_its_columns_swapped_is_recognised(human: Vocabulary, crowd: list[str]) -> None:
    table = {symbol: f"probe{i}" for i, symbol in enumerate(crowd)}
    with pytest.raises(GeneMatchError, match="150 of these names in its second column and 0 in its first. Swap"):
        match(frame(list(table.values())), human, gene_table=table)


def test_a_table_of_other_names_says_so(human: Vocabulary, crowd: list[str]) -> None:
    with pytest.raises(GeneMatchError, match="gene_table has 1 of these names in its first column"):
        match(frame(crowd), human, gene_table={crowd[0]: crowd[0], "x": "TP53"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "name,human\na,TP53\n\nb,ENSG00000167286\n"),
        ("T.CSV", 'name,human\n"a","TP53"\n"b", ENSG00000167286\n'),
        ("t.tsv", "name\thuman\na\tTP53\nb\tENSG00000167286\textra\n"),
        ("t.txt", "\ufeffname\thuman\r\na\tTP53\r\nb\tENSG00000167286\r\n"),
    ],
)
def test_gene_table_is_read_from_files(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    table = read_gene_table(path)
    assert table == {"name": "human", "a": "TP53", "b": "ENSG00000167286"}
    assert read_gene_table(str(path)) == table


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "is no gene table: it is empty. Expected two columns with a comma between"),
        ("t.csv", "a;TP53\n", "line 1 has one column. Expected two columns with a comma"),
        ("t.tsv", "a\tTP53\n\nb\n", "line 3 has one column. Expected two columns with a tab"),
    ],
)
def test_what_is_no_gene_table_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(GeneMatchError, match=message):
        read_gene_table(path)


# --- the floor


def test_the_floor_is_a_hundred_genes(human: Vocabulary, crowd: list[str]) -> None:
    unknown = [f"x{i}" for i in range(1000)]
    assert match(frame([*crowd[:100], *unknown]), human).n_tokens == 100
    with pytest.raises(GeneMatchError) as caught:
        match(frame([*crowd[:99], *unknown], note=["y"] * 1099), human)
    message = str(caught.value)
    assert f"Only 99 of 1,099 genes are among the {len(human):,} genes of the model; it needs 100." in message
    assert "Looked at var_names and the columns ['note']; best was var_names, which begins ['" in message


def test_duplicates_do_not_reach_the_floor(human: Vocabulary, crowd: list[str]) -> None:
    with pytest.raises(GeneMatchError, match="Only 60 of 180 genes"):
        match(frame([*crowd[:60]] * 3), human)


def test_no_genes_at_all(human: Vocabulary) -> None:
    with pytest.raises(GeneMatchError, match="Only 0 of 0 genes"):
        match(frame([]), human)


# --- invariance and speed


@pytest.fixture(scope="module")
def real_names() -> list[str]:
    return pbmc68k().var_names.tolist()


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_genes_leaves_no_trace(real_names: list[str], human: Vocabulary, random: object) -> None:
    """Names with every rule among them: symbols, withdrawn ones with and without the current, copies, ids."""
    special = ["SELT", "SELENOT", "SELT-1", "SEP15", "UQCR11", "UQCR11.1", "UQCR11-1", "HNRNPU-AS1", "HNRNPU"]
    names = [*real_names, *special, f"{SELENOT}.3", "ENSG00000182378.15", "ENSG00000182378.15_PAR_Y", "", "?"]
    order = list(range(len(names)))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight = match(frame(names), human)
    shuffled = match(frame([names[i] for i in order]), human)
    np.testing.assert_array_equal(shuffled.tokens, straight.tokens[order])
    assert shuffled.n_tokens == straight.n_tokens


def test_time_grows_with_the_number_of_genes_no_faster_than_they_do() -> None:
    """60,000 genes as Cell Ranger and CELLxGENE files have them, beside a tenth of them in the same run."""
    symbol_of = {identifier: symbol for symbol, identifier in human_genes().items()}
    identifiers = sorted(human_ensembl_ids())[:60_000]
    symbols = [symbol_of.get(identifier, identifier) for identifier in identifiers]
    vocabulary = Vocabulary(tuple(identifiers), tuple(symbols))

    def seconds(n: int, runs: int) -> float:
        var = frame(
            [f"{identifier}.7" for identifier in identifiers[:n]],
            feature_name=symbols[:n],
            feature_type=["Gene Expression"] * n,
            genome=["GRCh38"] * n,
        )
        times = []
        for _ in range(runs):
            begin = time.perf_counter()
            found = match(var, vocabulary)
            times.append(time.perf_counter() - begin)
            np.testing.assert_array_equal(found.tokens, np.arange(n))
        return min(times)

    seconds(200, 1)  # builds the look-ups of the vocabulary
    assert seconds(60_000, 2) < 40 * seconds(6_000, 3)  # ten times as many genes, and room for a busy machine
