"""How much attention each token of a cell gets in a Performer, in time and memory that grow with the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from cfm.kernels import performer

from .attention import FEATURE_EPS, Scope


def attention_received(
    q: Tensor, k: Tensor, offsets: list[int], projection: Tensor, *, scope: Scope = "cell"
) -> Tensor:
    """What `cfm.nn.attention.performer_attention` weighs each token with, on average over the queries of its cell.

    With the features q' and k', the mean over i of w_ij = q'_i . k'_j / (q'_i . sum_j k'_j) is k'_j times the mean of q'_i
    over that product: no table of tokens times tokens is made.

    Parameters
    ----------
    q, k, offsets, projection, scope
        As there.

    Returns
    -------
    float32[n_tokens, heads]: sums to 1 over the tokens of a cell.
    """
    made = performer.features_of(q, projection)
    top = performer.top_of_all(made, k, offsets) if scope == "batch" else None
    received = k.new_zeros(k.shape[:2], dtype=torch.float32)
    for start, stop in zip(offsets, offsets[1:], strict=False):
        if stop == start:
            continue
        cell = slice(start, stop)
        sums = performer.sums_of_keys(made, k, k[..., :0], cell)  # of features alone
        its_top = performer.top_of(sums, scope, top)
        total = sums.of_features(its_top, FEATURE_EPS)
        mean = torch.zeros_like(total)
        for part in made.parts(cell):
            asking = features(made, q[part], None)
            mean += asking.mT @ torch.bmm(asking, total).reciprocal_()
        mean /= stop - start
        for part in made.parts(cell):
            received[part] = torch.bmm(features(made, k[part], its_top), mean)[..., 0].T
    return received


def features(made: performer.Features, x: Tensor, top: Tensor | None) -> Tensor:
    """Features of some tokens, [heads, n, n_features]; None takes the largest logit of each token."""
    scaled, logits = made.logits(x)
    largest = logits.amax(-1, keepdim=True) if top is None else top
    return logits.sub_(performer.half_square(scaled) + largest).exp_().add_(FEATURE_EPS)
