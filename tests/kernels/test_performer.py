"""Attention with random features: against the published formula in float64, its gradients, and who computes it."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import shutil

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from cfm._core.errors import OptionError
from cfm.kernels import backends, launch_performer, ops, performer
from cfm.kernels.errors import KernelError

from .test_ops import call, places, tokens

SCOPES = pytest.mark.parametrize("scope", performer.SCOPES)
LENGTHS = [1100, 0, *[17] * 10, *[1] * 10]


def directions(n: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def favor(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], projection: Tensor, scope: str, eps: float) -> Tensor:
    """The formula of the published softmax kernel, its constant factors included; torch sees all of it."""
    width, m = q.shape[-1], len(projection)

    def features(x: Tensor, largest: Tensor | None) -> Tensor:
        dash = torch.einsum("nhd,md->nhm", width**-0.25 * x, projection)
        largest = torch.max(dash, dim=-1, keepdim=True).values if largest is None else largest
        return m**-0.5 * (torch.exp(dash - (x**2).sum(-1, keepdim=True) / 2 * width**-0.5 - largest) + eps)

    dash = torch.einsum("nhd,md->nhm", width**-0.25 * k, projection)
    parts, starts = [], places(lengths).tolist()
    for a, b in itertools.pairwise(starts):
        if a == b:
            continue
        over = {"batch": dash, "cell": dash[a:b]}.get(scope)
        largest = dash[a:b].amax((0, 2))[None, :, None] if over is None else torch.max(over)
        phi_q, phi_k = features(q[a:b], None), features(k[a:b], largest)
        context = torch.einsum("nhm,nhd->hmd", phi_k, v[a:b])
        weight = torch.einsum("nhm,hm->nh", phi_q, phi_k.sum(0))
        parts.append(torch.einsum("nhm,hmd->nhd", phi_q, context) / weight[..., None])
    return torch.cat(parts)


@SCOPES
def test_against_the_formula(scope):
    q, k, v = tokens(sum(LENGTHS), width=64)
    exact = [x.double() for x in (q, k, v)]
    w = directions(266, 64)
    found = ops.performer_attention(q, k, v, places(LENGTHS), w, scope, 1e-4)
    right = favor(*exact, LENGTHS, w.double(), scope, 1e-4)
    plain = favor(q, k, v, LENGTHS, w, scope, 1e-4)
    ours, its = (x.double() - right for x in (found, plain))
    assert ours.abs().max() < 5e-6
    assert ours.square().mean() < its.square().mean(), "better than the formula as it stands, in the same dtype"
    half = ops.performer_attention(*(x.bfloat16() for x in (q, k, v)), places(LENGTHS), w, scope, 1e-4)
    right = favor(*(x.bfloat16().double() for x in (q, k, v)), LENGTHS, w.double(), scope, 1e-4)
    assert (half.double() - right).abs().max() <= 1.01 * (right.bfloat16().double() - right).abs().max()


def test_the_scope_of_the_largest_feature_matters():
    q, k, v = tokens(60)
    w, found = directions(20, 8), {}
    for scope in performer.SCOPES:
        found[scope] = ops.performer_attention(q, k, v, places([20, 40]), w, scope, 1e-2)
    for one, other in itertools.combinations(found.values(), 2):
        assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("scope", ["head", "cell"])
def test_a_cell_alone_and_among_others_has_the_same_bits(scope):
    lengths = [300, 0, 1500, 7]
    q, k, v = tokens(sum(lengths), heads=3, width=64)
    w = directions(266, 64)
    whole = ops.performer_attention(q, k, v, places(lengths), w, scope, 1e-4)
    part = slice(300, 1800)
    alone = ops.performer_attention(q[part].clone(), k[part], v[part], places([1500]), w, scope, 1e-4)
    assert torch.equal(whole[part], alone)


def test_what_is_in_one_cell_stays_there():
    q, k, v = (x.clone() for x in tokens(24))
    w, healthy = directions(20, 8), [*range(8), *range(16, 24)]
    before = ops.performer_attention(q, k, v, places([8, 8, 8]), w, "cell", 1e-4)
    for sick in (torch.nan, torch.inf):
        for x in (q, k, v):
            x[8:16] = sick
        after = ops.performer_attention(q, k, v, places([8, 8, 8]), w, "cell", 1e-4)
        assert torch.equal(after[healthy], before[healthy])


def test_many_features_come_close_to_the_softmax():
    q, k, v = (0.5 * x for x in tokens(30))
    found = ops.performer_attention(q, k, v, places([30]), directions(20_000, 8), "cell", 1e-6)
    exact, _ = call(q, k, v, places([30]))
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0)


@SCOPES
def test_no_tokens(scope):
    q, k, v = (x.requires_grad_() for x in tokens(0))
    for lengths in ([], [0, 0]):
        out = ops.performer_attention(q, k, v, places(lengths), directions(20, 8), scope, 1e-4)
        out.sum().backward()
        assert out.shape == q.grad.shape == (0, 2, 8)


class Largest(TorchDispatchMode):
    """Notes the most numbers of a tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        self.numbers = max(self.numbers, *(x.numel() for x in made if isinstance(x, Tensor)), 0)
        return out


