"""The options of a loaded model that decide how cells become sentences."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Self

from cfm._core.errors import OptionError

_LONGEST = 1536
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
    """

    sample_size: int
    pad_length: int
    min_cells: int
    min_genes: int
    seed: int
    official: bool
    batch_size: int

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
        batch_size: int,
    ) -> Self:
        """Check the options as a user typed them; the network has so many `positions`."""
        longest = min(_LONGEST, positions) if pad_length is None else pad_length
        for option, value, least in (
            ("sample_size", sample_size, 1),
            ("pad_length", longest, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise OptionError(f"{option}={value!r}: type a whole number from {least} on.")
        if longest > positions:
            raise OptionError(f"pad_length={longest}: the network has {positions} positions. Type at most so many.")
        if sample_size + 3 > longest:
            raise OptionError(
                f"sample_size={sample_size} and three more tokens do not fit into pad_length={longest}. Draw fewer genes."
            )
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
            batch_size=int(batch_size),
        )


def existing(option: str, value: str | Path | None) -> Path | None:
    """The file that an option names.

    Raises
    ------
    OptionError
        There is none.
    """
    if value is None:
        return None
    path = Path(_text(option, value)).expanduser()
    if not path.is_file():
        raise OptionError(f"{option}={str(value)!r}: there is no such file.")
    return path


def _text(option: str, value: Any) -> str | Path:
    if not isinstance(value, str | Path):
        raise OptionError(f"{option}={value!r}: type the path of a file.")
    return value
