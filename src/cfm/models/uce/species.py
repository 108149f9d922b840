"""Which token is which gene: rows of the table, chromosomes, and places on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cfm._core.errors import CheckpointError, OptionError
from cfm.genes import Vocabulary
from cfm.models.pickles import read_pickled

from .gene_lists import SPECIES, gene_order

CHROMOSOMES, OFFSETS = "species_chrom.csv", "species_offsets.pkl"
PAD, RIGHT, CLS, FIRST_GENE = 0, 2, 3, 4
"""Rows of padding, the end of a chromosome and the beginning of a sentence, and the first row of a gene. Row 1 is unused."""

_COLUMNS = ["gene_symbol", "chromosome", "start", "species"]


@dataclass(frozen=True)
class Genes:
    """The genes of a species that have a protein and a place: those that a sentence can hold.

    Parameters
    ----------
    species
        Name.
    symbols
        In upper case, in the order of rows.
    rows
        int32: row of each gene in the table of tokens.
    chromosomes
        int32: row of the token of its chromosome.
    starts
        int64: its place on the chromosome.
    """

    species: str
    symbols: tuple[str, ...]
    rows: NDArray[np.int32]
    chromosomes: NDArray[np.int32]
    starts: NDArray[np.int64]

    def vocabulary(self) -> Vocabulary:
        """The genes for matching: human ones by Ensembl id too, whatever the case of symbols."""
        if self.species == "human":
            return Vocabulary.of_symbols(self.symbols, case_sensitive=False)
        nothing = ("",) * len(self.symbols)
        return Vocabulary(nothing, self.symbols, self.species, case_sensitive=False, identifier="symbol")

    def reading_order(self) -> NDArray[np.int64]:
        """Positions of the genes by chromosome, then by start; those of equal start by row."""
        return np.lexsort((self.rows, self.starts, self.chromosomes))


def checked_species(species: str | None, *, new: bool) -> str:
    """The name of a species as files have it.

    Parameters
    ----------
    species
        As typed; None is human.
    new
        Whether proteins and chromosomes of its own were given.

    Raises
    ------
    OptionError
        UCE does not know it, or a new one has no name.
    """
    if new and not species:
        raise OptionError("protein_file= and chromosomes= are for a species of your own: type its name, species='rat'.")
    name = (species or "human").lower()
    if name in SPECIES or new:
        return name
    known = ", ".join(SPECIES)
    raise OptionError(
        f"species={species!r}: UCE was trained on {known}. For another one, type protein_file=, a file of torch.save with the "
        "ESM2 vector of each gene symbol (the official repository of UCE tells how to make it), and chromosomes=, a table "
        "(.csv) with the columns gene_symbol, chromosome, start and species."
    )


def trained_genes(places: list[Path], species: str, n_rows: int, first_chromosome: int | None = None) -> Genes:
    """The genes of a species that the model was trained on.

    Parameters
    ----------
    places
        Folders to look at.
    species
        One of `SPECIES`.
    n_rows
        Rows of the table of tokens.
    first_chromosome
        The first row of a chromosome, where something tells it.

    Raises
    ------
    CheckpointError
        A file is missing, damaged, or does not go with the table.
    """
    table = read_chromosomes(_find(places, CHROMOSOMES))
    path = _find(places, OFFSETS)
    offsets = _read_offsets(path)
    if species not in offsets:
        raise CheckpointError(f"{path} has {', '.join(sorted(offsets))}, not {species}.")
    names = chromosome_names(table)
    # Chromosomes stand at the end of the table, in the order of their names.
    by_names = n_rows - len(names)
    if first_chromosome not in (None, by_names):
        raise CheckpointError(
            f"Chromosomes begin at row {first_chromosome:,} by the settings beside the weights, and at row {by_names:,} by "
            f"{CHROMOSOMES}, which names {len(names):,} of {n_rows:,} rows. Copy all files from one source."
        )
    order = gene_order(places, species)
    first = offsets[species]
    after = min([offset for offset in offsets.values() if offset > first], default=by_names)
    if min(offsets.values()) < FIRST_GENE or first + len(order) != after:
        raise CheckpointError(
            f"The files of {species} do not go with the weights: its genes have the rows {first:,} to {after - 1:,} of "
            f"{n_rows:,} ({OFFSETS}; the last {len(names):,} are the chromosomes of {CHROMOSOMES}), and {len(order):,} genes "
            "are listed for it. Copy all files from one source."
        )
    return _placed(species, order, first, table, names, by_names)


def new_genes(species: str, symbols: list[str], chromosomes: Path) -> tuple[Genes, int]:
    """The genes of a species of the user's own, and the number of its chromosomes.

    Its rows follow on those of the special tokens, and its chromosomes on the genes, as in the official files for new
    species.
    """
    table = read_chromosomes(chromosomes)
    table = table[table["species"].str.lower() == species]
    if not len(table):
        raise OptionError(f"{chromosomes} has no gene whose column species says {species!r}.")
    names = chromosome_names(table)
    genes = _placed(species, symbols, FIRST_GENE, table, names, FIRST_GENE + len(symbols))
    if not len(genes.symbols):
        raise OptionError(f"No symbol of {chromosomes} is among the {len(symbols):,} of the protein file.")
    return genes, len(names)


def chromosome_names(table: pd.DataFrame) -> list[str]:
    """Names of all chromosomes, ``species_chromosome``, in the order of their tokens."""
    return sorted(set(table["species"] + "_" + table["chromosome"]))


def read_chromosomes(path: Path) -> pd.DataFrame:
    """The table of places: symbol (upper case), chromosome, start, species.

    Raises
    ------
    CheckpointError
        It lacks a column, or a start is no whole number.
    """
    try:
        # Everything as text: a chromosome is called 1, and a gene may be called NA.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path} is no table: {error}. Copy it again from where it came.") from error
    if lacking := [column for column in _COLUMNS if column not in table]:
        raise CheckpointError(f"{path} lacks the columns {lacking}; it has {list(map(str, table.columns))}.")
    starts = pd.to_numeric(table["start"], errors="coerce")
    if bad := int((starts.isna() | (starts != starts.round())).sum()):
        raise CheckpointError(f"{path} has {bad:,} of {len(table):,} genes whose start is no whole number.")
    return table[_COLUMNS].assign(gene_symbol=table["gene_symbol"].str.upper(), start=starts.astype(np.int64))


def _placed(
    species: str, order: list[str], first: int, table: pd.DataFrame, names: list[str], first_chromosome: int
) -> Genes:
    """Genes that have a row and a place; of several places the first counts."""
    own = table[table["species"].str.lower() == species].drop_duplicates("gene_symbol").set_index("gene_symbol")
    codes = {name: code for code, name in enumerate(names)}
    known = [i for i, symbol in enumerate(order) if symbol in own.index]
    symbols = tuple(order[i] for i in known)
    places = own.loc[list(symbols)]
    chromosomes = [codes[name] for name in places["species"] + "_" + places["chromosome"]]
    return Genes(
        species,
        symbols,
        np.array(known, np.int32) + np.int32(first),
        np.array(chromosomes, np.int32) + np.int32(first_chromosome),
        places["start"].to_numpy(np.int64),
    )


def _find(places: list[Path], name: str) -> Path:
    for place in places:
        if (place / name).is_file():
            return place / name
    there = sorted(path.name for path in places[0].iterdir())
    raise CheckpointError(f"{places[0]} has no {name}, which a UCE folder needs. It holds {there}.")


def _read_offsets(path: Path) -> dict[str, int]:
    found = read_pickled(path, "row numbers of species")
    plain = isinstance(found, dict) and all(
        isinstance(name, str) and type(row) is int and row >= 0 for name, row in found.items()
    )
    if not plain or not found:
        raise CheckpointError(f"{path} is no dictionary from species to row numbers. Copy the official file again.")
    return dict(found)
