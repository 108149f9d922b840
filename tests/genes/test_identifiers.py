from __future__ import annotations

import pytest

from cfm.genes import human_genes, human_previous_symbols, mouse_orthologs, strip_version
from cfm.genes.identifiers import human_ensembl_ids


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("ENSG00000141510", "ENSG00000141510"),
        ("ENSG00000141510.18", "ENSG00000141510"),
        ("ENSMUSG00000059552.14", "ENSMUSG00000059552"),
        ("ENST00000269305.9", "ENST00000269305"),
        ("ENSG00000182378.15_PAR_Y", "ENSG00000182378"),
        ("ENSG00000182378_PAR_Y", "ENSG00000182378"),
        ("RP11-34P13.7", "RP11-34P13.7"),
        ("AL627309.1", "AL627309.1"),
        ("ENSA", "ENSA"),  # a symbol: endosulfine alpha
        ("ENSG00000141510.x", "ENSG00000141510.x"),
        ("", ""),
    ],
)
def test_only_ensembl_versions_are_stripped(text: str, plain: str) -> None:
    assert strip_version(text) == plain


def test_well_known_genes_have_their_identifiers() -> None:
    genes = human_genes()
    known = {
        "TP53": "ENSG00000141510",
        "CD3D": "ENSG00000167286",
        "MS4A1": "ENSG00000156738",
        "SELENOT": "ENSG00000198843",
    }
    assert {symbol: genes[symbol] for symbol in known} == known
    assert set(known.values()) <= human_ensembl_ids()
    assert "" not in genes


def test_previous_symbols_name_current_genes_and_are_no_current_symbols() -> None:
    previous = human_previous_symbols()
    assert previous["SELT"] == human_genes()["SELENOT"]
    assert previous["SEP15"] == human_genes()["SELENOF"]
    assert not previous.keys() & human_genes().keys()
    assert set(previous.values()) <= human_ensembl_ids()


def test_orthologs_are_one_to_one_and_human_on_the_other_side() -> None:
    orthologs = mouse_orthologs()
    assert orthologs["Cd3d"] == human_genes()["CD3D"]
    assert orthologs["Trp53"] == human_genes()["TP53"]
    assert len(set(orthologs.values())) == len(orthologs)
    assert set(orthologs.values()) <= human_ensembl_ids()


def test_tables_are_read_once() -> None:
    assert human_genes() is human_genes()
    assert mouse_orthologs() is mouse_orthologs()
