"""The options of a loaded model that decide how cells become tokens, and the depth that is asked for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from cfm._core.errors import OptionError

from .module import Pool

Input = Literal["counts", "normalized"]
Weights = Literal["cell", "gene", "rde"]

_DEPTH = re.compile(r"([tfa])([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)")
_DEFAULT_DEPTH = "t4"


@dataclass(frozen=True)
class Depth:
    """The depth that a cell is asked for, from the depth that it has.

    Parameters
    ----------
    kind
        ``"t"``: the logarithm itself, the same for all cells; ``"f"``: the cell's depth times a factor; ``"a"``: something
        is added to its logarithm.
    number
        The number after the letter.
    """

    kind: str
    number: float

    @classmethod
    def of(cls, text: object, *, official: bool = False) -> Self:
        """Read ``"t4"``, ``"f5"``, ``"a0.5"``, or a number, which counts as after ``t``."""
        found = _DEPTH.fullmatch(f"t{text}" if isinstance(text, Real) and not isinstance(text, bool) else str(text))
        try:
            number = float(found[2]) if found else math.nan
        except ValueError:  # such as 1.2.3
            number = math.nan
        if found is None or not math.isfinite(number):
            raise OptionError(
                f"depth={text!r}: type 't4' (10^4 counts in every cell), 'f5' (five times those of the cell), 'a0.5' (10^0.5 "
                "times), with numbers of your own."
            )
        if number <= 0 and (found[1] == "f" or (found[1] == "t" and not official)):
            raise OptionError(f"depth={text!r} asks for {'no counts' if found[1] == 'f' else 'one count or less'}.")
        return cls(found[1], number)

    def __call__(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """log10 of the depth asked for, float64[n_cells], from the counts of each cell."""
        if self.kind == "t":
            return np.full(len(counts), self.number)
        if self.kind == "f":
            return np.log10(counts * self.number)
        return np.log10(counts) + self.number


@dataclass(frozen=True)
class Choices:
    """Options of `ScfoundationModel.load`, checked.

    Parameters
    ----------
    input
        ``"counts"``, or ``"normalized"``: values are taken as they are.
    depth
        What is asked for; None for samples of bulk, which are asked for what they have.
    target_sum
        Counts to which samples of bulk are scaled.
    pool
        How the vector of a cell is made from its tokens.
    official
        Whether to repeat what the official code does to depths of 0 and less, and to the largest key of a batch.
    """

    input: Input
    depth: Depth | None
    target_sum: float | None
    pool: Pool
    official: bool

    @property
    def bulk(self) -> bool:
        """Whether the cells are samples of bulk."""
        return self.depth is None

    @classmethod
    def of(
        cls,
        *,
        input: Input,
        depth: str | float | None,
        total_key: str | None,
        bulk: bool,
        target_sum: float | None,
        pool: Pool,
        compat: str | None,
    ) -> Self:
        """Check the options as a user typed them."""
        check_known("input", input, get_args(Input))
        check_known("pool", pool, get_args(Pool))
        check_known("compat", compat, (None, "official"))
        if not isinstance(bulk, bool):
            raise OptionError(f"bulk={bulk!r}: type True or False.")
        if total_key is not None and input == "counts":
            raise OptionError("total_key= goes with input='normalized': of counts, the sum is taken.")
        if bulk:
            _check_bulk(input, depth, total_key, target_sum)
        elif target_sum is not None:
            raise OptionError("target_sum= goes with bulk=True: single cells are scaled to 10,000 counts.")
        official = compat == "official"
        wanted = None if bulk else Depth.of(_DEFAULT_DEPTH if depth is None else depth, official=official)
        return cls(input, wanted, None if target_sum is None else float(target_sum), pool, official)


def check_known(option: str, value: object, known: tuple[object, ...]) -> None:
    """That an option has one of its values."""
    if value not in known:
        raise OptionError(f"{option}={value!r} is unknown. Type one of {', '.join(map(repr, known))}.")


def _check_bulk(input: Input, depth: object, total_key: str | None, target_sum: object) -> None:
    for name, value in (("depth", depth), ("total_key", total_key)):
        if value is not None:
            raise OptionError(
                f"{name}= is for single cells: with bulk=True a sample is asked for the depth that it has."
            )
    if input == "normalized":
        if target_sum is not None:
            raise OptionError("target_sum= goes with counts, and input='normalized' takes values as they are.")
        return
    if target_sum is None:
        raise OptionError(
            "bulk=True scales each sample to one number of counts. The official code takes the median of the file, so that a "
            "sample's vector changes with the samples beside it. Type target_sum=, the same number for all files that are to "
            "be compared: the median of one of them is float(numpy.median(adata.X.sum(axis=1)))."
        )
    if not isinstance(target_sum, Real) or not 0 < float(target_sum) < math.inf:
        raise OptionError(f"target_sum={target_sum!r} is no number of counts.")
