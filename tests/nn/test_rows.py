"""Parts applied row by row: the bits of a row are its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cfm.nn.rows import ROWS, by_rows


def linear(inputs: int, outputs: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(inputs, outputs)


def random_rows(n: int, width: int = 33) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1))


# Numbers of rows at which BLAS and the padding change their ways.
SIZES = [1, 2, 3, 7, 16, 31, 100, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 2 * ROWS + 37]


@torch.inference_mode()
@pytest.mark.parametrize("n", SIZES)
def test_values_are_those_of_the_whole(n: int) -> None:
    part, x = linear(33, 50), random_rows(n)
    found = by_rows(part, x)
    assert found.shape == (n, 50)
    right = x.double() @ part.weight.double().T + part.bias.double()
    torch.testing.assert_close(found.double(), right, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_bits_of_a_row_do_not_depend_on_its_neighbours() -> None:
    part, x = linear(33, 50), random_rows(3 * ROWS)
    right = by_rows(part, x)
    for n in SIZES:
        for start in (0, 5, ROWS - 2):
            assert torch.equal(by_rows(part, x[start : start + n]), right[start : start + n])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    assert torch.equal(by_rows(part, x[order]), right[order])
    assert torch.equal(by_rows(part, x[[7]].expand(3, -1)), right[[7, 7, 7]])


@torch.inference_mode()
def test_several_inputs_of_several_shapes_and_dtypes() -> None:
    ids = torch.arange(10)
    flags = (ids % 2 == 0)[:, None]
    x = random_rows(10, 6).view(10, 2, 3)

    def part(ids: Tensor, flags: Tensor, x: Tensor) -> Tensor:
        assert (len(ids), ids.dtype, flags.dtype) == (4, torch.int64, torch.bool)
        return torch.where(flags, x.sum(2), ids[:, None].float())

    assert torch.equal(by_rows(part, ids, flags, x, rows=4), torch.where(flags, x.sum(2), ids[:, None].float()))


@torch.inference_mode()
def test_no_rows() -> None:
    assert by_rows(linear(33, 50), random_rows(0)).shape == (0, 50)


def test_with_gradients_the_whole_is_computed_at_once() -> None:
    seen = []

    def part(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x * x

    x = random_rows(ROWS + 3).requires_grad_()
    by_rows(part, x).sum().backward()
    assert seen == [ROWS + 3]
    assert torch.equal(x.grad, 2 * x.detach())
