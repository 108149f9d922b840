"""The encoder layer against its formula in float64, in both orders, whole and for first tokens alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cfm.nn.encoder import EncoderLayer

DIM, HEADS, HIDDEN, EPS = 24, 3, 40, 1e-7
LENGTHS = [6, 1, 11, 3]
OFFSETS = np.cumsum([0, *LENGTHS]).tolist()
ORDERS = ("post", "leading")


def layer(**options: Any) -> EncoderLayer:
    """A layer whose every parameter is random, norms included."""
    made = EncoderLayer(DIM, HEADS, HIDDEN, eps=EPS, **options)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.5 if "norm" in name else 0.2)
        if name.startswith("norm") and name.endswith("weight"):
            parameter.data += 1
    return made.eval()


def vectors(n: int = sum(LENGTHS), seed: int = 1) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm with the biased variance."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight + bias


def by_hand(x: Tensor, w: dict[str, Tensor], order: str, n_known: list[int] | None = None) -> Tensor:
    """The layer for all cells, with a softmax over an explicit mask."""

    def attended(x: Tensor) -> Tensor:
        q, k, v = (
            (x @ w[f"{part}.weight"].T + w[f"{part}.bias"]).view(-1, HEADS, DIM // HEADS)
            for part in ("query", "key", "value")
        )
        cell = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
        sees = cell[:, None] == cell[None]
        known = torch.ones(len(x), dtype=torch.bool)
        if n_known is not None:
            place = torch.arange(len(x)) - torch.tensor(OFFSETS)[cell]
            known = place < torch.tensor(n_known)[cell]
            sees = sees & (known[None] | torch.eye(len(x), dtype=torch.bool))
        scores = torch.einsum("qhd,khd->hqk", q, k) / (DIM / HEADS) ** 0.5
        context = torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, -torch.inf).softmax(-1), v).flatten(1)
        projected = context @ w["out.weight"].T + w["out.bias"]
        return torch.where(known[:, None], projected, context)

    def fed(x: Tensor) -> Tensor:
        return (x @ w["up.weight"].T + w["up.bias"]).relu() @ w["down.weight"].T + w["down.bias"]

    norm1, norm2 = ((w[f"{name}.weight"], w[f"{name}.bias"]) for name in ("norm1", "norm2"))
    if order == "post":
        x = norm(x + attended(x), *norm1)
        return norm(x + fed(x), *norm2)
    x = norm(x, *norm1)
    x = x + attended(x)
    x = norm(x, *norm2)
    return x + fed(x)


def exact_weights(made: EncoderLayer) -> dict[str, Tensor]:
    return {name: parameter.detach().double() for name, parameter in made.named_parameters()}


@torch.inference_mode()
@pytest.mark.parametrize("n_known", [None, [3, 1, 11, 0]], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_against_the_formula(order: str, n_known: list[int] | None) -> None:
    made, x = layer(order=order), vectors()
    right = by_hand(x.double(), exact_weights(made), order, n_known)
    torch.testing.assert_close(made(x, OFFSETS, n_known=n_known).double(), right, atol=2e-6, rtol=1e-6)


def test_the_two_orders_differ() -> None:
    x = vectors()
    assert (layer(order="post")(x, OFFSETS) - layer(order="leading")(x, OFFSETS)).abs().max() > 0.1


@torch.inference_mode()
@pytest.mark.parametrize("order", ORDERS)
def test_first_tokens_are_those_of_the_whole(order: str) -> None:
    made, x = layer(order=order), vectors()
    whole = made(x, OFFSETS)[OFFSETS[:-1]]
    firsts = made.first_tokens(x, OFFSETS)
    assert firsts.shape == (len(LENGTHS), DIM)
    torch.testing.assert_close(firsts, whole, atol=2e-6, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("order", ORDERS)
def test_the_bits_of_a_cell_are_its_own(order: str) -> None:
    made = layer(order=order)
    lengths = [1, 700, 3, 512, 40, 2]
    starts = np.cumsum([0, *lengths]).tolist()
    x = vectors(starts[-1])
    together, firsts = made(x, starts), made.first_tokens(x, starts)
    for cell, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        alone = x[start:stop]
        assert torch.equal(made(alone, [0, stop - start]), together[start:stop])
        assert torch.equal(made.first_tokens(alone, [0, stop - start]), firsts[[cell]])
    order_of_cells = [4, 1, 0, 5, 3, 2]
    mixed = torch.cat([x[starts[i] : starts[i + 1]] for i in order_of_cells])
    mixed_starts = np.cumsum([0, *(lengths[i] for i in order_of_cells)]).tolist()
    assert torch.equal(made.first_tokens(mixed, mixed_starts), firsts[order_of_cells])


@torch.inference_mode()
def test_no_cells() -> None:
    assert layer()(vectors(0), [0]).shape == (0, DIM)
    assert layer().first_tokens(vectors(0), [0]).shape == (0, DIM)


@pytest.mark.parametrize("n_known", [None, [3, 1, 11, 0]], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_gradients(order: str, n_known: list[int] | None) -> None:
    made, x = layer(order=order), vectors().requires_grad_()
    weights = vectors(seed=3)
    (made(x, OFFSETS, n_known=n_known) * weights).sum().backward()

    exact = {name: parameter.requires_grad_() for name, parameter in exact_weights(made).items()}
    y = x.detach().double().requires_grad_()
    (by_hand(y, exact, order, n_known) * weights.double()).sum().backward()
    torch.testing.assert_close(x.grad.double(), y.grad, atol=2e-5, rtol=1e-5)
    for name, parameter in made.named_parameters():
        # The bias of the keys moves all scores of a query alike, and the softmax does not see it.
        assert name == "key.bias" or exact[name].grad.abs().max() > 1e-3
        scale = float(exact[name].grad.abs().max())
        torch.testing.assert_close(parameter.grad.double(), exact[name].grad, atol=2e-6 * max(scale, 1), rtol=1e-5)


def test_gradients_through_first_tokens() -> None:
    made = layer()
    x, y = vectors().requires_grad_(), vectors().requires_grad_()
    made.first_tokens(x, OFFSETS).square().sum().backward()
    made(y, OFFSETS)[OFFSETS[:-1]].square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dropout", "inner_dropout", "attention_dropout"])
def test_dropout_in_training_alone(kind: str) -> None:
    made, x = layer(**{kind: 0.4}), vectors()
    still = layer()(x, OFFSETS)
    assert torch.equal(made(x, OFFSETS), still)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = made.train()(x, OFFSETS), made(x, OFFSETS)
    assert not torch.equal(one, other)
    assert not torch.equal(one, still)


def test_a_bias_of_keys_reaches_attention() -> None:
    made, x = layer(), vectors()
    bias = torch.zeros(len(x))
    bias[OFFSETS[2] + 4] = -1e9  # a token that nobody sees might as well not be there
    kept = [i for i in range(len(x)) if i != OFFSETS[2] + 4]
    without = [*OFFSETS[:3], *(offset - 1 for offset in OFFSETS[3:])]
    with torch.inference_mode():
        found = made(x, OFFSETS, key_bias=bias)
        torch.testing.assert_close(found[kept], made(x[kept], without), atol=2e-5, rtol=0)
        first = made.first_tokens(x, OFFSETS, key_bias=bias)
        torch.testing.assert_close(first, found[OFFSETS[:-1]], atol=2e-5, rtol=0)
