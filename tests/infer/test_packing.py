"""Packs under a token budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfm.infer import packs
from cfm.tokens import TokenBatch


def batch(lengths: list[int]) -> TokenBatch:
    """Cells of these lengths; the tokens of cell i are i, and its row is 100 + i."""
    cells = np.arange(len(lengths))
    ids = np.repeat(cells, lengths).astype(np.int32)
    return TokenBatch(ids, ids.astype(np.float32), np.cumsum([0, *lengths]), 100 + cells)


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 100))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_cell_once_and_within_the_budget(lengths: list[int], budget: int) -> None:
    made = list(packs(batch(lengths), budget))
    rows = [row for pack in made for row in pack.rows.tolist()]
    assert sorted(rows) == [100 + i for i, length in enumerate(lengths) if length > 0]
    for pack in made:
        padded = pack.n_cells * pack.lengths.max()
        assert padded <= budget or pack.n_cells == 1
        for row, ids in zip(pack.rows, np.split(pack.ids, pack.offsets[1:-1]), strict=True):
            assert ids.tolist() == [row - 100] * lengths[row - 100]


def test_similar_lengths_stand_together() -> None:
    made = list(packs(batch([1, 9, 2, 10, 0, 2, 1, 9]), 20))
    assert [pack.lengths.tolist() for pack in made] == [[10, 9], [9, 2], [2, 1, 1]]
    # Cells of one length keep their order.
    assert [pack.rows.tolist() for pack in made] == [[103, 101], [107, 102], [105, 100, 106]]


@pytest.mark.parametrize("budget", [1, 10, 999])
def test_a_giant_cell_stands_alone(budget: int) -> None:
    made = list(packs(batch([3, 1000, 4]), budget))
    assert made[0].rows.tolist() == [101]
    assert sorted(row for pack in made[1:] for row in pack.rows.tolist()) == [100, 102]


def test_nothing_to_pack() -> None:
    assert list(packs(batch([]), 10)) == []
    assert list(packs(batch([0, 0]), 10)) == []