def test_features_are_never_all_in_memory():
    n, heads = 6000, 2
    q, k, v = tokens(n, heads=heads, width=64)
    for run in (
        lambda: performer.attend(q, k, v, [0, n], directions(266, 64), "cell", 1e-4),
        lambda: performer.backward(q, q, k, v, q, [0, n], directions(266, 64), "cell", 1e-4),
    ):
        with Largest() as largest:
            run()
        assert largest.numbers <= max(q.numel(), performer._CACHED)
        assert largest.numbers < n * heads * 266 / 2


# --- gradients


@SCOPES
def test_gradients_against_differences(scope):
    q, k, v = (x.contiguous().requires_grad_() for x in tokens(9, width=4, dtype=torch.float64))
    w = directions(6, 4, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: ops.performer_attention(*x, places([4, 0, 5]), w, scope, 1e-2), (q, k, v)
    )


@SCOPES
@pytest.mark.parametrize("eps", [1e-4, 1e-1])
def test_gradients_against_autograd(scope, eps):
    # Through the maxima too: with a large eps a good part of the gradient takes that way.
    lengths = [1100, 0, 17, 300]
    w, grad = directions(40, 16), tokens(sum(lengths), width=16, seed=1)[0]
    leaves, plain = ([x.clone().requires_grad_() for x in tokens(sum(lengths), width=16)] for _ in range(2))
    exact = [x.detach().double().requires_grad_() for x in leaves]
    ops.performer_attention(*leaves, places(lengths), w, scope, eps).backward(grad)
    favor(*plain, lengths, w, scope, eps).backward(grad)
    favor(*exact, lengths, w.double(), scope, eps).backward(grad.double())
    for mine, its, right in zip(leaves, plain, exact, strict=True):
        ours, autograds = ((x.grad - right.grad).abs().max() for x in (mine, its))
        assert ours <= 2 * autograds
        assert ours < 1e-4 * right.grad.abs().max()


@SCOPES
def test_equal_logits_share_the_gradient_of_their_maximum(scope):
    lengths, w = [6, 6], directions(10, 4, torch.float64)
    q, k, v = (x.clone() for x in tokens(12, heads=1, width=4, dtype=torch.float64))
    # The largest logit of all stands at three tokens of two cells.
    k[2] = k[4] = k[8] = 4 * w[3]
    leaves, exact = ([x.clone().requires_grad_() for x in (q, k, v)] for _ in range(2))
    grad = tokens(12, heads=1, width=4, seed=1, dtype=torch.float64)[0]
    ops.performer_attention(*leaves, places(lengths), w, scope, 0.1).backward(grad)
    favor(*exact, lengths, w, scope, 0.1).backward(grad)
    for mine, right in zip(leaves, exact, strict=True):
        torch.testing.assert_close(mine.grad, right.grad)


def test_a_projection_that_wants_a_gradient_is_refused():
    q, k, v = (x.requires_grad_() for x in tokens(6))
    w = directions(20, 8).requires_grad_()
    with pytest.raises(OptionError, match=r"projection\.detach\(\)"):
        ops.performer_attention(q, k, v, places([6]), w, "cell", 1e-4)


