"""The fixture folder of scFoundation, and real cells."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray

FILES = ("models.ckpt", "OS_scRNA_gene_index.510.tsv", "finetune_head.safetensors")


@pytest.fixture
def folder(fixtures: Path) -> Path:
    """A folder in the official layout, and the official numbers."""
    return fixtures


@pytest.fixture
def copied(fixtures: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    place = tmp_path / "scFoundation"
    place.mkdir()
    for name in FILES:
        shutil.copyfile(fixtures / name, place / name)
    return place


@pytest.fixture
def rewrite(copied: Path) -> Callable[[Callable[[dict[str, Any]], object]], None]:
    """``rewrite(change)``: change what models.ckpt of `copied` holds."""

    def write(change: Callable[[dict[str, Any]], object]) -> None:
        path = copied / "models.ckpt"
        content = torch.load(path, weights_only=True)
        changed = change(content)
        torch.save(content if changed is None else changed, path)

    return write


@pytest.fixture
def some(_cells: AnnData, official: dict[str, NDArray[Any]]) -> AnnData:
    """Thirteen of them, of which most official numbers are."""
    rows = official["tokens/nonempty_rows"][official["cell_embeddings/rows_subset"]]
    return _cells[rows].copy()


@pytest.fixture
def listed(folder: Path) -> list[str]:
    """The genes of the list."""
    lines = (folder / "OS_scRNA_gene_index.510.tsv").read_text().splitlines()[1:]
    return [line.split("\t")[0] for line in lines]


@pytest.fixture
def normalized(some: AnnData, listed: list[str]) -> AnnData:
    """The thirteen cells over the genes of the list, log-normalised in double precision, with their totals in ``obs``."""
    known = some[:, [gene for gene in some.var_names if gene in set(listed)]].copy()
    counts = sp.csr_matrix(known.X, dtype=np.float64)
    total = np.asarray(counts.sum(axis=1)).ravel()
    known.X = sp.csr_matrix(sp.diags(1e4 / total) @ counts).log1p()
    known.obs["total"] = total
    return known
