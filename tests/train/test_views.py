from __future__ import annotations

import numpy as np
import torch

from cfm.train.corpus import Corpus
from cfm.train.recipe import Recipe, Views
from cfm.train.views import TrainingViews, keep_genes, thin


def test_a_step_depends_on_seed_epoch_and_number_only(corpus: Corpus, small_recipe: Recipe) -> None:
    first, again, later = (TrainingViews(corpus, small_recipe.views, small_recipe.training, e) for e in (0, 0, 1))
    a, b, c = first[2][0], again[2][0], later[2][0]
    assert torch.equal(a.pack.ids, b.pack.ids)
    assert torch.equal(a.hidden_counts, b.hidden_counts)
    assert not torch.equal(a.pack.ids, c.pack.ids)


def test_hidden_genes_are_not_visible_and_were_measured(corpus: Corpus, small_recipe: Recipe) -> None:
    steps = TrainingViews(corpus, small_recipe.views, small_recipe.training, 0)
    for step in range(len(steps)):
        for view in steps[step]:
            assert not set(view.hidden_genes.tolist()) & set(view.pack.ids.tolist())
            assert corpus.files[view.file].measured[view.hidden_genes.numpy()].all()
            assert view.hidden_counts.shape == (len(view.pack.offsets) - 1, len(view.hidden_genes))
            assert (view.visible_counts >= 20).all()
            assert view.hidden_counts.sum() > 0


def test_thinning_keeps_whole_molecules_and_caps_depth(corpus: Corpus) -> None:
    counts = corpus.files[0].counts
    thinned = thin(counts, Views(max_counts=100), np.random.default_rng(0))
    assert (counts - thinned).min() >= 0
    assert np.array_equal(thinned.data, np.rint(thinned.data))
    assert thinned.sum(axis=1).max() < 150  # binomial around at most 100
    assert (thinned.data > 0).all()


def test_keep_genes_equals_plain_masking(corpus: Corpus) -> None:
    counts = corpus.files[0].counts
    keep = np.random.default_rng(0).random(counts.shape[1]) < 0.5
    assert np.array_equal(keep_genes(counts, keep).toarray(), counts.toarray() * keep)
