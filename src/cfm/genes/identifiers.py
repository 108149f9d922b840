"""Packaged identifier tables. Sources, versions and licences stand in ``data/SOURCES.md``."""

from __future__ import annotations

import re
from functools import cache

from cfm._core.resources import read_tsv

_PACKAGE = "cfm.genes.data"
_VERSION = re.compile(r"^(ENS[A-Z]*[GTP]\d{11})(\.\d+)?(_PAR_Y)?$")


def strip_version(identifier: str) -> str:
    """An Ensembl identifier without its version and without GENCODE's ``_PAR_Y``; any other text as it is.

    Examples
    --------
    >>> strip_version("ENSG00000141510.18"), strip_version("RP11-34P13.7")
    ('ENSG00000141510', 'RP11-34P13.7')
    """
    found = _VERSION.match(identifier) if identifier.startswith("ENS") else None
    return found.group(1) if found else identifier


@cache
def human_genes() -> dict[str, str]:
    """Ensembl id of each current human symbol (GENCODE v44).

    A symbol that several ids share gives the lowest id, which is the one on a primary chromosome in all but
    a handful of cases.
    """
    table: dict[str, str] = {}
    for row in read_tsv(_PACKAGE, "human_genes.tsv.gz"):
        if row["symbol"]:
            table.setdefault(row["symbol"], row["ensembl_id"])
    return table


@cache
def human_ensembl_ids() -> frozenset[str]:
    """All human Ensembl gene ids of GENCODE v44."""
    return frozenset(row["ensembl_id"] for row in read_tsv(_PACKAGE, "human_genes.tsv.gz"))


@cache
def human_previous_symbols() -> dict[str, str]:
    """Ensembl id of each withdrawn human symbol that names one gene only and is no current symbol."""
    return {row["previous_symbol"]: row["ensembl_id"] for row in read_tsv(_PACKAGE, "human_previous_symbols.tsv.gz")}


@cache
def mouse_orthologs() -> dict[str, str]:
    """Human Ensembl id of each mouse symbol with a one-to-one human ortholog (Ensembl 105)."""
    rows = read_tsv(_PACKAGE, "mouse_human_orthologs.tsv.gz")
    return {row["mouse_symbol"]: row["human_ensembl_id"] for row in rows if row["human_ensembl_id"]}
