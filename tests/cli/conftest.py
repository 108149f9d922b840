"""Real cells as files, and a look at files that notices every change of a byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import anndata as ad
import pytest
from anndata import AnnData

KINDS = ("h5ad", "zarr")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Both kinds of file."""
    return str(request.param)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[AnnData, str], Path]:
    """``save(adata, "name.h5ad")`` or ``"name.zarr"``: write and give the path."""

    def write(adata: AnnData, name: str) -> Path:
        path = tmp_path / name
        if path.suffix == ".zarr":
            adata.write_zarr(path)
        else:
            adata.write_h5ad(path)
        return path

    return write


@pytest.fixture
def cells(few: AnnData, kind: str, save: Callable[[AnnData, str], Path]) -> Path:
    """60 real cells, as h5ad and as zarr."""
    few.layers["log"] = few.X.log1p()
    return save(few, f"cells.{kind}")


@pytest.fixture
def read() -> Callable[[Path], AnnData]:
    """Read either kind."""
    return lambda path: ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


@pytest.fixture
def content() -> Callable[[Path], dict[str, str]]:
    """``content(path)``: SHA-256 of every file below a path, hidden ones included, by its name."""

    def look(path: Path) -> dict[str, str]:
        files: Iterable[Path] = path.rglob("*") if path.is_dir() else [path]
        return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() if f.is_file() else "folder" for f in files}

    return look