@SCOPES
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_opcheck(scope):
    q, k, v = (x.contiguous().requires_grad_() for x in tokens(30))
    rest = (places([10, 0, 20]), directions(20, 8), scope, 1e-4)
    opcheck(ops.performer_attention, (q, k, v, *rest))
    opcheck(ops.performer_attention_backward, (*(x.detach() for x in (q, q, k, v, q)), *rest))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_whole_and_for_every_length():
    w = directions(20, 8)

    def step(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
        return ops.performer_attention(q * 2, k, v, offsets, w, "cell", 1e-4).flatten(1) + 1

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for lengths in ([5, 0, 17], [1, 70, 4]):
        results = []
        for function in (step, compiled):
            inputs = [x.contiguous().requires_grad_() for x in tokens(sum(lengths))]
            out = function(*inputs, places(lengths))
            out.square().sum().backward()
            results.append([out.detach(), *(x.grad for x in inputs)])
        for plain, made in zip(*results, strict=True):
            torch.testing.assert_close(made, plain, atol=1e-6, rtol=1e-6)


# --- who computes it


@pytest.fixture
def gpu(monkeypatch):
    """As if the tokens were on a GPU: what is asked of the backends, and what the user is told."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("cfm").addHandler(handler)
    real = backends.choose
    monkeypatch.setattr(
        backends, "choose", lambda one, asked: real(dataclasses.replace(one, device=torch.device("cuda:0")), "auto")
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backends, "_no_package", lambda module, distribution: None)
    monkeypatch.setattr(backends, "_broken", {})
    monkeypatch.setattr(backends, "_said", set())
    yield told
    logging.getLogger("cfm").removeHandler(handler)


@pytest.mark.parametrize(
    ("width", "dtype", "why"),
    [(64, torch.bfloat16, None), (32, torch.bfloat16, "heads are 32 wide, and there are kernels for 64"),
     (64, torch.float32, "numbers are float32, and there are kernels for float16 and bfloat16")],
    ids=str,
)  # fmt: skip
def test_the_kernels_where_there_are_some_else_torch_and_said_once(gpu, monkeypatch, width, dtype, why):
    q, k, v = tokens(6, width=width, dtype=dtype)
    monkeypatch.setattr(launch_performer, "attend", lambda q, *_: q)
    for _ in range(2):
        out = ops.performer_attention(q, k, v, places([6]), directions(20, width), "cell", 1e-4)
    assert torch.equal(out, q) == (why is None)
    assert len(gpu) == (why is not None)
    assert all(why in said for said in gpu)


def test_kernels_that_fail_are_passed_over_from_then_on(gpu, monkeypatch):
    tried = []

    def attend(*_):
        tried.append(1)
        raise KernelError("performer does not compile")

    monkeypatch.setattr(launch_performer, "attend", attend)
    monkeypatch.setattr(
        backends, "broke", lambda name, device, why: backends._broken.update({(name, torch.device("cuda:0")): why})
    )
    q, k, v = tokens(6, width=64, dtype=torch.bfloat16)
    for _ in range(2):
        assert ops.performer_attention(q, k, v, places([6]), directions(20, 64), "cell", 1e-4).isfinite().all()
    assert len(tried) == 1
    assert gpu[-1].endswith("not by cuda: performer does not compile.")


def test_projections_and_scopes_that_cannot_be():
    q, k, v = tokens(6)
    with pytest.raises(OptionError, match="scope='all': type 'head', 'cell' or 'batch'"):
        ops.performer_attention(q, k, v, places([6]), torch.ones(4, 8), "all", 1e-4)
    with pytest.raises(OptionError, match="the width of a head"):
        ops.performer_attention(q, k, v, places([6]), torch.ones(4, 9), "cell", 1e-4)
    with pytest.raises(OptionError, match="end at 5, and there are 6 tokens"):
        ops.performer_attention(q, k, v, places([5]), torch.ones(4, 8), "cell", 1e-4)
