"""FAVOR+ attention (Choromanski et al. 2021) with the features of the published softmax kernel, on any device of torch.

    feature(q) = exp(w.cq - |cq|^2 / 2 - max over w of w.cq) + eps           c = width^(-1/4)
    feature(k) = exp(w.ck - |ck|^2 / 2 - top) + eps                          top: max of w.ck over the keys of a scope
    out        = feature(q) (sum feature(k) v) / (feature(q) . sum feature(k))

The published factor 1 / sqrt(n_features) stands in every term of the quotient and is left out. A cell is read in parts of
so few tokens that their features stay in the processor's cache. Each sum is one over exponentials, which is rescaled when
a larger logit turns up, and eps times a sum without features, which is not; `top` enters at the end. So the keys are read
once, and small exponentials are not lost beside eps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import composite

SCOPES = ("head", "cell", "batch")
"""Over what the largest key feature is taken: each cell and head; each cell; all that is passed."""

_CACHED = 2**19
"""Numbers of a part on the CPU: 2 MiB of float32, which was fastest of 2^17 to 2^21. The number of threads must not enter: other
parts, other bits."""

_ON_GPU = 2**25
"""Numbers that a GPU has at hand: it needs many at once, to be busy."""


class Features(NamedTuple):
    """What the features of all tokens are made with.

    Attributes
    ----------
    w
        The projection, [n_features, width], in the dtype of sums.
    scale
        width^(-1/4).
    rows
        Tokens of a part. It depends on nothing of the other cells, so a cell alone has the same bits.
    across
        `w` the other way round, [width, n_features]: products with it are faster.
    memory
        Where logits of a part are made, one part after the other: new memory would cost as much as the product.
    """

    w: Tensor
    scale: float
    rows: int
    across: Tensor
    memory: Tensor

    def parts(self, cell: slice) -> Iterator[slice]:
        """The tokens of a cell, some at a time."""
        for start in range(cell.start, cell.stop, self.rows):
            yield slice(start, min(start + self.rows, cell.stop))

    def heads_first(self, x: Tensor) -> Tensor:
        """[heads, n, width] in the dtype of sums, in memory of its own: products then do not depend on where x lies."""
        return self.w.new_empty((x.shape[1], x.shape[0], x.shape[2])).copy_(x.transpose(0, 1))

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled tokens c x, [heads, n, width], and logits w.cx, [heads, n, n_features], good until the next call."""
        scaled = self.heads_first(x).mul_(self.scale)
        flat = scaled.flatten(0, 1)
        return scaled, torch.mm(flat, self.across, out=self.memory[: len(flat)]).unflatten(0, scaled.shape[:2])


class Sums(NamedTuple):
    """Sums over the keys of a cell, first index: the head.

    Attributes
    ----------
    weighted
        Of exponentials times (v, 1), [heads, n_features, width + 1], for the maximum of each head.
    plain
        Of (v, 1), [heads, 1, width + 1].
    top
        Largest w.ck of each head, [heads, 1, 1].
    """

    weighted: Tensor
    plain: Tensor
    top: Tensor

    def of_features(self, top: Tensor, eps: float) -> Tensor:
        """Sums of features times (v, 1) for the maximum of a scope, [heads, n_features, width + 1]."""
        return self.weighted * (self.top - top).exp() + eps * self.plain


