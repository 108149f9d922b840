"""What all training runs share: a folder that goes on where it stopped, the best epoch, and quiet."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from cfm._core.errors import OptionError
from cfm._core.logging import logger
from cfm._core.settings import settings

RUN = "run"
"""Folder of checkpoints and losses, inside that of a model."""
_NOTE, _BEST, _LAST = "run.json", "best", "last.ckpt"


class Steps[T](pl.LightningDataModule):
    """Training steps that change with the epoch, and validation steps that stay.

    Parameters
    ----------
    train
        The steps of an epoch, by its number.
    validation
        The same at every epoch.
    """

    def __init__(self, train: Callable[[int], Dataset[T]], validation: Dataset[T]) -> None:
        super().__init__()
        self.train, self.validation = train, validation

    def train_dataloader(self) -> DataLoader[T]:
        """The steps of the epoch at hand (the trainer asks again at every epoch)."""
        assert self.trainer is not None
        return self._loader(self.train(self.trainer.current_epoch))

    def val_dataloader(self) -> DataLoader[T]:
        """The validation steps."""
        return self._loader(self.validation)

    @staticmethod
    def _loader(steps: Dataset[T]) -> DataLoader[T]:
        return DataLoader(steps, batch_size=1, shuffle=False, collate_fn=_as_is)


def _as_is[T](steps: Sequence[T]) -> T:
    """Collate function: a step is made whole by the data set."""
    return steps[0]


def claim(run_folder: Path, what: Mapping[str, Any]) -> None:
    """Note in the run's folder what it trains; a run of something else there is an error, not a start.

    Raises
    ------
    OptionError
        The folder holds a run of another recipe or other cells.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    note = json.dumps(what, indent=1)
    path = run_folder / _NOTE
    if path.is_file() and path.read_text(encoding="utf-8") != note:
        msg = (
            f"{run_folder} holds a run of another recipe or other cells, which this one cannot go on with. "
            "Choose another folder, or delete that one."
        )
        raise OptionError(msg)
    path.write_text(note, encoding="utf-8")


def claimed(run_folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (run_folder / _NOTE).is_file()


def make_trainer(
    run_folder: Path,
    device: torch.device,
    *,
    epochs: int,
    steps: int,
    monitor: str,
    patience: int | None = None,
    clip: float = 1.0,
    half: bool = False,
) -> pl.Trainer:
    """A trainer that keeps the last and the best epoch in a folder.

    Parameters
    ----------
    run_folder
        Where checkpoints and losses go.
    device
        Where to train.
    epochs, steps
        Most epochs, and the steps of each.
    monitor
        The loss that tells which epoch is best.
    patience
        Epochs without a better one before the end; None goes through all.
    clip
        Longest gradient.
    half
        Whether products are taken in bfloat16.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it advertises at every start
    callbacks: list[pl.Callback] = [
        ModelCheckpoint(run_folder, _BEST, monitor=monitor, save_last=True, enable_version_counter=False)
    ]
    if patience is not None:
        callbacks.append(EarlyStopping(monitor, patience=patience))
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision="bf16-mixed" if half else "32-true",
        callbacks=callbacks,
        logger=CSVLogger(run_folder, name="losses"),
        gradient_clip_val=clip,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_progress_bar=settings.progress,
        enable_model_summary=False,
        log_every_n_steps=steps,
    )


def train_best[T](
    trainer: pl.Trainer, task: pl.LightningModule, steps: Steps[T], run_folder: Path
) -> tuple[dict[str, float], dict[str, int]]:
    """Train from where the run stopped, and leave `task` with the weights of the best epoch.

    Returns
    -------
    The validation losses of these weights, and the number of ``epochs`` and of the ``best_epoch``.
    """
    last = run_folder / _LAST
    if last.is_file():
        logger.info("going on with the run in %s", run_folder)
    with _quiet():
        trainer.fit(task, datamodule=steps, ckpt_path=last if last.is_file() else None, weights_only=True)
        kept = torch.load(run_folder / f"{_BEST}.ckpt", weights_only=True, map_location="cpu")
        task.load_state_dict(kept["state_dict"], strict=True)
        measured = trainer.validate(task, datamodule=steps, verbose=False)[0]
    losses = {name: float(value) for name, value in measured.items()}
    return losses, {"epochs": trainer.current_epoch, "best_epoch": int(kept["epoch"]) + 1}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A block without Lightning's remarks on what is so on purpose."""
    with warnings.catch_warnings():
        # The steps are made in this process on purpose: their order is the seed's, and their cost is small.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # The folder holds run.json, and at a second start the checkpoints to go on from.
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*treespec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*treespec.*", category=DeprecationWarning)
        yield
