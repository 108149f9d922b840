"""Each likely cause of unknown names, on names as files really have them."""

from __future__ import annotations

import pytest
from anndata import AnnData

from cfm.genes import human_genes, mouse_orthologs
from cfm.genes.diagnosis import likely_cause, table_cause
from cfm.genes.identifiers import human_ensembl_ids

HUMAN = list(human_genes())[:3000]
MOUSE = [symbol for symbol in mouse_orthologs() if symbol not in human_genes()][:3000]
IDS = sorted(human_ensembl_ids())


@pytest.mark.parametrize(
    ("names", "species", "cause", "advice"),
    [
        (MOUSE, "human", "look like mouse symbols", "species='mouse'"),
        ([f"{n}-1" for n in MOUSE[:900]] + MOUSE[900:1200], "human", "look like mouse symbols", "species='mouse'"),
        (HUMAN, "mouse", "look like human symbols", "Leave out species='mouse'"),
        ([f"ENSMUSG{i:011d}" for i in range(500)], "human", "mouse Ensembl ids", "a column of var and type species='mouse'"),
        ([f"ENSMUSG{i:011d}.3" for i in range(500)], "mouse", "mouse Ensembl ids", "Put the symbols in a column"),
        ([f"ENST{i:011d}.2" for i in range(500)], "human", "Ensembl ids of transcripts, proteins", "Pass gene_table="),
        ([f"ENSDARG{i:011d}" for i in range(500)], "human", "or another species", "Pass gene_table="),
        ([str(i) for i in range(500)], "human", "numbers (positions or Entrez ids)", "pass gene_table="),
        ([f"GRCh38_{n}" for n in HUMAN], "human", "carry a genome prefix", "str.replace('^[^_]+_+', '', regex=True)"),
        ([f"hg19___{n}" for n in HUMAN], "human", "carry a genome prefix", "str.replace('^[^_]+_+', '', regex=True)"),
        ([f"GRCh38_{n}.2" for n in IDS[:900]], "human", "carry a genome prefix", "adata.var_names ="),
        ([n.lower() for n in HUMAN], "human", "but for case", "adata.var_names.str.upper()"),
        ([n.capitalize() for n in HUMAN if n.lower().capitalize() not in mouse_orthologs()], "human", "but for case", "upper()"),
        (HUMAN[:90], "human", "subset to highly variable genes or a panel", "adata.raw.to_adata()"),
        (IDS[:90], "human", "subset to highly variable genes or a panel", "Use the object before the subsetting"),
        (IDS[:9000], "human", "few of those that the model knows", "Choose another model"),
        (["x1", "x2", "x3"], "human", "Neither symbols nor Ensembl ids were recognised", "gene_column="),
        ([], "human", "Neither symbols nor Ensembl ids were recognised", "gene_table="),
    ],
)  # fmt: skip
def test_cause_and_advice(names: list[str], species: str, cause: str, advice: str) -> None:
    text = likely_cause(names, species)
    assert cause in text
    assert advice in text


def test_the_advice_about_a_prefix_works() -> None:
    import pandas as pd

    names = pd.Index(["GRCh38_TP53", "hg19______CD3D", "GRCh38_Y_RNA"])
    assert names.str.replace("^[^_]+_+", "", regex=True).tolist() == ["TP53", "CD3D", "Y_RNA"]


def test_a_few_stray_names_do_not_decide() -> None:
    names = [*HUMAN[:900], *MOUSE[:50], *(f"ENSMUSG{i:011d}" for i in range(50))]
    assert "subset to highly variable genes" in likely_cause(names, "human")


def test_real_cells_subset_to_highly_variable_genes(pbmc: AnnData) -> None:
    assert "adata.raw.to_adata() where that holds counts" in likely_cause(pbmc.var_names[:90].tolist(), "human")


def test_table_cause_tells_which_column_holds_the_names() -> None:
    table = {"TP53": "p1", "CD3D": "p2"}
    assert "has 2 of these names in its second column and 0 in its first. Swap the columns" in table_cause(
        ["p1", "p2", "p3"], table
    )
    text = table_cause(["TP53", "x"], table)
    assert "has 1 of these names in its first column" in text
    assert "not looked up elsewhere" in text
