"""What scGPT is trained by. All means are over what the mask chooses, so padding plays no part."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .heads import unit


def masked_mse(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the masked values; 0 where nothing is masked, which the official one makes NaN."""
    chosen = mask.float()
    return ((predicted - target).square() * chosen).sum() / chosen.sum().clamp_min(1)


def masked_non_zero_loss(non_zero: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Negative log likelihood of which masked values are above zero, per masked value.

    Parameters
    ----------
    non_zero
        float[n]: probability that a value is not zero.
    target
        float[n]: the values.
    mask
        bool[n].
    """
    eps = torch.finfo(non_zero.dtype).eps
    chosen = mask.float()
    probabilities = non_zero.clamp(eps, 1 - eps)
    losses = F.binary_cross_entropy(probabilities, (target > 0).float(), reduction="none")
    return (losses * chosen).sum() / chosen.sum().clamp_min(1)


def masked_relative_error(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of abs(error) / value over the masked values."""
    errors = (predicted[mask] - target[mask]).abs().div(target[mask] + 1e-6)
    return errors.sum() / mask.sum().clamp_min(1)


def elastic_similarity(cells: Tensor, threshold: float) -> Tensor:
    """Pushes cosines of cells towards, or away from, a threshold (ECS): mean of 1 - (s - threshold)^2.

    s are the cosines of all pairs, negative ones as 0. The pairs of a cell with itself are among the mean, with s = 0.

    Parameters
    ----------
    cells
        float[n_cells, dim].
    threshold
        Cosine above which cells are drawn together.
    """
    cosines = unit(cells) @ unit(cells).T
    cosines = cosines.masked_fill(torch.eye(len(cells), dtype=torch.bool, device=cells.device), 0).relu()
    return (1 - (cosines - threshold).square()).mean()


def contrastive(cells: Tensor, again: Tensor, temperature: float = 0.5) -> Tensor:
    """Cross entropy of finding each cell among the second pass of all (CCE), where only the dropout differs."""
    cosines = unit(cells) @ unit(again).T / temperature
    return F.cross_entropy(cosines, torch.arange(len(cells), device=cells.device))
