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

from .diagnosis import likely_cause, table_cause
from .identifiers import mouse_orthologs, strip_version
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

    def exact(self, tokens: Mapping[str, int], spelt: Callable[[str], str] = str) -> NDArray[np.int32]:
        """int32, one per column: the token of exactly its name (as `spelt`), or -1: as official codes match."""
        return np.array([tokens.get(spelt(str(name)), -1) for name in self.names], np.int32)


def read_gene_table(path: str | Path) -> dict[str, str]:
    """Read a user's own table: first column the name in the data, second a human symbol or Ensembl id.

    Comma- or tab-separated, with or without a header (a header row maps to nothing and does no harm).
    """
    path = Path(path)
    if not path.is_file():
        raise OptionError(f"There is no gene table {path}. Give the path of a file with two columns, or a dictionary.")
    separator, ending = (",", "comma") if path.suffix.lower() == ".csv" else ("\t", "tab")
    table: dict[str, str] = {}
    trouble = "it is empty"
    with path.open(encoding="utf-8-sig", newline="") as handle:  # spreadsheets begin a file with a byte order mark
        reader = csv.reader(handle, delimiter=separator)
        for row in reader:
            if len(row) == 1:
                table, trouble = {}, f"line {reader.line_num} has one column"
                break
            if row:
                table[row[0].strip()] = row[1].strip()
    if not table:
        msg = (
            f"{path} is no gene table: {trouble}. Expected two columns with a {ending} between: name in the data, "
            "human symbol or Ensembl id. Files that end in .csv are read with commas, all others with tabs."
        )
        raise GeneMatchError(msg)
    return table


def match(
    var: pd.DataFrame,
    vocabulary: Vocabulary,
    *,
    gene_column: str | None = None,
    species: str | None = None,
    gene_table: Mapping[str, str] | None = None,
    min_genes: int = MIN_GENES,
) -> GeneMatch:
    """Find the token of each column of a data set.

    Symbols and Ensembl ids are tried on ``var_names`` and on every text column of `var`; what finds most genes
    wins; a draw goes to the kind of name that the vocabulary is made of, then to ``var_names``. Names that were made unique by a suffix (``UQCR11-1`` beside ``UQCR11``)
    count as duplicates of the plain name. Among symbols, withdrawn ones and Ensembl ids are read too where no column
    bears the current symbol.

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
    min_genes
        Fewer matches are an error.

    Raises
    ------
    GeneMatchError
        Fewer than `min_genes` genes match, or duplicates where the model refuses them.
    """
    species = (species or vocabulary.species).lower()
    lookups = list(_lookups(vocabulary, species, gene_table))
    best: GeneMatch | None = None
    best_rank = (-1, -1)
    for column, values in _candidates(var, gene_column):
        # Each name once: columns such as feature_type repeat one text for every gene.
        codes, distinct = pd.factorize(values, use_na_sentinel=False)
        names = [str(name) for name in distinct]
        for identifier, lookup, fallback in lookups:
            tokens, n_plain = _find(names, lookup, fallback)
            n_tokens = len(np.unique(tokens[tokens >= 0]))
            rank = (n_tokens, n_plain if identifier == vocabulary.identifier else 0)
            if rank > best_rank:
                best_rank = rank
                best = GeneMatch(tokens[codes], np.array(names, str)[codes], column, identifier, species, n_tokens)
    if best is None or best.n_tokens < min_genes:
        raise GeneMatchError(_too_few(best, var, vocabulary, species, gene_column, gene_table, min_genes))
    if vocabulary.duplicates == "reject":
        _refuse_duplicates(best)
    return best


def _candidates(var: pd.DataFrame, gene_column: str | None) -> Iterator[tuple[str, pd.Index | pd.Series]]:
    if gene_column is not None and gene_column != VAR_NAMES and gene_column not in var.columns:
        msg = f"var has no column {gene_column!r}. It has {sorted(map(str, var.columns))}; 'var_names' is the index."
        raise MissingKeyError(msg)
    if gene_column in (None, VAR_NAMES):
        yield VAR_NAMES, var.index.astype(str)
    for column, values in var.items():
        # Numbers are read as names only where the user points at them, with a table of Entrez ids for example.
        wanted = values.dtype.kind not in "biufcmM" if gene_column is None else column == gene_column
        if wanted and column != VAR_NAMES:
            yield str(column), values.astype(str)


