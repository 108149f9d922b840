"""A pretraining run from recipe to model folder."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from cfm._core.errors import OptionError
from cfm._core.logging import logger
from cfm._core.resources import atomic_path
from cfm._core.settings import settings
from cfm.models.mini import checkpoint
from cfm.models.mini.module import GeneBag
from cfm.models.registry import pick_device

from .card import model_card
from .corpus import Corpus
from .prototypes import make_reference
from .recipe import Recipe, Training, Views
from .task import MaskedGenes
from .views import TrainingViews, View, as_is

RUN = "run"
_VALIDATION_EPOCH = -1


class Steps(pl.LightningDataModule):
    """Training steps that change with the epoch, and validation steps that stay."""

    def __init__(self, train: Corpus, validation: Corpus, views: Views, training: Training) -> None:
        super().__init__()
        self.train, self.validation, self.views, self.training = train, validation, views, training

    def train_dataloader(self) -> DataLoader[list[View]]:
        """The steps of the epoch at hand (the trainer asks again at every epoch)."""
        assert self.trainer is not None
        return self._loader(TrainingViews(self.train, self.views, self.training, self.trainer.current_epoch))

    def val_dataloader(self) -> DataLoader[list[View]]:
        """A fifth as many steps, on held-out cells, the same at every epoch."""
        training = self.training.model_copy(update={"steps_per_epoch": max(1, self.training.steps_per_epoch // 5)})
        return self._loader(TrainingViews(self.validation, self.views, training, _VALIDATION_EPOCH))

    @staticmethod
    def _loader(steps: TrainingViews) -> DataLoader[list[View]]:
        return DataLoader(steps, batch_size=1, shuffle=False, collate_fn=as_is)


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
    _claim(folder / RUN, corpus, recipe)
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
    trainer = _trainer(folder / RUN, recipe.training)
    steps = Steps(train, validation, recipe.views, recipe.training)
    last = folder / RUN / "last.ckpt"
    if last.is_file():
        logger.info("going on with the run in %s", folder / RUN)
    with warnings.catch_warnings():
        # The steps are made in this process on purpose: their order is the seed's, and their cost is small.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # The folder holds run.json, and at a second start the checkpoints to go on from.
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*treespec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*treespec.*", category=DeprecationWarning)
        trainer.fit(task, datamodule=steps, ckpt_path=last if last.is_file() else None, weights_only=True)
        kept = torch.load(folder / RUN / "best.ckpt", weights_only=True, map_location="cpu")
        task.load_state_dict(kept["state_dict"], strict=True)
        measured = trainer.validate(task, datamodule=steps, verbose=False)[0]
    losses = {name: float(value) for name, value in measured.items()}
    epochs = {"epochs": trainer.current_epoch, "best_epoch": int(kept["epoch"]) + 1}
    return task.module.cpu().eval(), losses, epochs


def _claim(run_folder: Path, corpus: Corpus, recipe: Recipe) -> None:
    """Note in the run's folder what it trains; a run of something else there is an error, not a start."""
    run_folder.mkdir(parents=True, exist_ok=True)
    cells = [(file.name, *file.counts.shape, float(file.counts.sum())) for file in corpus.files]
    plan = recipe.model_dump(mode="json", exclude={"data": {"root"}, "training": {"patience"}})
    note = json.dumps({"recipe": plan, "cells": cells, "genes": corpus.vocabulary.ensembl_ids}, indent=1)
    path = run_folder / "run.json"
    if path.is_file() and path.read_text(encoding="utf-8") != note:
        msg = (
            f"{run_folder} holds a run of another recipe or other cells, which this one cannot go on with. "
            "Choose another folder, or delete that one."
        )
        raise OptionError(msg)
    path.write_text(note, encoding="utf-8")


def _trainer(run_folder: Path, training: Training) -> pl.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it advertises at every start
    best = ModelCheckpoint(run_folder, "best", monitor="val_loss", save_last=True, enable_version_counter=False)
    device = pick_device()
    return pl.Trainer(
        max_epochs=training.max_epochs,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        callbacks=[best, EarlyStopping("val_loss", patience=training.patience)],
        logger=CSVLogger(run_folder, name="losses"),
        gradient_clip_val=1.0,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_progress_bar=settings.progress,
        enable_model_summary=False,
        log_every_n_steps=training.steps_per_epoch,
    )


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
