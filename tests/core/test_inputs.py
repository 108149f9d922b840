"""Checks of arguments."""

from __future__ import annotations

import pandas as pd
import pytest
from anndata import AnnData

import cfm
from cfm._core.inputs import announce_overwrite, writable


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(cfm.errors.OptionError, match=r"Expected an AnnData object, got DataFrame.*read_h5ad"):
        writable(pd.DataFrame(), copy=False)  # type: ignore[arg-type]


def test_the_object_itself_or_a_copy(few: AnnData) -> None:
    assert writable(few, copy=False) is few
    assert writable(few, copy=True) is not few


def test_overwriting_is_said(few: AnnData, said: list[str]) -> None:
    announce_overwrite(few, "obs", "new")
    assert said == []
    announce_overwrite(few, "obs", "n_counts")
    assert said == ["INFO obs['n_counts'] exists and is overwritten"]
