"""A pretraining run from recipe to model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cfm._core.resources import atomic_path
from cfm.models.mini import checkpoint
from cfm.models.mini.module import GeneBag
from cfm.models.registry import pick_device

from .card import model_card
from .corpus import Corpus
from .prototypes import make_reference
from .recipe import Recipe
from .task import MaskedGenes
from .trainer import RUN, Steps, claim, make_trainer, train_best
from .views import TrainingViews, View

_VALIDATION_EPOCH = -1


def run(corpus: Corpus, recipe: Recipe, folder: Path) -> dict[str, float]:
    """Train and write a model folder; go on from the last epoch if the folder holds an interrupted run.

    Parameters
    ----------
    corpus
        Cells.
    recipe
        Everything else.
    folder
        Where the model is written; checkpoints and losses of the run go to its ``run/``.

    Returns
    -------
    The validation losses of the weights that were kept.

    Raises
    ------
    OptionError
        The folder holds a run of another recipe or other cells.
    """
    claim(folder / RUN, _what(corpus, recipe))
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not ours to change
        torch.manual_seed(recipe.training.seed)  # noqa: TID251 -- within the fork only
        module, losses, epochs = _train(corpus, recipe, folder)
    _write(folder, module, corpus, recipe, losses, epochs)
    return losses


def _train(corpus: Corpus, recipe: Recipe, folder: Path) -> tuple[GeneBag, dict[str, float], dict[str, int]]:
    """The best network, its validation losses, and how many epochs it took."""
    train, validation = corpus.split(recipe.training.validation_share, recipe.training.seed)
    task = MaskedGenes(
        GeneBag(len(corpus.vocabulary), recipe.model.width, recipe.model.dim),
        len(corpus.files),
        compatible_labels(corpus.labels, recipe.data.wide_labels),
        recipe.objective,
        recipe.training,
    )
    training = recipe.training
    # A fifth as many steps, on held-out cells, the same at every epoch.
    fewer = training.model_copy(update={"steps_per_epoch": max(1, training.steps_per_epoch // 5)})
    steps: Steps[list[View]] = Steps(
        lambda epoch: TrainingViews(train, recipe.views, training, epoch),
        TrainingViews(validation, recipe.views, fewer, _VALIDATION_EPOCH),
    )
    trainer = make_trainer(
        folder / RUN,
        pick_device(),
        epochs=training.max_epochs,
        steps=training.steps_per_epoch,
        monitor="val_loss",
        patience=training.patience,
    )
    losses, epochs = train_best(trainer, task, steps, folder / RUN)
    return task.module.cpu().eval(), losses, epochs


def _what(corpus: Corpus, recipe: Recipe) -> dict[str, Any]:
    """All that decides what comes out of a run."""
    cells = [(file.name, *file.counts.shape, float(file.counts.sum())) for file in corpus.files]
    plan = recipe.model_dump(mode="json", exclude={"data": {"root"}, "training": {"patience"}})
    return {"recipe": plan, "cells": cells, "genes": corpus.vocabulary.ensembl_ids}


def compatible_labels(labels: tuple[str, ...], wide: Mapping[str, list[str]]) -> torch.Tensor:
    """bool[labels, labels]: which pairs of different labels may name one cell."""
    table = torch.zeros(len(labels), len(labels), dtype=torch.bool)
    number = {label: i for i, label in enumerate(labels)}
    for name, parts in wide.items():
        for part in parts:
            if name in number and part in number:
                table[number[name], number[part]] = table[number[part], number[name]] = True
    return table


def _write(
    folder: Path, module: GeneBag, corpus: Corpus, recipe: Recipe, losses: dict[str, float], progress: dict[str, Any]
) -> None:
    config = {
        "version": recipe.version,
        "licence": recipe.licence,
        "species": "human",
        "width": recipe.model.width,
        "dim": recipe.model.dim,
    }
    checkpoint.write_module(folder, module, corpus.vocabulary, config)
    reference = make_reference(module, corpus, recipe)
    if reference is not None:
        reference.write(folder / checkpoint.REFERENCE, checkpoint.digest(folder))
    with atomic_path(folder / checkpoint.CARD) as path:
        path.write_text(model_card(corpus, recipe, losses, progress, reference), encoding="utf-8")
