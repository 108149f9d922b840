"""Reading the batch column, and what is said about it."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from cfm._core.errors import MissingKeyError, OptionError
from cfm.integration import find_batches, warn_of_conditions


def frame(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_names_are_sorted_and_numbered() -> None:
    found = find_batches(frame(donor=["b", "a"] * 10), "donor")
    assert found.names == ["a", "b"]
    assert found.codes.tolist() == [1, 0] * 10
    assert found.strata.tolist() == [0] * 20
    assert list(found.categories()) == ["b", "a"] * 10


@pytest.mark.parametrize(
    "values", [[1, 2] * 10, [True, False] * 10, pd.Categorical(["x", "y"] * 10, ["y", "x", "unused"])]
)
def test_kinds_of_columns(values: object) -> None:
    assert len(find_batches(frame(donor=values), "donor").names) == 2


def test_a_missing_column_lists_those_that_there_are() -> None:
    with pytest.raises(MissingKeyError, match=r"obs has no 'donr'. It has \['donor'\]: type batch_key="):
        find_batches(frame(donor=["a", "b"]), "donr")


def test_cells_without_a_batch() -> None:
    with pytest.raises(MissingKeyError, match="has no value for 1 of 3 cells"):
        find_batches(frame(donor=["a", None, "b"]), "donor")


def test_numbers_with_fractions() -> None:
    with pytest.raises(OptionError, match=r"\['donor'\] holds numbers with fractions.*astype\(str\)"):
        find_batches(frame(donor=[0.5, 1.5]), "donor")


def test_whole_numbers_that_became_floats() -> None:
    assert find_batches(frame(donor=[0.0, 1.0, 1.0, 1.0]), "donor").names == ["0", "1"]


def test_two_columns_are_no_batch() -> None:
    with pytest.raises(OptionError, match=r"name of one column of obs.*join two, type adata.obs\['both'\]"):
        find_batches(frame(donor=["a", "b"]), ["donor", "lane"])  # type: ignore[arg-type]


def test_barcodes_are_no_batch() -> None:
    with pytest.raises(
        OptionError, match="40 batches for 80 cells, none with three: it looks like a column of barcodes"
    ):
        find_batches(frame(donor=[f"cell {i // 2}" for i in range(80)]), "donor")


def test_of_many_small_batches_ten_are_named(caplog: pytest.LogCaptureFixture) -> None:
    find_batches(frame(donor=[f"{i:02d}" for i in range(25) for _ in range(3)]), "donor")
    assert "'09' (3) and 15 more. What is special" in caplog.text


def test_a_single_batch() -> None:
    with pytest.raises(OptionError, match="one batch, 'a', in all 3 cells: there is nothing to integrate"):
        find_batches(frame(donor=["a"] * 3), "donor")


def test_a_batch_of_three_cells_is_named(caplog: pytest.LogCaptureFixture) -> None:
    find_batches(frame(donor=["a"] * 20 + ["b"] * 3), "donor")
    assert "batches of fewer than 10 cells in obs['donor']: 'b' (3)" in caplog.text


def test_columns_that_go_with_the_batches_are_named(caplog: pytest.LogCaptureFixture) -> None:
    obs = frame(
        donor=["a", "b", "c", "d"] * 10,
        disease=["ill", "well"] * 20,
        cell_type=["T", "T", "T", "T", "B", "B", "B", "B"] * 5,
        depth=np.linspace(0, 1, 40),
        study=["one"] * 40,
    )
    warn_of_conditions(obs, find_batches(obs, "donor"))
    (record,) = caplog.records
    assert "each batch of obs['donor'] has one value of 'disease' (2 values): what differs" in record.getMessage()
    assert "condition_key=" in record.getMessage()


def test_a_condition_that_cannot_be_told_from_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    obs = frame(donor=["a"] * 20 + ["b"] * 20 + ["c"] * 20, disease=["ill"] * 40 + ["well"] * 20)
    with caplog.at_level(logging.INFO, logger="cfm"):
        found = find_batches(obs, "donor", "disease")
    assert found.strata.tolist() == [0] * 40 + [1] * 20
    assert "1 have a single batch of obs['donor'] ('well')" in caplog.text
    assert "3 of 3 batches have cells of one value only" in caplog.text
