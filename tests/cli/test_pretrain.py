from __future__ import annotations

import anndata as ad
import pytest

import cfm
from cfm.cli import main

RECIPE = """
name = "tiny"
[vocabulary]
min_cells = 3
[model]
width = 8
dim = 4
[training]
steps_per_epoch = 2
max_epochs = 1
cells_per_file = 8
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What `cfm.tl.pretrain` was called with, instead of a training."""
    calls: list[dict] = []

    def note(data, folder, **options):
        calls.append({"data": data, "folder": folder, "device": cfm.settings.device, **options})
        return folder

    monkeypatch.setattr(cfm.tl, "pretrain", note)
    return calls


def test_a_model_from_own_files_that_the_other_commands_take(pbmc, save, tmp_path, capsys):
    recipe, folder = tmp_path / "tiny.toml", tmp_path / "model"
    recipe.write_text(RECIPE)
    cells, out = save(pbmc, "cells.h5ad"), tmp_path / "out.h5ad"
    words = [
        "pretrain",
        str(recipe),
        "--data",
        str(cells),
        "--labels-key",
        "cell_type",
        "-o",
        str(folder),
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"{folder}\n")
    assert main(["embed", str(cells), "-o", str(out), "--model", str(folder)]) == 0
    assert ad.read_h5ad(out).obsm["X_cfm"].shape == (700, 4)
    capsys.readouterr()
    assert main(["info", str(folder)]) == 0
    assert "B cell" in capsys.readouterr().out
    assert main(words) == 0  # a run that is there is gone on with


def test_a_recipe_alone_names_files_and_folder(asked, tmp_path):
    recipe = tmp_path / "config.toml"
    assert main(["pretrain", str(recipe)]) == 0
    assert asked[0]["data"] is None
    assert asked[0]["recipe"] == recipe
    assert asked[0]["data_root"] is None
    assert str(asked[0]["folder"]) == "config"


def test_a_folder_as_data_is_that_of_the_files_of_the_recipe(asked, tmp_path):
    assert main(["pretrain", "config.toml", "--data", str(tmp_path), "--epochs", "3", "--device", "cpu"]) == 0
    assert asked[0]["data"] is None
    assert (asked[0]["data_root"], asked[0]["epochs"], asked[0]["device"]) == (tmp_path, 3, "cpu")
    assert cfm.settings.device == "auto"


def test_own_files_need_no_recipe(asked):
    assert main(["pretrain", "--data", "a.h5ad", "b.h5ad", "-o", "m", "--labels-key", "cell_type"]) == 0
    assert [str(path) for path in asked[0]["data"]] == ["a.h5ad", "b.h5ad"]
    assert (asked[0]["recipe"], asked[0]["labels_key"], asked[0]["species"]) == (None, "cell_type", "human")


def test_nothing_to_train_on_is_an_error(asked, capsys):
    assert main(["pretrain"]) == 1
    assert "Which cells?" in capsys.readouterr().err
    assert not asked


def test_a_folder_of_something_else_is_kept_unless_told(asked, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("two years of work")
    words = ["pretrain", "config.toml", "-o", str(tmp_path)]
    assert main(words) == 1
    assert "holds no run to go on with" in capsys.readouterr().err
    assert not asked
    assert main([*words, "--overwrite"]) == 0
    assert main(["pretrain", "config.toml", "-o", str(tmp_path / "thesis.txt")]) == 1


def test_a_missing_recipe_is_one_line_and_1(tmp_path, capsys):
    assert main(["pretrain", str(tmp_path / "none.toml"), "-o", str(tmp_path / "model")]) == 1
    assert "cfm: error: " in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
