"""The options of a loaded model that decide how cells become sentences."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Self

from cfm._core.errors import OptionError

_LONGEST = 1536
_BATCH = 25
_MIN_CELLS, _MIN_GENES = 10, 25
"""Of the official filters."""


@dataclass(frozen=True)
class Choices:
    """The options of `UceModel.load`, checked.

    Parameters
    ----------
    sample_size
        Genes drawn for a cell.
    pad_length
        Longest sentence.
    min_cells, min_genes
        Genes that fewer cells express are left out; then cells that express fewer genes get no sentence.
    seed
        For the draws.
    official
        Whether to draw and to pad as the official code does.
    batch_size
        Cells that are padded together, in the official mode.
    taxon
        Seed of the vectors of chromosomes, for a species of the user's own.
    """

    sample_size: int
    pad_length: int
    min_cells: int
    min_genes: int
    seed: int
    official: bool
    batch_size: int
    taxon: int

    @classmethod
    def of(
        cls,
        positions: int,
        *,
        sample_size: int,
        pad_length: int | None,
        filter: str | None,
        seed: int,
        compat: str | None,
        batch_size: int | None,
        taxon: int | None,
        new_species: bool,
    ) -> Self:
        """Check the options as a user typed them; the network has so many `positions`."""
        longest = min(_LONGEST, positions) if pad_length is None else pad_length
        for option, value, least in (
            ("sample_size", sample_size, 1),
            ("pad_length", longest, 1),
            ("batch_size", _BATCH if batch_size is None else batch_size, 1),
            ("seed", seed, 0),
            ("taxon", 0 if taxon is None else taxon, 0),
        ):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise OptionError(f"{option}={value!r}: type a whole number from {least} on.")
        if longest > positions:
            raise OptionError(f"pad_length={longest}: the network has {positions} positions. Type at most so many.")
        if sample_size + 3 > longest:
            raise OptionError(
                f"sample_size={sample_size} and three more tokens do not fit into pad_length={longest}. Draw fewer genes."
            )
        if taxon is not None and not new_species:
            raise OptionError("taxon= goes with protein_file= and chromosomes=, a species of your own. Leave it out.")
        if batch_size is not None and compat is None:
            raise OptionError("batch_size= goes with compat='official', the only mode with pads. Leave it out.")
        if compat not in (None, "official"):
            raise OptionError(f"compat={compat!r} is unknown. Type 'official', or leave it out.")
        if filter not in (None, "none", "official"):
            raise OptionError(f"filter={filter!r} is unknown. Type 'official', or 'none'.")
        official = compat == "official"
        filters = filter == "official" or (official and filter is None)
        if official and seed >= 2**32:
            raise OptionError(f"seed={seed}: with compat='official', seeds are below 2^32.")
        return cls(
            sample_size=int(sample_size),
            pad_length=int(longest),
            min_cells=_MIN_CELLS if filters else 0,
            min_genes=_MIN_GENES if filters else 0,
            seed=int(seed),
            official=official,
            batch_size=_BATCH if batch_size is None else int(batch_size),
            taxon=0 if taxon is None else int(taxon),
        )
