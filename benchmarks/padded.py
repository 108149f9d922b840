"""Padded batches, as the official code of scGPT runs them, through our ragged network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cfm.models.scgpt.module import Inputs, Outputs, ScgptNetwork
from cfm.nn.attention import attention


@dataclass
class Run:
    """Of a pass: gene vectors and each layer's tokens as [cells, length, dim], and what the heads say."""

    genes: Tensor
    layers: list[Tensor]
    outputs: Outputs


class Padded:
    """Cells padded to one length. Pads are tokens for all that treats tokens alike, and no keys of attention.

    Parameters
    ----------
    genes, values
        [cells, length].
    valid
        bool[cells, length]: what is no pad.
    batches
        int64[cells].
    modalities, flags
        int64[cells, length].
    """

    def __init__(
        self,
        genes: Tensor,
        values: Tensor,
        valid: Tensor,
        batches: Tensor | None = None,
        modalities: Tensor | None = None,
        flags: Tensor | None = None,
    ) -> None:
        self.shape = genes.shape
        self.valid = valid.flatten()
        offsets = torch.arange(len(genes) + 1) * genes.shape[1]
        self.inputs = Inputs(
            genes.flatten(),
            values.flatten(),
            offsets,
            batches,
            None if modalities is None else modalities.flatten(),
            None if flags is None else flags.flatten(),
        )
        self.offsets = F.pad(valid.sum(1).cumsum(0), (1, 0)).tolist()
        """Where each cell begins among the valid tokens."""

    def square(self, tokens: Tensor) -> Tensor:
        """What belongs to tokens, as [cells, length, ...]."""
        return tokens.view(*self.shape, *tokens.shape[1:])

    def run(self, net: ScgptNetwork, *, given_cells: Tensor | None = None, slow_pads: bool = False) -> Run:
        """All layers and heads."""
        genes = net.encoder(self.inputs.ids)
        x = net.embed(genes, self.inputs)
        return self.encode(net, x, genes, given_cells=given_cells, slow_pads=slow_pads)

    def encode(
        self, net: ScgptNetwork, x: Tensor, genes: Tensor, *, given_cells: Tensor | None = None, slow_pads: bool = False
    ) -> Run:
        """All layers from their input on."""
        if given_cells is not None:
            x = x.index_copy(0, self.inputs.offsets[:-1], given_cells)
        layers = []
        for layer in net.layers:
            out = x.new_empty(x.shape)
            out[self.valid] = layer(x[self.valid], self.offsets)
            if not self.valid.all():
                out[~self.valid] = self._pads(layer, x, slow_pads)
            x = out
            layers.append(self.square(x))
        return Run(self.square(genes), layers, net.read(x, genes, self.inputs))

    def _pads(self, layer, x: Tensor, slow: bool) -> Tensor:
        """A layer's output at pads: flash-attention gives them no context, torch's slow path that of the valid keys."""
        if layer.order == "leading":
            x = layer.norm1(x)
        context = torch.zeros_like(x)
        if slow:
            q, k, v = (part(x).unflatten(1, (layer.heads, -1)) for part in (layer.query, layer.key, layer.value))
            places = self.inputs.offsets.tolist()
            context = attention(q, k[self.valid], v[self.valid], self.offsets, q_offsets=places).flatten(1)
        return layer._after(x[~self.valid], context[~self.valid])
