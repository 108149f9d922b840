"""Which column of a data set is which token of a model."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cfm._core.errors import GeneMatchError, MissingKeyError, OptionError

from .diagnosis import likely_cause
from .identifiers import is_ensembl, mouse_orthologs, strip_version
from .vocabulary import Vocabulary

MIN_GENES = 100
"""Fewer genes than this carry no cell identity that a model could read."""

VAR_NAMES = "var_names"

# What `var_names_make_unique` and R's make.unique append to the second column of a name.
_UNIQUE_SUFFIX = re.compile(r"[-.]\d+$")

Lookup = Callable[[str], int]


def _no_token(_name: str) -> int:
    return -1


@dataclass(frozen=True)
class GeneMatch:
    """The token of each column, and how it was found.

    Parameters
    ----------
    tokens
        int32, one per column: the token id, or -1 for a gene that the model does not know.
    names
        The identifier of each column that was looked up.
    column
        ``"var_names"`` or the column of ``var`` that matched best.
    identifier
        ``"symbol"``, ``"ensembl"`` or ``"table"``.
    species
        Species of the data.
    n_tokens
        Number of distinct genes of the vocabulary that were found.
    """

    tokens: NDArray[np.int32]
    names: NDArray[np.str_]
    column: str
    identifier: str
    species: str
    n_tokens: int

    @property
    def n_columns(self) -> int:
        """Columns that match."""
        return int((self.tokens >= 0).sum())


def read_gene_table(path: str | Path) -> dict[str, str]:
    """Read a user's own table: first column the name in the data, second a human symbol or Ensembl id.

    Comma- or tab-separated, with or without a header (a header row maps to nothing and does no harm).
    """
    path = Path(path)
    separator = "," if path.suffix == ".csv" else "\t"
    with path.open(encoding="utf-8", newline="") as handle:
        rows = [row for row in csv.reader(handle, delimiter=separator) if row]
    short = [number for number, row in enumerate(rows, start=1) if len(row) < 2]
    if not rows or short:
        where = f"line {short[0]} has one column" if short else "it is empty"
        msg = f"{path} is no gene table: {where}. Expected two columns: name in the data, human symbol or Ensembl id."
        raise GeneMatchError(msg)
    return {row[0]: row[1] for row in rows}


def match(
    var: pd.DataFrame,
    vocabulary: Vocabulary,
    *,
    gene_column: str | None = None,
    species: str | None = None,
    gene_table: Mapping[str, str] | None = None,
) -> GeneMatch:
    """Find the token of each column of a data set.

    Symbols and Ensembl ids are tried on ``var_names`` and on every text column of `var`; what finds most genes
    wins, and ``var_names`` wins a draw. Names that were made unique by a suffix (``UQCR11-1`` beside ``UQCR11``)
    count as duplicates of the plain name.

    Parameters
    ----------
    var
        The ``var`` of a data set, one row per gene.
    vocabulary
        The genes of the model.
    gene_column
        Look only at this column (``"var_names"`` for the index).
    species
        Species of the data; None takes the model's. ``"mouse"`` with a human model goes through one-to-one
        orthologs.
    gene_table
        A user's own table from names in the data to symbols or Ensembl ids of the model's species.

    Raises
    ------
    GeneMatchError
        Fewer than 100 genes match, or duplicates where the model refuses them.
    """
    species = species or vocabulary.species
    lookups = list(_lookups(vocabulary, species, gene_table))
    best: GeneMatch | None = None
    for column, names in _candidates(var, gene_column):
        for identifier, lookup, fallback in lookups:
            tokens = _find(names, lookup, fallback)
            found = GeneMatch(tokens, names, column, identifier, species, len(np.unique(tokens[tokens >= 0])))
            if best is None or found.n_tokens > best.n_tokens:
                best = found
    if best is None or best.n_tokens < MIN_GENES:
        raise GeneMatchError(_too_few(best, var, vocabulary, species, gene_column))
    if vocabulary.duplicates == "reject":
        _refuse_duplicates(best)
    return best


def _candidates(var: pd.DataFrame, gene_column: str | None) -> Iterator[tuple[str, NDArray[np.str_]]]:
    if gene_column is not None and gene_column != VAR_NAMES and gene_column not in var.columns:
        msg = f"var has no column {gene_column!r}. It has {sorted(map(str, var.columns))}; 'var_names' is the index."
        raise MissingKeyError(msg)
    if gene_column in (None, VAR_NAMES):
        yield VAR_NAMES, np.asarray(var.index.astype(str), dtype=str)
    for column in var.columns if gene_column is None else [gene_column]:
        if column == VAR_NAMES or var[column].dtype.kind in "biufcmM":
            continue
        yield str(column), var[column].astype(str).to_numpy(dtype=str)


def _lookups(
    vocabulary: Vocabulary, species: str, gene_table: Mapping[str, str] | None
) -> Iterator[tuple[str, Lookup, Lookup]]:
    """The ways in which a name can be read: a function from a name to a token or -1, and one for what it leaves."""
    by_ensembl, by_symbol, fold = vocabulary.by_ensembl, vocabulary.by_symbol, vocabulary.fold
    if gene_table is not None:
        target = {name: fold(other) for name, other in gene_table.items()}
        yield "table", lambda name: by_symbol.get(t := target.get(name, ""), by_ensembl.get(strip_version(t), -1)), _no_token
    elif species == vocabulary.species:
        previous = vocabulary.by_previous_symbol
        yield "symbol", lambda name: by_symbol.get(fold(name), -1), lambda name: previous.get(fold(name), -1)
        yield "ensembl", lambda name: by_ensembl.get(strip_version(name), -1), _no_token
    elif (species, vocabulary.species) == ("mouse", "human"):
        orthologs = mouse_orthologs()
        yield "symbol", lambda name: by_ensembl.get(orthologs.get(name, ""), -1), _no_token
    else:
        msg = (
            f"No orthologs from {species!r} to {vocabulary.species!r}: only 'mouse' to 'human' is packaged. "
            "Pass gene_table= with two columns, the name in your data and its human ortholog."
        )
        raise OptionError(msg)


def _find(names: NDArray[np.str_], lookup: Lookup, fallback: Lookup) -> NDArray[np.int32]:
    tokens = np.fromiter((lookup(name) for name in names), dtype=np.int32, count=len(names))
    lost = np.flatnonzero(tokens < 0)
    # A withdrawn symbol counts only where no column bears the current one: HNRNPU-AS1 was once a name of HNRNPU.
    taken = set(tokens.tolist())
    present = set(names.tolist()) if len(lost) else set()
    for i in lost:
        name = str(names[i])
        base = _UNIQUE_SUFFIX.sub("", name)
        # Only a plain name that is itself a column makes this one its duplicate; NKX2-1 alone is no NKX2.
        if base != name and base in present and not is_ensembl(base):
            tokens[i] = lookup(base)
        elif (token := fallback(name)) not in taken:
            tokens[i] = token
    return tokens


def _refuse_duplicates(found: GeneMatch) -> None:
    known = found.tokens[found.tokens >= 0]
    repeated = np.flatnonzero(np.bincount(known) > 1) if len(known) else known
    if len(repeated):
        columns = [str(name) for name in found.names[found.tokens == repeated[0]]]
        msg = (
            f"{len(repeated)} genes stand in several columns of {found.column} (for example {columns}), and this "
            "model takes each gene once. Sum or drop the repeated columns first."
        )
        raise GeneMatchError(msg)


def _too_few(
    best: GeneMatch | None, var: pd.DataFrame, vocabulary: Vocabulary, species: str, gene_column: str | None
) -> str:
    looked = gene_column or f"var_names and the columns {[str(c) for c in var.columns]}"
    n_tokens = best.n_tokens if best is not None else 0
    column = best.column if best is not None else VAR_NAMES
    names = best.names if best is not None else np.asarray(var.index.astype(str), dtype=str)
    return (
        f"Only {n_tokens:,} of {len(var):,} genes are among the {len(vocabulary):,} genes of the model; it needs "
        f"{MIN_GENES}. Looked at {looked}; best was {column}, which begins {[str(n) for n in names[:5]]}.\n"
        f"{likely_cause(names, species)}"
    )
