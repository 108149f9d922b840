"""Numbers with fewer bits: half precision on a GPU, and 8-bit integers on the CPU."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch
from torch import Tensor, nn

from cfm._core.errors import OptionError

Precision = Literal["float32", "bfloat16", "float16", "int8"]

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}

# Two products of an unsigned and a signed byte are added in 16 bits on processors without VNNI. With seven bits for
# one of them the sum always fits.
_LEVELS = 63
_TINY = 1e-30


def choose_precision(precision: str | None, device: torch.device) -> Precision:
    """The precision that was asked for; None takes float32 on the CPU and bfloat16 on a GPU.

    Raises
    ------
    OptionError
        No such precision, or not on this device.
    """
    if precision is None:
        return "float32" if device.type == "cpu" else "bfloat16"
    allowed = ("float32", "int8") if device.type == "cpu" else ("float32", *_HALF)
    if precision not in allowed:
        names = " or ".join(map(repr, allowed))
        raise OptionError(f"precision={precision!r} does not go with device {str(device)!r}: type {names}.")
    if precision == "int8" and not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        raise OptionError("precision='int8': this build of torch has no 8-bit products. Type precision='float32'.")
    return precision  # type: ignore[return-value]


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """A block in which matrix products and attention take this precision; sums over tokens and norms stay in float32."""
    if precision in _HALF:
        return torch.autocast(device.type, dtype=_HALF[precision])
    return contextlib.nullcontext()


def to_int8(module: nn.Module) -> None:
    """Put 8-bit linear layers in the place of a network's, except those of a single input or output, in place."""
    for name, part in module.named_children():
        if isinstance(part, nn.Linear) and min(part.weight.shape) > 1:
            setattr(module, name, Int8Linear(part))
        else:
            to_int8(part)


class Int8Linear(nn.Module):
    """A linear layer with weights in 8 bits, one scale for each output, and inputs rounded to 7 bits row by row.

    The scale of a row is its largest number, so that its result does not depend on the rows beside it.

    Parameters
    ----------
    linear
        The layer to stand in for.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(_TINY) / 127
        self.scale = nn.Buffer(scale)
        self.zero = nn.Buffer(torch.zeros(len(scale), dtype=torch.int32))
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        bias: Tensor | None = linear.bias
        self.bias = nn.Buffer(scale.new_zeros(len(scale)) if bias is None else bias.detach())
        self.middle = nn.Buffer(torch.tensor(_LEVELS + 1.5))

    def forward(self, x: Tensor) -> Tensor:
        """float32[n, outputs]."""
        row = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True).clamp_min_(_TINY) / _LEVELS
        # Adding half before the cut to whole numbers rounds; few passes over the rows are half of what this saves.
        rounded = torch.addcmul(self.middle, x, row.reciprocal()).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, _LEVELS + 1, self.packed, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return torch.addcmul(self.bias, product, row)
