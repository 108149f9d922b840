"""Fewer bits: what is allowed where, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cfm.errors import OptionError
from cfm.nn.encoder import EncoderLayer
from cfm.nn.precision import Int8Linear, autocast, choose_precision, to_int8

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def linear() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(64, 96)


def rows(n: int) -> torch.Tensor:
    return torch.randn(n, 64, generator=torch.Generator().manual_seed(1))


def test_defaults_and_refusals() -> None:
    assert choose_precision(None, CPU) == "float32"
    assert choose_precision(None, GPU) == "bfloat16"
    assert choose_precision("float32", GPU) == "float32"
    assert choose_precision("int8", CPU) == "int8"
    for precision, device in (("bfloat16", CPU), ("int8", GPU), ("int4", CPU)):
        with pytest.raises(OptionError, match=rf"precision='{precision}' does not go with device '{device}': type "):
            choose_precision(precision, device)


def test_eight_bits_are_close_and_smaller_numbers_are_not_lost(linear: nn.Linear) -> None:
    x = rows(100) * torch.logspace(-6, 6, 100)[:, None]
    with torch.inference_mode():
        exact = linear(x) - linear.bias
        found = Int8Linear(linear)(x) - linear.bias
    # 7 bits for inputs and 8 for weights: about 1.3 % of each row's own size, however small the row.
    error = (found - exact).norm(dim=1) / exact.norm(dim=1)
    large = exact.abs().amax(1) > 1e-3  # below, the bias swallows the last digits of float32
    assert 0.005 < error[large].mean() < 0.02
    assert error[large].max() < 0.03


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours(linear: nn.Linear) -> None:
    small, x = Int8Linear(linear), rows(40)
    whole = small(x)
    assert torch.equal(whole[7:8], small(x[7:8]))
    x[:7] *= 1e4
    assert torch.equal(whole[7:], small(x)[7:])
    assert torch.equal(small(torch.zeros(2, 64)), linear.bias.expand(2, -1))


def test_a_layer_is_changed_in_all_its_products() -> None:
    layer = EncoderLayer(32, 4, 64).eval().requires_grad_(False)
    before = {name for name, part in layer.named_modules() if isinstance(part, nn.Linear)}
    to_int8(layer)
    assert {name for name, part in layer.named_modules() if isinstance(part, Int8Linear)} == before
    assert before == {"query", "key", "value", "out", "up", "down"}
    assert not any(isinstance(part, nn.Linear) for part in layer.modules())


def test_half_precision_is_a_block_and_float32_none() -> None:
    x, weight = rows(4), torch.ones(3, 64)
    with autocast(CPU, "bfloat16"):
        assert nn.functional.linear(x, weight).dtype == torch.bfloat16
    for precision in ("float32", "int8"):
        with autocast(CPU, precision):
            assert nn.functional.linear(x, weight).dtype == torch.float32
