"""The official gene list of scFoundation, which lies beside its weights and is not part of cfm."""

from __future__ import annotations

import csv
from pathlib import Path

from cfm._core.errors import CheckpointError
from cfm._core.logging import logger
from cfm._core.resources import sha256
from cfm.genes import Vocabulary
from cfm.models.given import find_file

PATTERN = "OS_scRNA_gene_index*.tsv"
OFFICIAL_SIZE = 19_264
OFFICIAL_SHA256 = "bb337ea195d94e7b033543abc02a42e7060d6562eba97deb077f7dcecec62661"
_WHERE = (
    f"It is OS_scRNA_gene_index.{OFFICIAL_SIZE}.tsv of the folder model/ of https://github.com/biomap-research/scFoundation: "
    "copy it beside the weights, or type gene_list=FILE."
)


def find_list(folder: Path, given: str | Path | None) -> Path:
    """The gene list that goes with a folder.

    Raises
    ------
    CheckpointError
        None or several lie in the folder.
    OptionError
        The one that was given does not exist.
    """
    if given is not None:
        return find_file(given, "gene_list", folder)
    found = sorted(folder.glob(PATTERN))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{folder} has several gene lists: {[p.name for p in found]}. Type gene_list=FILE.")
    there = sorted(path.name for path in folder.iterdir())
    raise CheckpointError(f"{folder} has no gene list ({PATTERN}). {_WHERE} The folder holds {there}.")


def read_list(path: Path, n_genes: int) -> Vocabulary:
    """The genes in their order; their place in it is what the weights know of them.

    Parameters
    ----------
    path
        Tab-separated, with the columns ``gene_name`` and ``index``.
    n_genes
        Genes that the weights have.

    Raises
    ------
    CheckpointError
        Another format, another number of genes, or a gene twice.
    """
    names = _names(path)
    if len(names) != n_genes:
        raise CheckpointError(
            f"{path} has {len(names):,} genes, and the weights have {n_genes:,}: they are of two models. {_WHERE}"
        )
    if len(set(names)) != n_genes:
        raise CheckpointError(f"{path} names a gene twice. {_WHERE}")
    if n_genes == OFFICIAL_SIZE and (found := sha256(path)) != OFFICIAL_SHA256:
        logger.warning(
            "%s is not the gene list that was published with scFoundation: its SHA-256 is %s and not %s. If genes stand in "
            "another order, every vector is wrong",
            path,
            found,
            OFFICIAL_SHA256,
        )
    return Vocabulary.of_symbols(names)


def _names(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle, delimiter="\t"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(f"{path} is no gene list: {error}. {_WHERE}") from error
    try:
        in_order = [int(row["index"]) for row in rows] == list(range(len(rows)))
    except (KeyError, TypeError, ValueError):
        in_order = False
    if not rows or not in_order or any(not row.get("gene_name") for row in rows):
        raise CheckpointError(
            f"{path} is no gene list: it needs the columns gene_name and index, tab-separated, and the indices 0, 1, 2... in "
            f"this order. {_WHERE}"
        )
    return [row["gene_name"] for row in rows]
