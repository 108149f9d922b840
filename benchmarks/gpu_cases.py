"""What `gpu.py` measures, how it counts, and how it prints. Nothing in here needs a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTH = 64
"""Width of a head: what all the models have, and what the kernels are for."""

TOKENS = 16_384
"""Tokens of a batch of equally long cells, as in the published figures of FlashAttention."""

TABLES = ("uniform", "ragged", "known")

Row = dict[str, Any]
"""A line of a table: table, case, rival, what ("forward", "backward"...), and ms, tflops, MiB or why there are none."""


@dataclass(frozen=True)
class Case:
    """Cells to attend in.

    Parameters
    ----------
    table
        Where it is printed.
    name
        What it is called there.
    lengths
        Tokens of each cell.
    heads
        Number of heads.
    share
        Of the tokens of each cell, how many are known; None: all, and nobody needs the rule.
    flex
        Whether FlexAttention takes part. It compiles anew for each shape, and there are eight minutes.
    """

    table: str
    name: str
    lengths: tuple[int, ...]
    heads: int
    share: float | None = None
    flex: bool = False

    @property
    def offsets(self) -> list[int]:
        """Where each cell begins, and the end of the last."""
        return np.cumsum([0, *self.lengths]).tolist()

    @property
    def known(self) -> list[int] | None:
        """Known tokens of each cell."""
        return None if self.share is None else [int(self.share * n) for n in self.lengths]

    @property
    def tokens(self) -> int:
        """Tokens of all cells."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest cell."""
        return max(self.lengths)

    @property
    def same(self) -> bool:
        """Whether a padded batch has no pads and needs no mask."""
        return self.share is None and len(set(self.lengths)) == 1

    @property
    def pairs(self) -> int:
        """Pairs of tokens of which one sees the other, in all cells. No pads, and nothing that the rule hides."""
        known = self.lengths if self.known is None else self.known
        return sum(n * k + (n - k) for n, k in zip(self.lengths, known, strict=True))

    def flops(self, what: str = "forward") -> float:
        """Useful operations: two products of 2 x 64 for each pair and head; five going back."""
        return 4 * WIDTH * self.heads * self.pairs * (2.5 if what == "backward" else 1)


def cases(table: str, quick: bool = False) -> list[Case]:
    """What a table measures."""
    random = np.random.default_rng(0)
    ragged = {n: tuple(random.integers(300, 2049, n).tolist()) for n in (64, 512)}
    if table == "uniform":
        lengths = (1024, 2048) if quick else (512, 1024, 2048, 4096)
        return [Case(table, f"{TOKENS // n} cells of {n:,}, 32 heads", (n,) * (TOKENS // n), 32) for n in lengths]
    if table == "ragged":
        sizes = [(8, 64)] if quick else [(heads, n) for n in (64, 512) for heads in (8, 12, 18, 20)]
        return [Case(table, f"{n} cells of 300 to 2,048, {heads} heads", ragged[n], heads) for heads, n in sizes]
    if table == "known":
        shares = (0.5,) if quick else (0.25, 0.5, 0.75)
        plain = Case(table, "64 cells, all known, 8 heads", ragged[64], 8, flex=True)
        return [plain, *(Case(table, f"64 cells, {x:.0%} known, 8 heads", ragged[64], 8, x, True) for x in shares)]
    raise ValueError(f"table {table!r}: there are {', '.join(TABLES)}")


@dataclass(frozen=True)
class Spread:
    """Median of repeats, and the range of their middle half."""

    low: float
    median: float
    high: float
    repeats: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """Of some numbers."""
        low, median, high = np.quantile(numbers, [0.25, 0.5, 0.75]).tolist()
        return cls(low, median, high, len(numbers))

    def asdict(self) -> dict[str, float]:
        """For a report."""
        return {"low": self.low, "median": self.median, "high": self.high, "repeats": self.repeats}


def row(case: Case, rival: str, what: str, ms: Spread, mib: float, ceiling: float | None) -> Row:
    """A line that was measured; `ceiling` in TFLOP/s is that of a large matrix product."""
    tflops = case.flops(what) / ms.median / 1e9
    return {"table": case.table, "case": case.name, "rival": rival, "what": what, "ms": ms.asdict(), "tflops": tflops,
            "of ceiling": tflops / ceiling if ceiling else None, "MiB": mib}  # fmt: skip


def no_row(table: str, case: str, rival: str, what: str, why: str) -> Row:
    """A line that says why there are no numbers."""
    return {"table": table, "case": case, "rival": rival, "what": what, "why": " ".join(why.split())[:300]}


def line(made: Row) -> str:
    """A line of a table as text."""
    head = f"  {made['rival']:<24}{made['what']:<10}"
    if "why" in made:
        return f"{head}-  {made['why']}"
    ms = made["ms"]
    text = f"{head}{ms['median']:10.3f} ms  ({ms['low']:.3f} to {ms['high']:.3f}, {ms['repeats']})"
    if made.get("tflops") is not None:
        text = f"{text:<78}{made['tflops']:6.0f} TFLOP/s"
        if made.get("of ceiling") is not None:
            text += f" {made['of ceiling']:4.0%}"
    if "cells/s" in made:
        text = f"{text:<78}{made['cells/s']['median']:6,.0f} cells/s"
    if made.get("MiB") is not None:
        text = f"{text:<100}{made['MiB']:9,.0f} MiB"
    if made.get("cosine") is not None:
        text += f"  lowest cosine {made['cosine']:.5f}"
    return text + (f"  WRONG: error {made['error']:.1e}" if made.get("wrong") else "")


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Text in columns, two blanks apart."""
    lines = [list(map(str, line)) for line in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{x:<{n}}" for x, n in zip(line, widths, strict=True)).rstrip() for line in lines)


def find(rows: Iterable[Row], **wanted: str) -> list[Row]:
    """Measured rows with these entries."""
    return [x for x in rows if "ms" in x and all(x.get(key) == value for key, value in wanted.items())]
