"""Fine-tuning of scGPT by its own objective, so that cells of several batches or modalities lie together."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cfm import models
from cfm._core.errors import OptionError
from cfm._core.logging import logger
from cfm.models.scgpt import ScgptModel, files
from cfm.models.scgpt.adapting import Adapted, adapted
from cfm.models.scgpt.modalities import is_protein, modality_of_token
from cfm.models.scgpt.tokenizer import ScgptTokenizer
from cfm.models.scgpt.writing import write_folder

from .finetune_cells import VALIDATION, Cells, MiniBatches
from .finetune_task import INTEGRATION, FineTuning, HiddenValues
from .trainer import RUN, Steps, claim, claimed, make_trainer, train_best

_CLS_VALUE = 0.0
"""Beside ``<cls>``, in the official fine-tuning."""


def fine_tune(
    model: ScgptModel | str | Path,
    cells: Cells,
    folder: str | Path,
    recipe: FineTuning = INTEGRATION,
    *,
    run: str | Path | None = None,
) -> ScgptModel:
    """Fine-tune a pretrained model, write it, and load it; go on from the last epoch where a run was interrupted.

    Parameters
    ----------
    model
        The pretrained model, or its name or folder. It is not changed.
    cells
        Counts, the gene of each column, and batches.
    folder
        Where the fine-tuned model is written, in the official layout, over the genes of `cells` alone. Its args.json
        says how cells become tokens, so that `cfm.models.load` and `cfm.tl.embed` need the batches only.
    recipe
        All numbers: `INTEGRATION`, `MULTIOMIC`, or one of these with changes (`dataclasses.replace`).
    run
        Where checkpoints and losses of the run go; None takes ``run/`` in `folder`. The same call with the same run
        goes on with it, to the same weights as if it had never stopped.

    Returns
    -------
    The model as `folder` has it, in evaluation: `cfm.infer.run` gives vectors. A vector depends on the counts of its cell
    and the norm of its batch, and on no other cell.

    Raises
    ------
    OptionError
        One batch only, a model or genes that do not fit, a folder that holds another model, or a run of another recipe.

    Examples
    --------
    >>> from dataclasses import replace
    >>> cells = Cells.matched(counts, found, model, codes, ("a", "b"))  # doctest: +SKIP
    >>> tuned = fine_tune("scgpt-human", cells, "tuned", replace(INTEGRATION, epochs=3))  # doctest: +SKIP
    """
    base = model if isinstance(model, ScgptModel) else _loaded(model)
    folder = Path(folder).resolve()
    run_folder = folder / RUN if run is None else Path(run)
    _check(base, cells, folder, run_folder)
    rows = cells.split(recipe.validation_share, recipe.seed)
    devices = [base.device.index or 0] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # the caller's random numbers are not ours to change
        torch.manual_seed(recipe.seed)  # noqa: TID251 -- within the fork only
        start = adapted(
            base.module,
            list(base.token_ids),
            cells.read(),
            n_batches=len(cells.batch_names),
            pad=base.pad,
            dropout=recipe.dropout,
            zeros=recipe.zeros,
            domains=recipe.domains,
        )
        plan = asdict(recipe)
        del plan["epochs"]  # more of them are the same run, longer
        # Not before all that can be refused was looked at: the next call would be taken for another run.
        claim(run_folder, {"recipe": plan, "cells": cells.digest(), "model": base.spec.digest})
        parts = sorted({name.partition(".")[0] for name in start.fresh})
        logger.info("%d tensors start at random: %s", len(start.fresh), f"of {', '.join(parts)}" if parts else "none")
        _train(start, cells, rows, recipe, base, run_folder)
    write_folder(folder, start.network, start.tokens, start.modalities, _settings(base, cells, recipe, start))
    return ScgptModel.load(folder, name=folder.name, device=base.device, precision=base.precision)


def _loaded(model: str | Path) -> ScgptModel:
    found = models.load(model)
    if not isinstance(found, ScgptModel):
        raise OptionError(f"{model} is of the family {found.spec.family}; this objective is that of scgpt.")
    return found


def _check(base: ScgptModel, cells: Cells, folder: Path, run_folder: Path) -> None:
    """What can be said before any work is done."""
    if base.precision == "int8":
        raise OptionError(
            f"{base.spec.name} was loaded in 8 bits, which cannot be trained. Leave out precision='int8'."
        )
    if len(cells.batch_names) < 2 and not any(map(is_protein, cells.read())):
        msg = f"All {cells.counts.shape[0]:,} cells are of one batch ({cells.batch_names[0]!r}): there is nothing to integrate."
        raise OptionError(f"{msg} Pass batches of at least two, or use the pretrained model as it is.")
    if ScgptModel.recognises(folder) and not claimed(run_folder):
        raise OptionError(
            f"{folder} holds a model already, which is not of the run in {run_folder}. Choose another folder."
        )


def _train(
    start: Adapted,
    cells: Cells,
    rows: tuple[NDArray[np.int64], NDArray[np.int64]],
    recipe: FineTuning,
    base: ScgptModel,
    run_folder: Path,
) -> None:
    """Leave the network with the weights of the best epoch; `rows` are those to train and to validate on."""
    layout = start.network.layout
    ids = {token: i for i, token in enumerate(start.tokens)}
    modalities = modality_of_token(start.tokens, start.modalities, base.pad)
    # As the folder will be read when it is loaded without options.
    tokenizer = ScgptTokenizer(
        tokens=cells.tokens(ids),
        n_tokens=len(ids),
        cls=ids[files.CLS],
        cls_value=_CLS_VALUE,
        n_edges=base.choices.n_bins - 1,
        max_length=recipe.max_length,
        zeros=recipe.zeros,
        apart=modalities,
    )
    if recipe.zeros and (n_genes := len(set(cells.read()))) >= recipe.max_length:
        logger.warning(
            "%d genes, zeros included, do not fit into max_length=%d tokens: of each cell random ones are read. Pass "
            "highly variable genes only",
            n_genes,
            recipe.max_length,
        )

    def minibatches(epoch: int) -> MiniBatches:
        return MiniBatches(
            cells,
            rows[epoch == VALIDATION],
            tokenizer,
            modalities=modalities,
            labelled=layout.n_batches > 0,
            apart=layout.n_domains > 0,
            size=recipe.batch_cells,
            share=recipe.masked,
            seed=recipe.seed,
            epoch=epoch,
        )

    half = base.precision != "float32"
    n_steps = len(minibatches(0))
    task = HiddenValues(start.network, recipe, n_steps, half=half)
    trainer = make_trainer(
        run_folder,
        base.device,
        epochs=recipe.epochs,
        steps=n_steps,
        monitor="val_expression",
        clip=recipe.clip,
        half=half,
    )
    losses, epochs = train_best(trainer, task, Steps(minibatches, minibatches(VALIDATION)), run_folder)
    start.network.cpu().eval()
    parts = ", ".join(f"{name.removeprefix('val_')} {value:.3g}" for name, value in sorted(losses.items()))
    logger.info("kept epoch %d of %d; on validation cells %s", epochs["best_epoch"], epochs["epochs"], parts)


def _settings(base: ScgptModel, cells: Cells, recipe: FineTuning, start: Adapted) -> dict[str, Any]:
    """What the folder has to say beside its tensors."""
    found: dict[str, Any] = {
        "pad_token": base.pad,
        "n_bins": base.choices.n_bins,
        "max_seq_len": recipe.max_length,
        files.ZEROS: recipe.zeros,
        files.CLS_VALUE: _CLS_VALUE,
    }
    if start.network.layout.n_batches:
        found[files.BATCHES] = list(cells.batch_names)
    return found