def attend(q: Tensor, k: Tensor, v: Tensor, offsets: list[int], projection: Tensor, scope: str, eps: float) -> Tensor:
    """Parameters as in `cfm.kernels.ops.performer_attention`. Memory: some MiB."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    made = features_of(q, projection)
    top = top_of_all(made, k, offsets) if scope == "batch" else None
    for _, cell, _ in composite.spans(offsets, offsets):
        sums = sums_of_keys(made, k, v, cell)
        of_keys = sums.of_features(top_of(sums, scope, top), eps)
        constant = eps * of_keys.sum(1, keepdim=True)
        for part in made.parts(cell):
            scaled, logits = made.logits(q[part])
            exponentials = logits.sub_(logits.amax(-1, keepdim=True).add_(half_square(scaled))).exp_()
            both = torch.baddbmm(constant, exponentials, of_keys)
            out[part] = (both[..., :-1] / both[..., -1:]).transpose(0, 1)
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, offsets: list[int], projection: Tensor, scope: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, through both maxima too, as autograd gives them for the formula. Memory as in `attend`.

    A maximum that several logits share passes its gradient on to each in equal parts, as ``amax`` does.
    """
    d_q, d_k, d_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    made = features_of(q, projection)
    top = top_of_all(made, k, offsets) if scope == "batch" else None
    largest = _Largest(made)
    for _, cell, _ in composite.spans(offsets, offsets):
        sums = sums_of_keys(made, k, v, cell)
        its_top = top_of(sums, scope, top)
        d_sums = _of_queries(made, grad, q, out, cell, sums.of_features(its_top, eps), eps, d_q)
        _of_keys(made, k, v, cell, its_top, d_sums, eps, d_k, d_v, largest)
        if scope != "batch":
            largest.give(d_k, by_head=scope == "head")
    largest.give(d_k, by_head=False)
    return d_q, d_k, d_v


