"""The launchers and the kernels together, without a GPU: what is started runs on the CPU, and the numbers are compared."""

from __future__ import annotations

import harness
import numpy as np
import pytest
import torch
from torch import Tensor

from cfm.kernels import composite, gene_sums, launch_performer, ops, performer
from cfm.kernels.plan import plan

from .starting import Emulated, in_the_place_of_the_driver

pytestmark = pytest.mark.skipif(harness.compiler() is None, reason="no C++ compiler (CXX, g++ or clang++)")

LENGTHS = [70, 0, 5, 650]
OFFSETS = [0, 70, 70, 75, 725]


@pytest.fixture(autouse=True)
def driver(monkeypatch):
    with in_the_place_of_the_driver(monkeypatch, Emulated(), (8, 0)) as made:
        yield made


def tokens(n: int, seed: int = 0) -> list[Tensor]:
    """Queries, keys and values as views of one product."""
    return list(torch.randn(n, 3, 1, 64, generator=torch.Generator().manual_seed(seed)).bfloat16().unbind(1))


def near(found: Tensor, right: Tensor) -> bool:
    """Whether it is as near as rounding once to 16 bits allows, twice over."""
    return bool((found.double() - right).abs().max() <= 2 * (right.bfloat16().double() - right).abs().max() + 1e-5)


@pytest.mark.parametrize("known", [None, [30, 0, 5, 100]], ids=["all", "some"])
def test_attention_and_its_gradients(known):
    q, k, v = tokens(OFFSETS[-1])
    made = plan(OFFSETS, None, known, len(q), len(k), q.device, "cuda")
    given = (made.offsets, None, made.n_known, made.tiles, made.narrow, made.n_wide, 0.125, True, "cuda")
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    grad = tokens(len(q), 1)[0]
    out, lse = ops.varlen_attention(*leaves, *given)
    out.backward(grad)
    right, right_lse = composite.by_hand(*exact, OFFSETS, OFFSETS, known, 0.125)
    right.backward(grad.double())
    assert made.n_wide == 6, "both tile sizes run"
    assert near(out.detach(), right.detach())
    torch.testing.assert_close(lse.double(), right_lse.detach(), atol=2e-5, rtol=0)
    for mine, its in zip(leaves, exact, strict=True):
        # P and dS are rounded to 16 bits too, before their products.
        assert (mine.grad.double() - its.grad).abs().max() < 0.02 * its.grad.abs().max()


def test_unknown_keys_get_a_gradient_from_their_own_query_only():
    lengths, known = np.random.default_rng(0).integers(0, 12, 60).tolist(), 3
    offsets = np.cumsum([0, *lengths]).tolist()
    n_known = [min(known, n) for n in lengths]
    q, k, v = (x.clone().requires_grad_() for x in tokens(offsets[-1]))
    made = plan(offsets, None, n_known, len(q), len(k), q.device, "cuda")
    out, _ = ops.varlen_attention(
        q, k, v, made.offsets, None, made.n_known, made.tiles, made.narrow, made.n_wide, 0.125, True, "cuda"
    )
    cell = next(i for i, n in enumerate(lengths) if n > known + 2)
    own = offsets[cell] + known + 1
    d_q, d_k, d_v = torch.autograd.grad(out[own].float().sum(), (q, k, v))
    reached = [*range(offsets[cell], offsets[cell] + known), own]
    for grad, rows in ((d_q, [own]), (d_k, reached), (d_v, reached)):
        assert grad.flatten(1).any(1).nonzero().flatten().tolist() == rows


def test_gene_sums():
    q, k, v = tokens(OFFSETS[-1])
    made = plan(OFFSETS, None, [30, 0, 5, 100], len(q), len(k), q.device, "cuda")
    genes = torch.randperm(len(q), generator=torch.Generator().manual_seed(2)).int() % 300 - 20
    found = []
    _, lse = composite.with_lse(*(x.double() for x in (q, k, v)), OFFSETS, OFFSETS, [30, 0, 5, 100], 0.125)
    for backend, offsets, known in (
        ("cuda", made.offsets, made.n_known),
        ("sdpa", torch.tensor(OFFSETS), torch.tensor([30, 0, 5, 100])),
    ):
        sums, counts = torch.zeros(280, 280, dtype=torch.int64), torch.zeros(280, 280, dtype=torch.int32)
        bad = torch.zeros(1, dtype=torch.int64)
        ops.gene_attention_sum(q, k, lse.float(), offsets, known, made.narrow, genes, 0.125, sums, counts, bad, backend)
        found.append((sums, counts, bad))
    (sums, counts, bad), (right, right_counts, _) = found
    assert torch.equal(counts, right_counts)
    assert not bad.any()
    assert ((sums - right).double() * gene_sums.UNIT).abs().max() < 5e-6


@pytest.mark.parametrize("scope", performer.SCOPES)
def test_performer(monkeypatch, driver, scope):
    # Several splits of the long cell, and groups of one and two cells.
    monkeypatch.setattr(launch_performer, "SPLIT_ROWS", 256)
    launch_performer._plan.cache_clear()
    q, k, v = tokens(OFFSETS[-1])
    w = torch.randn(100, 64, generator=torch.Generator().manual_seed(3))
    whole = launch_performer.attend(q, k, v, OFFSETS, w, scope, 1e-4)
    exact = [x.double() for x in (q, k, v)]
    assert near(whole, performer.attend(*exact, OFFSETS, w.double(), scope, 1e-4))
    monkeypatch.setattr(launch_performer, "_ROOM", 4 * 192 * 64 * 4)
    in_groups = launch_performer.attend(q, k, v, OFFSETS, w, scope, 1e-4)
    assert sum(start.name == "performer_keys" for start in driver.started) == 1 + 2
    launch_performer._plan.cache_clear()
    assert torch.equal(in_groups, whole)
    if scope != "batch":
        alone = launch_performer.attend(q[75:], k[75:], v[75:], [0, 650], w, scope, 1e-4)
        assert torch.equal(alone, whole[75:])
