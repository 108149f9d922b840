"""From counts to a trained joint model, and from a saved one to cells of new batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core.errors import OptionError
from cfm._core.logging import logger
from cfm.integration.features import Kind
from cfm.models.registry import pick_device

from .inputs import geometric_means
from .model import JointVI
from .module import MEASURED, inputs_key
from .parts import aligned, sizes
from .quiet import quiet
from .table import BATCH, Measured, Reading, make_table
from .trained import Joint
from .training import epochs_for, train

QUERY_EPOCHS = 100
MIN_SHARE = 0.5
"""A modality with fewer of the saved features than this share is refused."""


def fit(
    parts: Mapping[Kind, Measured],
    batch: NDArray[np.str_],
    n_cells: int,
    *,
    seed: int,
    epochs: int | None,
    folder: Path | None,
    device: str | None,
    devices: int = 1,
) -> Joint:
    """Train on all cells.

    Parameters
    ----------
    parts
        The modalities.
    batch
        str[n_cells].
    n_cells
        Cells, those without any modality too.
    seed
        For the first weights and all that is drawn.
    epochs
        Times through all cells; None is `epochs_for` them.
    folder
        For the state after each epoch, from which a run that was stopped goes on.
    device
        Where to train, by name.
    devices
        So many processes or GPUs.
    """
    readings = {kind: Reading.fit(kind, part) for kind, part in parts.items()}
    table = make_table(parts, readings, batch, n_cells)
    options: dict[str, Any] = {}
    if "atac" in parts:
        options["most_open"] = float(parts["atac"].counts.getnnz(axis=1).max())
    model = _new(table, sizes(parts), options, seed, pick_device(device))
    if "protein" in parts:
        _start_backgrounds(model, parts["protein"])
    epochs = epochs or epochs_for(n_cells, len(np.unique(batch)))
    train(model, epochs=epochs, seed=seed, folder=folder, devices=devices)
    names = {kind: part.names for kind, part in parts.items()}
    measured_in = {kind: sorted(set(batch[part.rows].tolist())) for kind, part in parts.items()}
    return Joint(model, readings, names, options, measured_in)


def place(joint: Joint, parts: Mapping[Kind, Measured], batch: NDArray[np.str_], n_cells: int, *, seed: int) -> Joint:
    """Put other cells into the space of a model.

    What the model learnt stays as it is. For batches that it does not know, weights of their own are added and trained
    (Lotfollahi et al. 2021); cells of batches that it knows need no training.

    Raises
    ------
    OptionError
        No modality that the model knows, or too few of its features.
    """
    known = {kind: parts[kind] for kind in joint.names if kind in parts}
    if not known:
        raise OptionError(
            f"The saved model knows {', '.join(joint.names)}, and here are {', '.join(parts) or 'no modalities'}. Name them "
            "with modalities=."
        )
    there: dict[Kind, Measured] = {}
    for kind, names in joint.names.items():
        there[kind], share = aligned(known[kind], names) if kind in known else (_nothing(names), 1.0)
        if share < MIN_SHARE:
            raise OptionError(
                f"Of the {len(names):,} {kind} features of the saved model, {share:.0%} are here, such as "
                f"{', '.join(map(repr, known[kind].names[:3].tolist()))} in place of "
                f"{', '.join(map(repr, names[:3].tolist()))}. Name features as the model does."
            )
        if share < 1:
            logger.info("integrate: %.0f %% of the %s features of the saved model are here", 100 * share, kind)
    table = make_table(there, joint.readings, batch, n_cells)
    model = joint.model
    if new := sorted(set(batch.tolist()) - set(joint.batches)):
        logger.info("integrate: new batches are learnt, the rest of the model stays: %s", ", ".join(new))
        # Cells of known batches would train weights of their batches too.
        own = table[np.isin(batch, new)].copy()
        own.obs[BATCH] = own.obs[BATCH].cat.remove_unused_categories()
        model = _around(own, model, seed)
        train(model, epochs=QUERY_EPOCHS, seed=seed, folder=None, weight_decay=0.0)
    return replace(joint, model=_around(table, model, seed))


def _around(table: AnnData, model: JointVI, seed: int) -> JointVI:
    """The same weights around other cells, with weights to be trained for batches that the model does not know."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.default_generator.manual_seed(seed)
        found = JointVI.load_query_data(table, model, accelerator=_accelerator(model.device), device="auto")
    found.module.eval()
    return found


def untrained(
    names: Mapping[Kind, NDArray[np.str_]], n_inputs: Mapping[Kind, int], batches: list[str], options: dict[str, Any]
) -> JointVI:
    """A model of some shape around a table of one empty cell for each batch, for weights from a file."""
    var = pd.DataFrame(index=[f"{kind}:{name}" for kind, own in names.items() for name in own])
    table = AnnData(
        np.zeros((len(batches), len(var)), np.float32),
        pd.DataFrame({BATCH: pd.Categorical(batches)}, [str(i) for i in range(len(batches))]),
        var,
    )
    for kind, dim in n_inputs.items():
        table.obsm[inputs_key(kind)] = np.zeros((len(batches), dim), np.float32)
    table.obsm[MEASURED] = np.zeros((len(batches), len(names)), np.float32)
    return _new(table, {kind: len(own) for kind, own in names.items()}, options, 0, torch.device("cpu"))


def _new(
    table: AnnData, n_features: Mapping[Kind, int], options: dict[str, Any], seed: int, device: torch.device
) -> JointVI:
    with torch.random.fork_rng(devices=[]), quiet():
        JointVI.setup_anndata(table, kinds=list(n_features))
        torch.default_generator.manual_seed(seed)  # not of GPUs, which the fork leaves out
        model = JointVI(table, dict(n_features), **options)
    model.to_device(device)
    return model


@torch.no_grad()
def _start_backgrounds(model: JointVI, part: Measured) -> None:
    """Backgrounds start at what a protein has in the fifth of cells with the least of it."""
    dense = part.counts.toarray()
    low = np.quantile(dense / geometric_means(dense)[:, None], 0.2, axis=0)
    start = torch.from_numpy(np.log(low + 0.05).astype(np.float32)).to(model.module.device)
    model.module.background_pro_alpha.copy_(start[:, None].expand_as(model.module.background_pro_alpha))
    decoder: Any = model.module.decoders["protein"]
    decoder.py_back_mean_log_alpha.fc_layers[0][0].bias.copy_(start)


def _nothing(names: NDArray[np.str_]) -> Measured:
    """A modality that no cell has."""
    empty = np.zeros(0)
    return Measured(sp.csr_matrix((0, len(names)), dtype=np.float32), empty, empty.astype(np.int64), names)


def _accelerator(device: torch.device | str) -> str:
    return "cpu" if torch.device(device).type == "cpu" else "gpu"
