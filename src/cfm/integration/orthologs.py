"""Cells of mouse and human on the genes that both have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm._core.errors import GeneMatchError, OptionError
from cfm._core.logging import logger
from cfm.genes import Vocabulary, human_genes, match, mouse_orthologs

SPECIES = ("human", "mouse")
_FEWEST_GENES = 200


@cache
def _common() -> Vocabulary:
    """Human genes with a one-to-one ortholog in the mouse."""
    symbols = {ensembl: symbol for symbol, ensembl in human_genes().items()}
    ids = sorted(set(mouse_orthologs().values()))
    return Vocabulary(tuple(ids), tuple(symbols.get(ensembl, ensembl) for ensembl in ids))


def on_common_genes(
    counts: sp.csr_matrix, var: pd.DataFrame, species: Mapping[str, NDArray[np.int64]], gene_column: str | None
) -> tuple[sp.csr_matrix, NDArray[np.str_]]:
    """Counts of cells of several species, by human genes that all of them have under their own names or an ortholog's.

    Parameters
    ----------
    counts
        [n_cells, n_columns], CSR. Human and mouse genes may be columns of their own, of zeros in the other species.
    var
        Names of the columns.
    species
        Cells of each.
    gene_column
        Look for names only in this column of `var`.

    Returns
    -------
    Counts, [n_cells, n_genes], and the symbols of the genes.

    Raises
    ------
    OptionError
        A species without orthologs.
    GeneMatchError
        Too few genes of a species, or too few that all have.
    """
    if others := sorted(set(species) - set(SPECIES)):
        raise OptionError(f"No orthologs of {others} are packaged: only those of {', '.join(SPECIES)}.")
    common = _common()
    tokens: dict[str, NDArray[np.int32]] = {}
    # Columns count and not cells, so that a cell has the same genes whichever cells come with it.
    for name in SPECIES:
        try:
            tokens[name] = match(var, common, gene_column=gene_column, species=name).tokens
        except GeneMatchError as error:
            if name in species:
                raise GeneMatchError(
                    f"{len(species[name]):,} cells are {name}, and hardly any column bears the name of a {name} gene that has "
                    f"a one-to-one ortholog. Looked at {gene_column or 'var_names and all text columns of var'}, which begins "
                    f"{', '.join(map(str, var.index[:3]))}. Join the species with their own names, GAPDH and Gapdh."
                ) from error
    shared = np.flatnonzero(np.all([np.isin(np.arange(len(common)), own) for own in tokens.values()], axis=0))
    found = ", ".join(f"{len(np.unique(own[own >= 0])):,} of {name}" for name, own in tokens.items())
    if len(shared) < _FEWEST_GENES:
        raise GeneMatchError(
            f"Of the {len(common):,} one-to-one orthologs of human and mouse, var has {found}, and {len(shared):,} of all; at least "
            f"{_FEWEST_GENES} are needed. Join the species without leaving out genes."
        )
    logger.info("species: orthologs in var are %s; %s are common", found, f"{len(shared):,}")
    blocks = []
    for name, rows in species.items():
        columns = np.flatnonzero(np.isin(tokens[name], shared))
        place = np.searchsorted(shared, tokens[name][columns])
        pick = sp.csr_matrix((np.ones(len(columns), np.float32), (columns, place)), (counts.shape[1], len(shared)))
        blocks.append(counts[rows] @ pick)
    order = np.argsort(np.concatenate(list(species.values())))
    return sp.csr_matrix(sp.vstack(blocks, format="csr")[order]), np.array(common.symbols, str)[shared]
