from __future__ import annotations

from pathlib import Path

import pytest

from cfm.errors import OptionError
from cfm.train.recipe import PACKAGED, Recipe


def test_packaged_recipe_is_valid_and_names_no_set_without_licence() -> None:
    recipe = Recipe.read(PACKAGED)
    names = {file.path.stem for file in recipe.data.files}
    assert len(names) == len(recipe.data.files) > 20
    assert not names & {"lung_adeno_s100a4", "colon_cancer_infercnv"}
    assert all(file.licence != "not stated" for file in recipe.data.files)


def test_packaged_recipe_names_no_test_set() -> None:
    tests = {
        "pbmc3k", "kang_ifnb", "blood_3batch", "sc_mixology_3cl", "mouse_pancreas_e15", "mouse_brain_c1",
        "gut_crohn_scp1884_test", "pbmc_teaseq_matilda",
    }  # fmt: skip
    assert not tests & {file.path.stem for file in Recipe.read(PACKAGED).data.files}


def test_root_is_relative_to_the_recipe_unless_given(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[data]\nroot = "cells"\n')
    assert Recipe.read(path).data.root == tmp_path / "cells"
    assert Recipe.read(path, root="elsewhere").data.root == Path("elsewhere")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[training]\nlerning_rate = 1", "training.lerning_rate"),
        ("[model]\nwidth = 'wide'", "model.width"),
        ("[views]\nmin_depth = 2.0", "views.min_depth"),
        ("not toml", "cannot be read"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=found):
        Recipe.read(path)


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="none.toml"):
        Recipe.read(tmp_path / "none.toml")
