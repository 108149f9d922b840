"""A training run of the joint model: the same for a seed, and resumed where it was stopped."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from cfm._core.errors import CheckpointError
from cfm._core.logging import logger
from cfm._core.settings import settings

from .model import JointVI
from .module import MEASURED
from .quiet import quiet
from .table import BATCH

STEPS, STEPS_OF_BATCHES = 100, 450
"""Training steps of one batch and of several, where nothing else is asked for; but at least `FEWEST_EPOCHS` through all cells.

Taking batches apart takes longer. With more steps than that, types of a few hundred cells come apart into several clusters each."""
FEWEST_EPOCHS = 30
BATCH_SIZE = 128
_LAST = "last.ckpt"


class _Seeds(Callback):
    """Each epoch has its own seed, so that a run that goes on draws what it would have drawn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        seed = self.seed + trainer.current_epoch
        # In the fork of `train` only, which leaves GPUs out where none is used.
        if trainer.strategy.root_device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)  # noqa: TID251


class _State(Callback):
    """Keeps the state after each epoch in a file, with a digest of what the run is made from.

    Not a checkpoint callback of Lightning, beside which scvi-tools puts one of its own that writes to the working folder.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"digest": self.digest}

    def found(self) -> bool:
        """Whether the file holds a state of this run.

        Raises
        ------
        CheckpointError
            It cannot be read.
        """
        if not self.path.is_file():
            return False
        try:
            held = torch.load(self.path, map_location="cpu", weights_only=True)["callbacks"][self.state_key]["digest"]
        except Exception as error:  # a damaged file fails in many ways
            raise CheckpointError(
                f"{self.path}, the state of a run that was stopped, is damaged or of another version: "
                f"{str(error).strip().partition('. ')[0]}. Delete it, and the run starts anew."
            ) from error
        if held != self.digest:
            logger.info("the run in %s was of other cells or settings; this one starts anew", self.path.parent)
            return False
        logger.info("going on with the run in %s", self.path.parent)
        return True


def epochs_for(n_cells: int, n_batches: int) -> int:
    """How many times through all cells."""
    steps = STEPS if n_batches == 1 else STEPS_OF_BATCHES
    return max(FEWEST_EPOCHS, math.ceil(steps / math.ceil(n_cells / _batch_size(n_cells))))


def _batch_size(n_cells: int) -> int:
    return min(BATCH_SIZE, max(2, n_cells // 2))


def train(
    model: JointVI, *, epochs: int, seed: int, folder: Path | None, devices: int = 1, weight_decay: float = 1e-3
) -> None:
    """Train in place.

    Parameters
    ----------
    model
        Untrained, or with new batches to be learnt.
    epochs
        Times through all cells.
    seed
        For the order of cells and all that is drawn.
    folder
        Where the state after each epoch is kept; a run that was stopped goes on from there. None keeps nothing.
    devices
        Processes on the CPU, or GPUs.
    weight_decay
        0 where most weights are to stay as they are.
    """
    n_cells = math.ceil(model.adata.n_obs / devices)  # of each process; all of them share the cells of a step
    batch_size = max(2, _batch_size(model.adata.n_obs) // devices)
    callbacks: list[Callback] = [_Seeds(seed)]
    extra: dict[str, Any] = {}
    if folder is not None:
        state = _State(folder / _LAST, _digest(model, seed, epochs, batch_size, devices))
        callbacks.append(state)
        if state.found():
            extra["ckpt_path"] = state.path
    if devices > 1:
        extra["strategy"] = "ddp_find_unused_parameters_true"
    gpus = range(torch.cuda.device_count()) if model.device.type == "cuda" else []
    model.module.train()
    with torch.random.fork_rng(devices=gpus), quiet():
        model.train(
            max_epochs=epochs,
            train_size=1.0,
            shuffle_set_split=False,  # drawn without a seed, and each epoch shuffles anyway
            batch_size=batch_size,
            devices=[model.device.index or 0] if model.device.type == "cuda" and devices == 1 else devices,
            accelerator=model.device.type if model.device.type == "cpu" else "gpu",
            plan_kwargs={"weight_decay": weight_decay},
            # Layers cannot be normalised over a last step of one cell; its cells come earlier in other epochs.
            # A generator of its own, or a new iterator would draw a number more or less in the first epoch of a process.
            datasplitter_kwargs={"drop_last": n_cells % batch_size == 1, "generator": torch.Generator()},
            callbacks=callbacks,
            gradient_clip_val=10.0,
            limit_val_batches=0,
            enable_progress_bar=settings.progress,
            enable_checkpointing=False,
            logger=False,  # that of scvi-tools pickles into the working folder if there are several processes
            **extra,
        )
    model.module.eval()


def _digest(model: JointVI, *facts: int) -> str:
    """SHA-256 of the counts, of who was measured and in which batch, and of how the run is made."""
    x = model.adata.X
    digest = hashlib.sha256(repr((model.adata.shape, facts)).encode())
    for part in (x.data, x.indices, x.indptr, np.asarray(model.adata.obsm[MEASURED])):
        digest.update(np.ascontiguousarray(part).tobytes())
    digest.update("\n".join([*model.adata.var_names, *model.adata.obs[BATCH].astype(str)]).encode())
    return digest.hexdigest()
