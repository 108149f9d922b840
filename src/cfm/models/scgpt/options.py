"""The options of a loaded model that decide how cells become tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Self, get_args

from cfm._core.errors import OptionError

from . import files
from .tokenizer import Select, Ties

_LENGTH, _BINS = 1200, 51
"""Of all published models, for folders without args.json."""


@dataclass(frozen=True)
class Choices:
    """The options of `ScgptModel.load`, checked, and filled in from the settings of the training run.

    Parameters
    ----------
    max_length
        Most tokens of a cell.
    n_bins
        Bins of values, 0 included.
    cls_value
        Value beside ``<cls>``.
    ties, select, zeros
        As in `ScgptTokenizer`.
    seeds
        Twice the same one, or in the official mode that of numpy and that of torch.
    official
        Whether to draw as the official code does.
    """

    max_length: int
    n_bins: int
    cls_value: float
    ties: Ties
    select: Select
    seeds: tuple[int, int]
    zeros: bool
    official: bool

    @classmethod
    def of(
        cls,
        args: Mapping[str, Any],
        *,
        ties: Ties,
        select: Select,
        max_length: int | None,
        seed: int | tuple[int, int],
        zeros: bool | None,
        cls_value: float | None,
        compat: str | None,
    ) -> Self:
        """Check the options as a user typed them; `args` has the settings of the training run."""
        for option, value, known in (
            ("ties", ties, get_args(Ties)),
            ("select", select, get_args(Select)),
            ("compat", compat, (None, "official")),
        ):
            if value not in known:
                raise OptionError(f"{option}={value!r} is unknown. Type one of {', '.join(map(repr, known))}.")
        if not isinstance(zeros, bool | None):
            raise OptionError(f"zeros={zeros!r}: type True or False.")
        length = args.get("max_seq_len", _LENGTH) if max_length is None else max_length
        if not is_whole(length) or length < 2:
            msg = f"max_length={length!r} leaves no room for a gene beside <cls>. Type a whole number from 2 on."
            raise OptionError(msg)
        official = compat == "official"
        if official and zeros:
            raise OptionError("zeros=True has no counterpart in the official embed_data. Leave out compat='official'.")
        # In pretraining <cls> has the value of padding.
        told = args.get(files.CLS_VALUE, args.get("pad_value", files.PAD_VALUE))
        beside_cls = told if cls_value is None else cls_value
        if not isinstance(beside_cls, int | float):
            raise OptionError(f"cls_value={beside_cls!r} is no number.")
        return cls(
            max_length=int(length),
            n_bins=int(args.get("n_bins", _BINS)),
            cls_value=float(beside_cls),
            ties=ties,
            select=select,
            seeds=_seeds(seed, official),
            zeros=args.get(files.ZEROS, False) and not official if zeros is None else zeros,
            official=official,
        )


def is_whole(value: object) -> bool:
    """Whether an option is a whole number, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _seeds(seed: Any, official: bool) -> tuple[int, int]:
    if official and any(not is_whole(s) or not 0 <= s < 2**32 for s in (seed if isinstance(seed, tuple) else (seed,))):
        raise OptionError(f"seed={seed!r}: with compat='official', seeds are whole numbers from 0 to 2^32 - 1.")
    if is_whole(seed):
        return seed, seed
    if official and isinstance(seed, tuple) and len(seed) == 2 and all(map(is_whole, seed)):
        return seed[0], seed[1]
    raise OptionError(f"seed={seed!r} is no whole number. A pair of them goes with compat='official'.")
