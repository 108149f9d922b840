from __future__ import annotations

from pathlib import Path

import pytest

from cfm._core.errors import CheckpointError
from cfm.genes import Vocabulary, human_genes

TP53, CD3D, SELENOT = "ENSG00000141510", "ENSG00000167286", "ENSG00000198843"


def test_position_is_the_token_id() -> None:
    vocabulary = Vocabulary((CD3D, TP53), ("CD3D", "TP53"))
    assert len(vocabulary) == 2
    assert vocabulary.by_ensembl == {CD3D: 0, TP53: 1}
    assert vocabulary.by_symbol == {"CD3D": 0, "TP53": 1}


def test_current_human_symbols_are_known_beside_the_models_own() -> None:
    """A model of 2017 calls the gene SELT; data of today call it SELENOT."""
    vocabulary = Vocabulary((CD3D, SELENOT), ("CD3D", "SELT"))
    assert vocabulary.by_symbol["SELT"] == 1
    assert vocabulary.by_symbol["SELENOT"] == 1


def test_the_models_own_symbol_wins_over_a_current_one() -> None:
    vocabulary = Vocabulary((TP53, CD3D), ("CD3D", "X"))
    assert human_genes()["CD3D"] == CD3D
    assert vocabulary.by_symbol["CD3D"] == 0


def test_the_first_of_two_genes_with_one_symbol_has_it() -> None:
    vocabulary = Vocabulary(("ENSG00000000001", "ENSG00000000002"), ("Y_RNA", "Y_RNA"))
    assert vocabulary.by_symbol["Y_RNA"] == 0


def test_a_gene_without_symbol_is_found_by_id_only() -> None:
    vocabulary = Vocabulary(("ENSG00000000001", TP53), ("", "TP53"))
    assert "" not in vocabulary.by_symbol
    assert vocabulary.by_ensembl["ENSG00000000001"] == 0


def test_previous_symbols_of_the_models_genes_only() -> None:
    vocabulary = Vocabulary((CD3D, SELENOT), ("CD3D", "SELENOT"))
    assert vocabulary.by_previous_symbol["SELT"] == 1
    assert set(vocabulary.by_previous_symbol.values()) <= {0, 1}


def test_human_tables_say_nothing_about_another_species() -> None:
    vocabulary = Vocabulary(("ENSMUSG00000059552",), ("Trp53",), species="mouse")
    assert vocabulary.by_symbol == {"Trp53": 0}
    assert vocabulary.by_previous_symbol == {}


def test_case_counts_only_where_the_model_wants_it() -> None:
    strict = Vocabulary((TP53,), ("TP53",))
    loose = Vocabulary((TP53,), ("Tp53",), case_sensitive=False)
    assert strict.fold("Tp53") == "Tp53"
    assert loose.fold("tP53") == "TP53"
    assert loose.by_symbol["TP53"] == 0
    assert not any(symbol != symbol.upper() for symbol in loose.by_symbol | loose.by_previous_symbol)


def test_written_table_is_read_back(tmp_path: Path) -> None:
    vocabulary = Vocabulary((CD3D, TP53, "ENSG00000000001"), ("CD3D", "TP53", ""))
    vocabulary.write(tmp_path / "vocabulary.tsv")
    assert Vocabulary.read(tmp_path / "vocabulary.tsv") == vocabulary


def test_versions_are_stripped_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.tsv"
    path.write_text(f"symbol\tensembl_id\textra\nTP53\t{TP53}.18\tx\n")
    assert Vocabulary.read(path) == Vocabulary((TP53,), ("TP53",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no gene table: it has the columns \[\] and lacks \['ensembl_id', 'symbol'\]"),
        ("gene\tsymbol\n", r"has the columns \['gene', 'symbol'\] and lacks \['ensembl_id'\]"),
        (f"ensembl_id\tsymbol\n{TP53}\tA\n{TP53}.2\tB\n", rf"names a gene twice: \['{TP53}'\]"),
        (f"ensembl_id\tsymbol\n{CD3D}\tCD3D\n{TP53}", "cut or damaged: line 3 has too few columns"),
    ],
)
def test_damaged_table_is_refused_with_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "vocabulary.tsv"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Vocabulary.read(path)


def test_genes_without_an_id_are_found_by_name_only() -> None:
    vocabulary = Vocabulary(("", TP53, ""), ("p_CD3", "TP53", "clone 7"))
    assert vocabulary.by_ensembl == {TP53: 1}
    assert vocabulary.by_symbol["clone 7"] == 2