def features_of(q: Tensor, projection: Tensor) -> Features:
    """How the features of some tokens are made."""
    w = projection.detach().to(q.device, composite.lse_dtype(q))
    room = _CACHED if q.device.type == "cpu" else _ON_GPU
    rows = max(16, room // max(1, q.shape[1] * len(w)))
    memory = w.new_empty((q.shape[1] * min(rows, max(1, len(q))), len(w)))
    return Features(w, q.shape[-1] ** -0.25, rows, w.T.contiguous(), memory)


def top_of(sums: Sums, scope: str, top: Tensor | None) -> Tensor:
    """The largest w.ck of the scope, one number or [heads, 1, 1]."""
    if top is not None:
        return top
    return sums.top if scope == "head" else sums.top.amax()


def top_of_all(made: Features, k: Tensor, offsets: list[int]) -> Tensor:
    """The largest w.ck of all cells, from the same parts as later on, so that it is met again to the bit."""
    cells = composite.spans(offsets, offsets)
    tops = [made.logits(k[part])[1].amax() for _, cell, _ in cells for part in made.parts(cell)]
    return torch.stack(tops).amax() if tops else made.w.new_zeros(())


def half_square(scaled: Tensor) -> Tensor:
    """|cx|^2 / 2, [heads, n, 1]."""
    return scaled.square().sum(-1, keepdim=True).mul_(0.5)


def _with_one(made: Features, v: Tensor) -> Tensor:
    """(v, 1), [heads, n, width + 1]."""
    return torch.cat([made.heads_first(v), made.w.new_ones((v.shape[1], len(v), 1))], -1)


def sums_of_keys(made: Features, k: Tensor, v: Tensor, cell: slice) -> Sums:
    """Sums over the keys of a cell, in one pass."""
    heads, width = v.shape[1:]
    weighted = made.w.new_zeros((heads, len(made.w), width + 1))
    plain = made.w.new_zeros((heads, 1, width + 1))
    top = made.w.new_full((heads, 1, 1), -torch.inf)
    for part in made.parts(cell):
        scaled, logits = made.logits(k[part])
        values = _with_one(made, v[part])
        larger = torch.maximum(top, logits.amax((1, 2), keepdim=True))
        exponentials = logits.sub_(half_square(scaled).add_(larger)).exp_()
        weighted.mul_((top - larger).exp_()).baddbmm_(exponentials.mT, values)
        plain += values.sum(1, keepdim=True)
        top = larger
    return Sums(weighted, plain, top)


def _of_queries(
    made: Features, grad: Tensor, q: Tensor, out: Tensor, cell: slice, of_keys: Tensor, eps: float, d_q: Tensor
) -> Tensor:
    """Fill the part of a cell in `d_q`; give the gradient of the sums over its keys."""
    constant = eps * of_keys.sum(1, keepdim=True)
    d_sums, plain = torch.zeros_like(of_keys), torch.zeros_like(constant)
    for part in made.parts(cell):
        scaled, logits = made.logits(q[part])
        logits.sub_(logits.amax(-1, keepdim=True))
        highest = logits == 0
        exponentials = logits.sub_(half_square(scaled)).exp_()
        weight = torch.baddbmm(constant[..., -1:], exponentials, of_keys[..., -1:])
        one = made.heads_first(grad[part])
        mean = (one * made.heads_first(out[part])).sum(-1, keepdim=True)
        d_both = torch.cat([one, -mean], -1).div_(weight)
        d_sums.baddbmm_(exponentials.mT, d_both)
        plain += d_both.sum(1, keepdim=True)
        d_logits = torch.bmm(d_both, of_keys.mT).mul_(exponentials)
        total = d_logits.sum(-1, keepdim=True)
        d_logits.sub_(highest * (total / highest.sum(-1, keepdim=True)))
        d_q[part] = _of_tokens(made, scaled, d_logits, total)
    return d_sums.add_(plain, alpha=eps)


def _of_keys(
    made: Features, k: Tensor, v: Tensor, cell: slice, top: Tensor, d_sums: Tensor, eps: float, d_k: Tensor, d_v: Tensor,
    largest: _Largest,
) -> None:  # fmt: skip
    """Fill the parts of a cell in `d_k` and `d_v`; the gradient of the maximum is left to `largest`."""
    d_values = d_sums[..., :-1]
    constant = eps * d_values.sum(1, keepdim=True)
    for part in made.parts(cell):
        scaled, logits = made.logits(k[part])
        largest.look(logits, top, part.start)
        exponentials = logits.sub_(half_square(scaled).add_(top)).exp_()
        d_v[part] = torch.baddbmm(constant, exponentials, d_values).transpose(0, 1)
        d_logits = torch.bmm(_with_one(made, v[part]), d_sums.mT).mul_(exponentials)
        total = d_logits.sum(-1, keepdim=True)
        largest.owed = largest.owed + total.sum(1).flatten()
        d_k[part] = _of_tokens(made, scaled, d_logits, total)


def _of_tokens(made: Features, scaled: Tensor, d_logits: Tensor, total: Tensor) -> Tensor:
    """Gradient of tokens, [n, heads, width], from that of their logits; `total` is also that of -|cx|^2 / 2."""
    through_w = torch.mm(d_logits.flatten(0, 1), made.w).view_as(scaled)
    return through_w.sub_(total * scaled).mul_(made.scale).transpose(0, 1)


class _Largest:
    """The gradient that the maxima of keys are owed, and where these stand."""

    def __init__(self, made: Features) -> None:
        self.made = made
        self.owed = made.w.new_zeros(1)
        self.found: list[Tensor] = []

    def look(self, logits: Tensor, top: Tensor, first: int) -> None:
        """Note where logits, [heads, n, n_features], reach the maximum; their first token is `first`."""
        # Few parts hold one, and a look through a part for its places takes longer than its product.
        if (logits.amax((1, 2), keepdim=True) >= top).any():
            place = (logits >= top).nonzero()
            place[:, 1] += first
            self.found.append(place)

    def give(self, d_k: Tensor, *, by_head: bool) -> None:
        """Take what is owed off the tokens with the largest logits, and forget both."""
        if self.found:
            head, token, feature = torch.cat(self.found).unbind(1)
            if by_head:
                share = self.owed[head] / torch.bincount(head)[head]
            else:
                share = (self.owed.sum() / len(head)).expand(len(head))
            taken = self.made.w[feature] * (share * self.made.scale)[:, None]
            d_k.index_put_((token, head), -taken.to(d_k.dtype), accumulate=True)
        self.owed = torch.zeros_like(self.owed)
        self.found = []
