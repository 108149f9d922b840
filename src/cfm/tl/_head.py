"""Labels from the classifier of a model that was fine-tuned for annotation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cfm import infer
from cfm._core.logging import logger
from cfm._core.settings import settings
from cfm.models import CellModel
from cfm.models.reference import UNKNOWN, Transfer


@runtime_checkable
class Classifying(Protocol):
    """A model that names classes from its output ``"logits"``, where it has one."""

    classes: tuple[str, ...]

    def classify(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Position in `classes` or -1 for none of them, and probability, of each cell."""
        ...


def has_head(model: CellModel) -> bool:
    """Whether a model was fine-tuned for annotation, and says which class is which."""
    return isinstance(model, Classifying) and "logits" in model.spec.outputs


def classify(
    adata: AnnData,
    model: CellModel,
    *,
    layer: str | None,
    gene_column: str | None,
    species: str | None,
    gene_table: str | Path | Mapping[str, str] | None,
) -> tuple[Transfer, dict[str, Any]]:
    """Label and probability of each cell by the model's own classifier, and what was used for it.

    A cell that is none of the classes, or in which the model finds nothing to read, is ``"unknown"``.
    """
    assert isinstance(model, Classifying)
    model.classify(np.zeros((0, len(model.classes)), np.float32))  # what it lacks, it says before the work
    prepared = infer.prepare(adata, model, layer=layer, gene_column=gene_column, species=species, gene_table=gene_table)
    labels, confidence = np.full(adata.n_obs, UNKNOWN, object), np.zeros(adata.n_obs, np.float32)
    names = np.array([*model.classes, UNKNOWN], object)
    wanted = frozenset({"logits"})
    for pack, found in infer.passes(model, prepared.stream, adata.n_obs, settings.pack_tokens, wanted):
        which, confidence[pack.rows] = model.classify(found["logits"])
        labels[pack.rows] = names[which]
    logger.info("annotate: %s", prepared)
    return Transfer(labels, confidence), prepared.facts()
