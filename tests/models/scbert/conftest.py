"""The fixture folder of scBERT, and a folder with other random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from anndata import AnnData


@pytest.fixture
def pretrained(fixtures: Path, tmp_path: Path) -> Path:
    """A folder of one's own with the pretrained weights and their gene list alone."""
    return _copied(fixtures, tmp_path / "pretrained", "panglao_pretrain.pth", "genes.txt")


@pytest.fixture
def fine_tuned(fixtures: Path, tmp_path: Path) -> Path:
    """A folder of one's own with the fine-tuned weights, their gene list and names of classes."""
    return _copied(fixtures, tmp_path / "fine_tuned", "finetune_best.pth", "genes.txt", "label_dict")


def _copied(fixtures: Path, folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(fixtures / name, folder)
    return folder


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """``rewrite(path, change)``: pass the tensors of a file in the official layout through a function."""

    def write(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
        saved = torch.load(path, weights_only=True)
        saved["model_state_dict"] = change(dict(saved["model_state_dict"]))
        torch.save(saved, path)

    return write


@pytest.fixture
def blood_model(tmp_path: Path, _pbmc: AnnData) -> Path:
    """Random weights over the genes of `pbmc`, of more positions than go through anything at a time."""
    heads, width, dim, n_features, layers = 6, 8, 24, 140, 2
    draw = torch.Generator().manual_seed(3)

    def random(*shape: int, scale: float = 0.3) -> torch.Tensor:
        return scale * torch.randn(shape, generator=draw)

    inner, positions = heads * width, _pbmc.n_vars + 1
    tensors = {"token_emb.weight": random(7, dim, scale=1.0), "pos_emb.emb.weight": random(positions, dim).double()}
    for i in range(layers):
        at = f"performer.net.layers.{i}."
        tensors |= {f"{at}{half}.norm.weight": 1 + random(dim, scale=0.1) for half in (0, 1)}
        tensors |= {f"{at}{half}.norm.bias": random(dim) for half in (0, 1)}
        tensors |= {f"{at}0.fn.to_{part}.weight": random(inner, dim) for part in "qkv"}
        tensors[f"{at}0.fn.fast_attention.projection_matrix"] = random(n_features, width, scale=1.0)
        for name, shape in {"0.fn.to_out": (dim, inner), "1.fn.fn.w1": (40, dim), "1.fn.fn.w2": (dim, 40)}.items():
            tensors |= {f"{at}{name}.weight": random(*shape), f"{at}{name}.bias": random(shape[0])}
    tensors |= {"norm.weight": torch.ones(dim), "norm.bias": random(dim)}
    tensors |= {"to_out.weight": random(7, dim), "to_out.bias": random(7)}
    folder = tmp_path / "blood"
    folder.mkdir()
    torch.save(tensors, folder / "my_model.pth")
    (folder / "genes.txt").write_text("\n".join(_pbmc.var_names) + "\n")
    return folder
