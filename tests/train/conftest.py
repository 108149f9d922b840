"""A recipe that trains in seconds, and the packaged cells as its corpus."""

from __future__ import annotations

import pytest
from anndata import AnnData

from cfm.train.corpus import Corpus, corpus_of
from cfm.train.recipe import Data, ModelRecipe, Recipe, ReferenceRecipe, Training, VocabularyRecipe


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    """Two epochs of four steps."""
    return Recipe(
        name="small",
        data=Data(label_key="cell_type"),
        vocabulary=VocabularyRecipe(min_cells=5, min_files=1),
        model=ModelRecipe(width=32, dim=16),
        training=Training(files_per_step=1, cells_per_file=32, steps_per_epoch=4, max_epochs=2),
        reference=ReferenceRecipe(prototypes_per_label_and_file=10),
    )


@pytest.fixture
def corpus(pbmc: AnnData, small_recipe: Recipe) -> Corpus:
    """The packaged blood cells in two files."""
    halves = {"first": pbmc[:400].copy(), "second": pbmc[400:].copy()}
    return corpus_of(halves, small_recipe.data, small_recipe.vocabulary)
