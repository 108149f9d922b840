"""The fixture folder of UCE, and copies of it that a test may change."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from anndata import AnnData
from numpy.typing import NDArray

DATA = Path(__file__).parents[2] / "data" / "fixtures"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fixtures() -> Path:
    """Folder of the checkpoint and of the official numbers."""
    return DATA / "uce"


@pytest.fixture(scope="session")
def _cells() -> AnnData:
    return ad.read_h5ad(DATA / "cells" / "cells.h5ad")


@pytest.fixture
def cells(_cells: AnnData) -> AnnData:
    """48 real cells, one of them without counts: a copy of one's own."""
    return _cells.copy()


@pytest.fixture
def mouse_cells(_cells: AnnData) -> AnnData:
    """The same with symbols written as those of the mouse are: a stand-in for mouse cells."""
    found = _cells.copy()
    found.var_names = found.var_names.str.capitalize()
    return found


@pytest.fixture(scope="session")
def _official() -> dict[str, NDArray[Any]]:
    found = {}
    for path in sorted((DATA / "uce").glob("*.npz")):
        with np.load(path) as arrays:
            found |= {f"{path.stem}/{name}": arrays[name] for name in arrays.files}
    return found


@pytest.fixture
def official(_official: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the official code gave, by ``"file/array"``."""
    return dict(_official)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the folder, without the official numbers."""
    return Path(shutil.copytree(DATA / "uce", tmp_path / "uce", ignore=shutil.ignore_patterns("*.npz", "README.md")))


@pytest.fixture
def rewrite(copied: Path) -> Callable[..., None]:
    """``rewrite(change)``: pass the tensors of the copied weights through a function."""

    def write(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
        path = copied / "tiny_model.torch"
        tensors = {name: tensor.clone() for name, tensor in torch.load(path, weights_only=True).items()}
        torch.save(change(tensors), path)

    return write
