"""Records that h5ad and zarr can hold."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from cfm._core.records import make_record, write_record

FACTS = {
    "name": "cfm-mini",
    "nothing": None,
    "labels": ("B cell", "T cell"),
    "none": (),
    "number": 3,
    "share": 0.25,
    "array": np.array([0.5, 0.25]),
    "inside": {"nothing": None, "pair": ("a", "b")},
}


def test_none_is_left_out_and_tuples_become_lists() -> None:
    record = make_record("cfm.tl.embed", **FACTS)
    assert record["function"] == "cfm.tl.embed"
    assert record["version"] == version("cfm-tools")
    assert datetime.fromisoformat(record["time"]).utcoffset() is not None
    assert "nothing" not in record
    assert record["labels"] == ["B cell", "T cell"]
    assert record["inside"] == {"pair": ["a", "b"]}
    assert record["number"] == 3


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_records_survive_files(tmp_path: Path, kind: str) -> None:
    adata = ad.AnnData(np.ones((2, 2), np.float32))
    write_record(adata.uns, "X_cfm", make_record("cfm.tl.embed", **FACTS))
    path = tmp_path / f"file.{kind}"
    getattr(adata, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path).uns["cfm"]["X_cfm"]
    assert back["name"] == "cfm-mini"
    assert list(back["labels"]) == ["B cell", "T cell"]
    assert len(back["none"]) == 0
    assert back["number"] == 3
    assert back["share"] == 0.25
    assert list(back["inside"]["pair"]) == ["a", "b"]
    np.testing.assert_array_equal(back["array"], [0.5, 0.25])


def test_other_records_stay_and_shared_ones_are_not_written_to() -> None:
    uns: dict[str, object] = {"other": 1, "cfm": {"X_cfm": {"a": 1}, "cfm_label": {"b": 2}}}
    shared = uns["cfm"]
    write_record(uns, "X_cfm", {"a": 3})
    assert uns == {"other": 1, "cfm": {"X_cfm": {"a": 3}, "cfm_label": {"b": 2}}}
    # A shallow copy of an object shares the dictionary inside uns.
    assert shared == {"X_cfm": {"a": 1}, "cfm_label": {"b": 2}}
