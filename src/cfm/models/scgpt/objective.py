"""The objective by which scGPT is fine-tuned: hidden values from the tokens and from the cell, and batches that mix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .heads import Predicted
from .losses import elastic_similarity, masked_mse, masked_non_zero_loss
from .module import Outputs

MASKED = -1.0
"""Value beside a token whose value is hidden."""


@dataclass(frozen=True)
class Weights:
    """Weights of the parts of the objective that are not about expression; those weigh 1.

    Parameters
    ----------
    similarity
        Of elastic similarity (ECS); 0 leaves it out.
    threshold
        Cosine above which that draws cells together.
    batches
        Of the discriminator of batches (DAB; DAR in several modalities).
    """

    similarity: float = 10.0
    threshold: float = 0.8
    batches: float = 1.0


def loss_parts(
    found: Outputs, target: Tensor, mask: Tensor, batches: Tensor | None = None, weights: Weights = Weights()
) -> dict[str, Tensor]:
    """The loss of a mini-batch under ``"loss"``, and beside it the parts that add up to it, weighted.

    Which parts there are goes by the heads of the network.

    Parameters
    ----------
    found
        What the network says of the cells with hidden values.
    target
        float[n_tokens]: the values.
    mask
        bool[n_tokens]: those that were hidden.
    batches
        int64[n_cells], for networks with a discriminator of batches.
    weights
        Of the parts.

    Returns
    -------
    ``expression`` (GEP), ``zeros`` (its likelihood of zeros), ``cell_expression`` (GEPC, also MVC) and ``cell_zeros``,
    ``similarity`` (ECS), ``batches`` (DAB), and ``loss``.

    References
    ----------
    Cui et al. 2024, "scGPT", methods: fine-tuning objectives.
    """
    # In half precision the logarithms are refused, and sums over tokens would be coarse.
    with torch.autocast(target.device.type, enabled=False):
        parts = _expression(found.expression, target, mask, "")
        if found.from_cell is not None:
            parts |= _expression(found.from_cell, target, mask, "cell_")
        if weights.similarity:
            parts["similarity"] = weights.similarity * elastic_similarity(found.cells.float(), weights.threshold)
        if found.batches is not None:
            if batches is None:
                raise ValueError("this network has a discriminator of batches: the batches have to be given")
            parts["batches"] = weights.batches * F.cross_entropy(found.batches.float(), batches)
        return parts | {"loss": torch.stack(list(parts.values())).sum()}


def _expression(predicted: Predicted, target: Tensor, mask: Tensor, start: str) -> dict[str, Tensor]:
    """What one head says of hidden values."""
    parts = {f"{start}expression": masked_mse(predicted.values.float(), target, mask)}
    if predicted.non_zero is not None:
        parts[f"{start}zeros"] = masked_non_zero_loss(predicted.non_zero.float(), target, mask)
    return parts


def hidden(offsets: NDArray[np.int64], share: float, draws: np.random.Generator) -> NDArray[np.bool_]:
    """Which tokens to hide: of each cell a share of its genes, rounded down; bool[n_tokens].

    ``<cls>`` stays as it is. The official code hides it too in some cells, and then asks for its value, which is no
    expression; but from it the vector of a cell is read, for which nothing is hidden.

    Parameters
    ----------
    offsets
        int64[n_cells + 1]: where each cell begins, with ``<cls>``.
    share
        Of the genes.
    draws
        Random numbers.

    Examples
    --------
    >>> hidden(np.array([0, 6]), 0.4, np.random.default_rng(0))
    array([False, False,  True,  True, False, False])
    """
    lengths = np.diff(offsets)
    numbers = draws.random(offsets[-1])
    numbers[offsets[:-1]] = np.inf
    cells = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((numbers, cells))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(offsets[:-1], lengths)
    return rank < np.repeat(((lengths - 1) * share).astype(np.int64), lengths)
