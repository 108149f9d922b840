"""Packaged tables, and files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cfm._core.resources import atomic_path, read_tsv, sha256


def test_atomic_path_puts_a_whole_file_in_place(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "cells.h5ad"
    with atomic_path(target) as path:
        assert path.suffix == ".h5ad"
        assert path.parent.parent == target.parent, "another file system could not rename it"
        path.write_text("all of it")
        assert not target.exists()
    assert target.read_text() == "all of it"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "cells.h5ad"

    def fail() -> None:
        with atomic_path(target) as path:
            path.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert list(tmp_path.iterdir()) == []
    target.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        fail()
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_text() == "old"


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "cells.h5ad"
    target.write_text("old")
    with atomic_path(str(target)) as path:
        path.write_text("new")
    assert target.read_text() == "new"


def test_folders_too(tmp_path: Path) -> None:
    target = tmp_path / "cells.zarr"
    with atomic_path(target) as path:
        path.mkdir()
        (path / "zarr.json").write_text("{}")
    assert (target / "zarr.json").read_text() == "{}"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_the_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with atomic_path(tmp_path / "weights") as path:
            path.touch(mode=0o600)
        assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o644
        assert os.umask(0o022) == 0o022, "the umask of the process is changed"
    finally:
        os.umask(before)


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    assert sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_read_tsv() -> None:
    rows = read_tsv("cfm.genes.data", "human_genes.tsv.gz")
    assert {"ensembl_id": "ENSG00000167286", "symbol": "CD3D"} in rows
