from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors.numpy import load_file

import cfm
from cfm.errors import OptionError
from cfm.train import run
from cfm.train.corpus import Corpus
from cfm.train.recipe import PACKAGED, Data, Recipe

RECIPE = """
name = "small"
[vocabulary]
min_cells = 5
min_files = 1
[model]
width = 32
dim = 16
[training]
files_per_step = 1
cells_per_file = 32
steps_per_epoch = 20
max_epochs = 6
"""


def test_a_trained_folder_embeds_and_annotates(
    corpus: Corpus, small_recipe: Recipe, pbmc: AnnData, tmp_path: Path
) -> None:
    losses = run.run(corpus, small_recipe, tmp_path / "model")
    assert losses["val_loss"] == pytest.approx(losses["val_masked"] + losses["val_contrast"], rel=1e-5)
    cfm.tl.annotate(pbmc, model=tmp_path / "model")
    assert pbmc.obsm["X_cfm"].shape == (700, 16)
    assert set(pbmc.obs["cfm_label"].astype(str)) <= {*corpus.labels, "unknown"}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| first | 400 | 400 | not stated |" in card
    assert cfm.models.info(tmp_path / "model").family == "mini"


def test_training_lowers_both_losses(pbmc: AnnData, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    cfm.tl.pretrain(pbmc, tmp_path / "model", recipe=recipe, labels_key="cell_type")
    (losses,) = (tmp_path / "model" / "run").glob("losses/*/metrics.csv")
    with losses.open() as handle:
        rows = [row for row in csv.DictReader(handle) if row["val_loss"]]
    assert len(rows) == 7  # six epochs, and the weights that were kept
    for part in ("val_masked", "val_contrast"):
        assert float(rows[5][part]) < float(rows[0][part])


def test_a_killed_run_goes_on_to_the_same_weights(pbmc: AnnData, tmp_path: Path) -> None:
    recipe, data = tmp_path / "recipe.toml", tmp_path / "cells.h5ad"
    recipe.write_text(RECIPE)
    pbmc.write_h5ad(data)
    call = "import cfm, sys; cfm.tl.pretrain([sys.argv[1]], sys.argv[2], recipe=sys.argv[3])"

    def start(folder: str) -> subprocess.Popen[bytes]:
        """A process of its own, as a job that goes on is: its numbers of threads do not depend on the tests before."""
        command = [sys.executable, "-c", call, str(data), str(tmp_path / folder), str(recipe)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    killed = start("killed")
    checkpoint = tmp_path / "killed" / "run" / "last.ckpt"
    while not checkpoint.is_file() and killed.poll() is None:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "weights.safetensors").exists(), "killed too late to show anything"
    assert start("killed").wait() == 0

    whole, resumed = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    for name, tensor in whole.items():
        assert np.array_equal(tensor, resumed[name]), name


def test_another_recipe_in_the_same_folder_is_refused(corpus: Corpus, small_recipe: Recipe, tmp_path: Path) -> None:
    run.run(corpus, small_recipe, tmp_path)
    other = small_recipe.model_copy(update={"version": "9"})
    with pytest.raises(OptionError, match="another recipe"):
        run.run(corpus, other, tmp_path)


def test_data_and_a_recipe_with_files_are_refused(pbmc: AnnData, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[data]\nfiles = [{ path = "a.h5ad" }]\n')
    with pytest.raises(OptionError, match="names files"):
        cfm.tl.pretrain(pbmc, tmp_path / "model", recipe=recipe)


def test_a_model_of_own_cells_says_nothing_of_the_packaged_one(pbmc: AnnData, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    pbmc.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(OptionError, match="epochs=0"):
        cfm.tl.pretrain(tmp_path / "cells.h5ad", tmp_path / "mine", epochs=0)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    plan = Recipe.read(PACKAGED).without_corpus("mine")
    assert (plan.name, plan.version, plan.licence) == ("mine", "0", "not stated")
    assert plan.data == Data()
    assert not plan.reference.rename
    cfm.tl.pretrain(tmp_path / "cells.h5ad", tmp_path / "mine", recipe=recipe, epochs=1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_cells_are_not_changed(pbmc: AnnData, digests: Callable[[AnnData], dict[str, str]], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    before = digests(pbmc)
    cfm.tl.pretrain(pbmc, tmp_path / "model", recipe=recipe, labels_key="cell_type", epochs=1)
    assert digests(pbmc) == before
