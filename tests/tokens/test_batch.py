"""The ragged batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cfm.tokens import TokenBatch


def batch(**changes: Any) -> TokenBatch:
    """Three cells with 2, 0 and 3 tokens."""
    fields: dict[str, Any] = {
        "ids": np.array([5, 6, 7, 8, 9], np.int32),
        "values": np.array([0.5, 0.6, 0.7, 0.8, 0.9], np.float32),
        "offsets": np.array([0, 2, 2, 5]),
        "rows": np.array([10, 11, 12]),
        "cell_scalars": {"total": np.array([1, 2, 3], np.float32)},
    }
    return TokenBatch(**fields | changes)


def test_lengths() -> None:
    assert batch().n_cells == 3
    assert batch().lengths.tolist() == [2, 0, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([0, 2, 5])}, "5 tokens of 3 cells"),
        ({"offsets": np.array([1, 2, 2, 5])}, "do not span"),
        ({"offsets": np.array([0, 2, 2, 4])}, "do not span"),
        ({"offsets": np.array([0, 4, 2, 5])}, "do not span"),
        ({"offsets": np.array([], np.int64)}, "do not span"),
        ({"values": np.ones(4, np.float32)}, "4 values for 5 tokens"),
        ({"cell_scalars": {"total": np.ones(2, np.float32)}}, "2 cell scalars 'total' for 3 cells"),
    ],
    ids=["too few", "begin", "end", "descending", "none", "values", "scalars"],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch(**changes)


def test_take_keeps_everything_of_a_cell_together() -> None:
    got = batch().take(np.array([2, 1, 0, 2]))
    assert got.ids.tolist() == [7, 8, 9, 5, 6, 7, 8, 9]
    assert got.values is not None
    np.testing.assert_array_equal(got.values, np.array([0.7, 0.8, 0.9, 0.5, 0.6, 0.7, 0.8, 0.9], np.float32))
    assert got.offsets.tolist() == [0, 3, 3, 5, 8]
    assert got.rows.tolist() == [12, 11, 10, 12]
    assert got.cell_scalars["total"].tolist() == [3, 2, 1, 3]
    assert (got.ids.dtype, got.offsets.dtype) == (np.int32, np.int64)


def test_take_of_nothing_and_without_values() -> None:
    none = batch(values=None).take(np.array([], np.int64))
    assert (none.n_cells, none.ids.size, none.values, none.offsets.tolist()) == (0, 0, None, [0])
