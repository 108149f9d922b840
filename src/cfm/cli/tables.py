"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def pairs(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A title and indented lines of a name and a value.

    Examples
    --------
    >>> print(pairs("cells.h5ad", [("cells", "700"), ("genes", "765")]))
    cells.h5ad
      cells  700
      genes  765
    """
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}".rstrip() for name, value in rows)])


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns; the first row is the header.

    Examples
    --------
    >>> print(columns([("label", "cells"), ("B cell", "95")]))
    label   cells
    B cell  95
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def labels_found(labels: pd.Series, confidence: pd.Series | None = None) -> list[tuple[str, ...]]:
    """Rows of a table: each label, its cells, and their mean confidence; most cells first."""
    counts = labels.astype(str).value_counts()
    rows: list[tuple[str, ...]] = [("label", "cells")]
    rows += [(str(label), f"{number:,}") for label, number in counts.items()]
    if confidence is None:
        return rows
    means = confidence.groupby(labels.astype(str)).mean()
    return [(*rows[0], "mean confidence"), *((*row, f"{means[row[0]]:.2f}") for row in rows[1:])]