def _lookups(
    vocabulary: Vocabulary, species: str, gene_table: Mapping[str, str] | None
) -> Iterator[tuple[str, Lookup, Lookup]]:
    """The ways in which a name can be read: a function from a name to a token or -1, and one for what it leaves."""
    by_symbol, previous, fold = vocabulary.by_symbol, vocabulary.by_previous_symbol, vocabulary.fold

    def identifier(name: str) -> int:
        plain = strip_version(name.upper() if name.startswith("ensg") else name)
        alias = vocabulary.alias(plain) if plain.startswith("ENS") else None
        return vocabulary.by_ensembl.get(plain, -1) if alias is None else alias

    def symbol(name: str) -> int:
        alias = vocabulary.alias(name)
        return by_symbol.get(fold(name), -1) if alias is None else alias

    if gene_table is not None:
        target = {str(name): fold(str(other)) for name, other in gene_table.items()}
        yield (
            "table",
            lambda name: by_symbol.get(t := target.get(name, ""), identifier(t)),
            lambda name: previous.get(target.get(name, ""), -1),
        )
    elif species == vocabulary.species:
        yield "ensembl", identifier, _no_token
        # Columns of symbols often hold the Ensembl id where a gene has no symbol.
        yield (
            "symbol",
            symbol,
            lambda name: previous.get(fold(name), identifier(name)),
        )
    elif (species, vocabulary.species) == ("mouse", "human"):
        orthologs = mouse_orthologs()
        yield "symbol", lambda name: identifier(orthologs.get(name, "")), _no_token
    else:
        msg = (
            f"No orthologs from {species!r} to {vocabulary.species!r}: only 'mouse' to 'human' is packaged. "
            "Pass gene_table= with two columns, the name in your data and its human ortholog."
        )
        raise OptionError(msg)


def _find(names: list[str], lookup: Lookup, fallback: Lookup) -> tuple[NDArray[np.int32], int]:
    """Token of each name, and how many names were found without a second look."""
    tokens = np.fromiter((lookup(name) for name in names), dtype=np.int32, count=len(names))
    # What is found in a second look counts only where no column was found in the first: HNRNPU-AS1 was once a name
    # of HNRNPU.
    taken = set(tokens.tolist())
    lost = np.flatnonzero(tokens < 0).tolist()
    n_plain = len(names) - len(lost)
    present = set(names)
    for i in lost:
        name = names[i]
        base = _UNIQUE_SUFFIX.sub("", name)
        # Only a plain name that is itself a column makes this one its duplicate; NKX2-1 alone is no NKX2.
        duplicate = base != name and base in present
        if duplicate:
            tokens[i] = lookup(base)
        for older in (name, base) if duplicate else (name,):
            if tokens[i] < 0 and (token := fallback(older)) not in taken:
                tokens[i] = token
    return tokens, n_plain


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
    best: GeneMatch | None,
    var: pd.DataFrame,
    vocabulary: Vocabulary,
    species: str,
    gene_column: str | None,
    gene_table: Mapping[str, str] | None,
    min_genes: int,
) -> str:
    looked = gene_column or f"var_names and the columns {[str(c) for c in var.columns]}"
    n_tokens = best.n_tokens if best is not None else 0
    column = best.column if best is not None else VAR_NAMES
    names = best.names if best is not None else np.asarray(var.index.astype(str), dtype=str)
    cause = likely_cause(names, species) if gene_table is None else table_cause(names, gene_table)
    return (
        f"Only {n_tokens:,} of {len(var):,} genes are among the {len(vocabulary):,} genes of the model; it needs "
        f"{min_genes}. Looked at {looked}; best was {column}, which begins {[str(n) for n in names[:5]]}.\n{cause}"
    )
