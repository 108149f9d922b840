"""The fixture folder of UCE, and copies of it that a test may change."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from anndata import AnnData


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mouse_cells(_cells: AnnData) -> AnnData:
    """The same with symbols written as those of the mouse are: a stand-in for mouse cells."""
    found = _cells.copy()
    found.var_names = found.var_names.str.capitalize()
    return found


@pytest.fixture
def copied(fixtures: Path, tmp_path: Path) -> Path:
    """A copy of the folder, without the official numbers."""
    return Path(shutil.copytree(fixtures, tmp_path / "uce", ignore=shutil.ignore_patterns("*.npz", "README.md")))


@pytest.fixture
def rewrite(copied: Path) -> Callable[..., None]:
    """``rewrite(change)``: pass the tensors of the copied weights through a function."""

    def write(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
        path = copied / "tiny_model.torch"
        tensors = {name: tensor.clone() for name, tensor in torch.load(path, weights_only=True).items()}
        torch.save(change(tensors), path)

    return write
