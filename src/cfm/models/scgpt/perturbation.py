"""Expression after a perturbation, predicted from control cells."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .module import Inputs, ScgptNetwork


@torch.inference_mode()
def predict(
    network: ScgptNetwork,
    ids: Tensor,
    control: Tensor,
    flags: Tensor,
    genes: Literal["all", "expressed"] = "all",
) -> Tensor:
    """Predicted expression of each cell if it were perturbed.

    All genes go in, those with a count of 0 too, and no ``<cls>``. Genes outside the vocabulary are asked with the
    padding token and are not masked, as in the official recipe.

    Parameters
    ----------
    network
        One with flags of perturbation.
    ids
        int64[n_genes]: token of each gene.
    control
        float[n_cells, n_genes]: log-normalised expression.
    flags
        int64[n_cells, n_genes]: 1 where a gene is perturbed.
    genes
        ``"all"``, or only those that are ``"expressed"`` in any of these cells, others being predicted as 0. With the
        latter a prediction depends on the cells beside it (the official "batch-wise").

    Returns
    -------
    float[n_cells, n_genes].
    """
    n_cells, n_genes = control.shape
    asked = torch.arange(n_genes, device=ids.device)
    if genes == "expressed":
        asked = (control != 0).any(0).nonzero()[:, 0]
    offsets = torch.arange(n_cells + 1, device=ids.device) * len(asked)
    inputs = Inputs(ids[asked].repeat(n_cells), control[:, asked].flatten(), offsets, flags=flags[:, asked].flatten())
    x = network.embed(network.encoder(inputs.ids), inputs)
    values = network.expression(network.encode(x, inputs), inputs).values
    predicted = torch.zeros_like(control)
    predicted[:, asked] = values.view(n_cells, len(asked))
    return predicted
