"""The fixture folders of scGPT, and folders with other random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from anndata import AnnData

from cfm.models.scgpt.checkpoint import official_tensors
from cfm.models.scgpt.layout import Layout
from cfm.models.scgpt.module import ScgptNetwork


@pytest.fixture
def copied(fixtures: Path, tmp_path: Path) -> Callable[[str], Path]:
    """``copied("human")``: a copy of a checkpoint's folder that a test may damage."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(fixtures / name, tmp_path / name))

    return copy


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """``rewrite(folder, change)``: pass the tensors of best_model.pt through a function."""

    def write(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
        path = folder / "best_model.pt"
        torch.save(change(torch.load(path, weights_only=True)), path)

    return write


@pytest.fixture
def blood_model(tmp_path: Path, _pbmc: AnnData) -> Path:
    """A checkpoint of random weights over the genes of `pbmc`, with batches, classes and all heads."""
    layout = Layout(
        n_tokens=_pbmc.n_vars + 3,
        dim=24,
        heads=3,
        hidden=20,
        layers=2,
        flags=True,
        n_batches=3,
        n_domains=3,
        decoder_labels=True,
        query="inner product",
        query_cells_labelled=True,
        n_classes=4,
        class_layers=3,
    )
    folder = tmp_path / "blood"
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = ScgptNetwork(layout)
        assert network.dsbn is not None
        for norm in network.dsbn.bns:
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
    torch.save(official_tensors(network), folder / "best_model.pt")
    names = ["<cls>", *_pbmc.var_names, "<pad>", "<eoc>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    args = {"embsize": 24, "nheads": 3, "d_hid": 20, "nlayers": 2, "n_bins": 51, "pad_value": -2, "max_seq_len": 1200}
    (folder / "args.json").write_text(json.dumps(args))
    return folder
