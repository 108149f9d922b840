"""Models by name and by folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import cfm
from cfm import models
from cfm.errors import CheckpointError, OptionError, UnknownModelError


def test_list_names_what_can_be_loaded() -> None:
    table = models.list()
    assert list(table.columns) == ["family", "species", "licence", "available", "description"]
    assert table.loc["cfm-mini", "available"] == "packaged"
    assert table.notna().all(axis=None)


def test_list_says_how_to_come_by_each(tmp_path: Path) -> None:
    with cfm.settings.override(cache_dir=tmp_path):
        available = models.list()["available"]
    assert available["geneformer-v1-10m"] == "download, 44.6 MB"
    assert available["geneformer-v2-104m"] == "download, 425 MB"
    assert available["geneformer-v2-316m"] == "download, 1.27 GB"
    assert available["scgpt-human"] == available["geneformer-12l-95m"] == "by hand"
    assert not list(tmp_path.iterdir())


def test_info_agrees_with_the_table_and_the_vectors() -> None:
    spec = models.info("cfm-mini")
    row = models.list().loc["cfm-mini"]
    assert (spec.name, spec.family, spec.licence) == ("cfm-mini", row["family"], row["licence"])
    assert len(spec.digest) == 12
    model = models.load("cfm-mini", device="cpu")
    assert model.spec == spec
    assert spec.max_tokens == len(model.vocabulary)
    assert model.gene_vectors().shape[0] == len(model.vocabulary)
    assert model.gene_vectors().dtype == np.float32
    assert spec.outputs == {"cell"}


@pytest.mark.parametrize(
    ("name", "near"), [("cfm_mini", "'cfm-mini'"), ("cfm-mni", "'cfm-mini'"), ("CFM-mini", "'cfm-mini'")]
)
def test_unknown_name_names_the_near_ones(name: str, near: str) -> None:
    with pytest.raises(UnknownModelError) as raised:
        models.load(name)
    assert str(raised.value).startswith(f"No model is called {name!r}, and there is no such folder.")
    assert f"Did you mean {near}?" in str(raised.value)
    assert isinstance(raised.value, KeyError)


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(UnknownModelError, match=r"Names: cfm-mini") as raised:
        models.load("xyzzy-9000")
    assert "Did you mean" not in str(raised.value)


@pytest.mark.parametrize("name", ["", "~no-such-user/model"])
def test_texts_that_are_no_name_and_no_folder(name: str) -> None:
    with pytest.raises(UnknownModelError, match="No model is called"):
        models.load(name)


def test_what_is_no_text_and_no_path() -> None:
    with pytest.raises(OptionError, match=r"a name or a folder, not NoneType\. Names: cfm-mini"):
        models.load(None)  # type: ignore[arg-type]


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="no such folder"):
        models.load(tmp_path / "nothing")


def test_a_folder_of_no_family(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match=r"no known family \(mini.*\['config.json', 'pytorch_model.bin'\]"):
        models.load(tmp_path)
    with pytest.raises(UnknownModelError, match="no such folder"):
        models.load(tmp_path / "pytorch_model.bin")  # a file is no folder


def test_a_folder_is_named_after_itself(folder: Path) -> None:
    model = models.load(folder)
    assert (model.spec.name, model.spec.version, model.spec.dim) == ("my-model", "9.9.9", 8)
    assert models.load(str(folder)) is model


def test_loading_twice_gives_the_same_object() -> None:
    assert models.load("cfm-mini", device="cpu") is models.load("cfm-mini", device="cpu")
    with cfm.settings.override(device="cpu"):
        assert models.load("cfm-mini") is models.load("cfm-mini", device="cpu")


def test_a_folder_that_was_written_anew_is_read_anew(folder: Path, write_model: Callable[..., None]) -> None:
    old = models.load(folder)
    write_model(folder, 1)
    new = models.load(folder)
    assert new is not old
    assert new.spec.digest != old.spec.digest
    assert not np.array_equal(new.gene_vectors(), old.gene_vectors())
    # Also where only the time of the weights changed, as after a download in place.
    later = (folder / "weights.safetensors").stat().st_mtime_ns + 10**9
    os.utime(folder / "weights.safetensors", ns=(later, later))
    assert models.load(folder) is not new


@pytest.mark.parametrize("device", ["gpu0", "", "cpu:x"])
def test_no_such_device(device: str) -> None:
    if device == "":
        assert models.load("cfm-mini", device=device).device == models.load("cfm-mini").device
        return
    with pytest.raises(OptionError, match=f"no device {device!r}.*'auto', 'cpu', 'cuda'"):
        models.load("cfm-mini", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(OptionError, match="torch sees no CUDA GPU.*device='cpu'"):
        models.load("cfm-mini", device="cuda")
    assert models.load("cfm-mini", device="auto").device == torch.device("cpu")
