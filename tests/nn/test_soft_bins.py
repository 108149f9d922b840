"""A number as a mixture of bins."""

from __future__ import annotations

import numpy as np
import torch

from cfm.nn.values import SoftBins


def test_the_formula_of_the_paper() -> None:
    layer = SoftBins(5, 3, alpha=0.7).requires_grad_(False)
    values = torch.tensor([0.0, 0.5, 4.0, 8.2])
    a, b = layer.linear1.weight[:, 0].numpy(), layer.linear1.bias.numpy()
    w, c, bins = (x.numpy() for x in (layer.linear2.weight, layer.linear2.bias, layer.bins.weight))
    for value, found in zip(values.tolist(), layer(values), strict=True):
        h = value * a + b
        h = np.where(h > 0, h, 0.1 * h)
        z = 0.7 * h + w @ h + c
        p = np.exp(z) / np.exp(z).sum()
        np.testing.assert_allclose(found.numpy(), p @ bins, atol=1e-6)
    torch.testing.assert_close(layer.shares(values).sum(1), torch.ones(4))


def test_gradients_reach_every_bin() -> None:
    layer = SoftBins(4, 2, alpha=1.0)
    layer(torch.tensor([0.3, 2.0])).square().sum().backward()
    for name in ("linear1", "linear2", "bins"):
        assert getattr(layer, name).weight.grad.abs().min() > 0
