"""Grouping cells of similar length under a token budget."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cfm.tokens import TokenBatch


def packs(batch: TokenBatch, budget: int, positions: int = 0) -> Iterator[TokenBatch]:
    """Split a batch into packs of similar length whose tokens, padded to the longest, stay within `budget`.

    Cells without tokens are left out; a single cell above the budget makes a pack of its own.

    Parameters
    ----------
    batch
        Tokenised cells.
    budget
        Most tokens in a pack, counted as cells times the longest cell.
    positions
        What a cell counts for at least: networks that see every gene of a cell do as much work for a short one.
    """
    lengths = batch.lengths
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    first = 0
    while first < len(order):
        cells = max(1, budget // max(int(lengths[order[first]]), positions))
        yield batch.take(order[first : first + cells])
        first += cells
