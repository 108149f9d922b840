"""What a list of gene names looks like, for the error that few of them are known."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .identifiers import human_ensembl_ids, human_genes, mouse_orthologs, strip_version

_HVG_SIZED = 5_000

# Cell Ranger writes GRCh38_TP53, and writes GRCh38______TP53 for references of two species made with its old versions.
_PREFIX = re.compile(r"^[^_]+_+")


def likely_cause(names: Sequence[str] | NDArray[np.str_], species: str) -> str:
    """One or two sentences: the likely reason why names are unknown, and what to type next."""
    total = max(len(names), 1)

    def share(test: Callable[[str], bool]) -> float:
        return sum(test(str(name)) for name in names) / total

    mouse, human = mouse_orthologs(), human_genes()

    def is_human(name: str) -> bool:
        return name in human or strip_version(name) in human_ensembl_ids()

    if species != "mouse" and share(lambda n: n in mouse and n not in human) > 0.2:
        return "The names look like mouse symbols. Type species='mouse' to read them through one-to-one orthologs."
    if species == "mouse" and share(lambda n: n in human) > 0.2:
        return "The names look like human symbols. Leave out species='mouse'."
    if share(lambda n: n.startswith("ENSMUSG")) > 0.2:
        return (
            "The names are mouse Ensembl ids, and orthologs are known by mouse symbol. Put the symbols in a column of "
            "var and type species='mouse'."
        )
    if share(lambda n: n.startswith("ENS") and not n.startswith(("ENSG", "ENSMUSG"))) > 0.2:
        return (
            "The names are Ensembl ids of transcripts, proteins or another species. Pass gene_table= with two "
            "columns, the name in your data and the human gene."
        )
    if share(lambda n: n.isdigit()) > 0.5:
        return (
            "The names are numbers (positions or Entrez ids). Put symbols or Ensembl ids in a column of var, or pass "
            "gene_table= with two columns, the number and the human gene."
        )
    if share(lambda n: "_" in n and is_human(_PREFIX.sub("", n))) > 0.2:
        return (
            "The names carry a genome prefix. Type "
            "adata.var_names = adata.var_names.str.replace('^[^_]+_+', '', regex=True)."
        )
    if share(lambda n: n not in human and n.upper() in human) > 0.2:
        return (
            "The names agree with human symbols but for case. If the cells are human, type "
            "adata.var_names = adata.var_names.str.upper()."
        )
    if share(is_human) > 0.2:
        if total >= _HVG_SIZED:
            return "The names are human genes, but few of those that the model knows. Choose another model."
        return (
            "The names are human genes, but there are few of them: the object seems to be subset to highly variable "
            "genes or a panel. Use the object before the subsetting, or adata.raw.to_adata() where that holds counts."
        )
    return (
        "Neither symbols nor Ensembl ids were recognised. Name the column with gene_column=, or pass gene_table= with "
        "two columns, the name in your data and the human gene."
    )


def table_cause(names: Sequence[str] | NDArray[np.str_], gene_table: Mapping[str, str]) -> str:
    """The same where the user's own table was asked: does it speak of these names, and in which column?"""
    present = {str(name) for name in names}
    first = sum(str(name) in present for name in gene_table)
    second = sum(str(other) in present for other in gene_table.values())
    if second > first:
        return (
            f"gene_table has {second:,} of these names in its second column and {first:,} in its first. Swap the "
            "columns: first the name in the data, then the human symbol or Ensembl id."
        )
    return (
        f"gene_table has {first:,} of these names in its first column. It needs the names as they stand in the data "
        "there, and human symbols or Ensembl ids in the second. Names that it lacks are not looked up elsewhere."
    )
