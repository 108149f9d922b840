"""What a list of gene names looks like, for the error that few of them are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .identifiers import human_ensembl_ids, human_genes, mouse_orthologs, strip_version

_HVG_SIZED = 5_000


def likely_cause(names: Sequence[str] | NDArray[np.str_], species: str) -> str:
    """One or two sentences: the likely reason why names are unknown, and what to type next."""
    total = max(len(names), 1)

    def share(test: object) -> float:
        assert callable(test)
        return sum(bool(test(str(name))) for name in names) / total

    mouse, human = mouse_orthologs(), human_genes()
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
    if share(lambda n: "_" in n and n.split("_", 1)[1] in human) > 0.2:
        return "The names carry a genome prefix. Type adata.var_names = adata.var_names.str.split('_', n=1).str[1]."
    if share(lambda n: n.upper() in human) > 0.2:
        return "The names agree with human symbols but for case. Type adata.var_names = adata.var_names.str.upper()."
    known = share(lambda n: n in human or strip_version(n) in human_ensembl_ids())
    if total < _HVG_SIZED and known > 0.2:
        return (
            "The names are human genes, but there are few of them: the object seems to be subset to highly variable "
            "genes or a panel. Use the object before the subsetting, or adata.raw.to_adata() where that holds counts."
        )
    return (
        "Neither symbols nor Ensembl ids were recognised. Name the column with gene_column=, or pass gene_table= with "
        "two columns, the name in your data and the human gene."
    )
