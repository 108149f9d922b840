"""Batch norms of the input, in fine-tuned models: one for all cells, or one for each batch of cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = 6.1e-5
"""Added to the variance: the smallest number that half precision holds in full."""

_MOMENTUM = 0.1
"""Torch's own, of running numbers."""


class InputNorm(nn.BatchNorm1d):
    """A batch norm over all tokens; checkpoints of the first release have one."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=EPS)


class DomainNorm(nn.Module):
    """A batch norm for each batch of cells, over the tokens of its cells (DSBN; Chang et al. 2019).

    In evaluation each cell goes by the statistics of its own batch. The official code takes those of the first cell of
    a mini-batch for all, so that there a vector depends on its neighbours.

    Parameters
    ----------
    dim
        Length of a token vector.
    n_domains
        Number of batches.
    affine
        Whether scale and shift are learnt; no official setting gives such a model.
    """

    def __init__(self, dim: int, n_domains: int, *, affine: bool = False) -> None:
        super().__init__()
        self.bns = nn.ModuleList(nn.BatchNorm1d(dim, eps=EPS, affine=affine) for _ in range(n_domains))

    def begin_with_the_first(self) -> None:
        """Let the next mini-batch of a batch that was not seen yet set its running numbers.

        They are made as 0 and 1, of which a batch with few mini-batches would keep much. It is the training loop's to
        ask for this before each step; by themselves the norms do as the official ones.
        """
        for bn in self.bns:
            assert isinstance(bn, nn.BatchNorm1d)
            bn.momentum = _MOMENTUM if bn.num_batches_tracked else 1.0

    def forward(self, x: Tensor, domains: Tensor) -> Tensor:
        """The tokens float[n_tokens, dim] normed; `domains` is int64[n_tokens]."""
        if self.training:
            out = torch.empty_like(x)
            for domain in domains.unique().tolist():
                its_own = domains == domain
                out[its_own] = self.bns[domain](x[its_own])
            return out
        mean, variance, scale, shift = (table[domains] for table in self._tables(x))
        return (x - mean) * torch.rsqrt(variance + EPS) * scale + shift

    def _tables(self, x: Tensor) -> list[Tensor]:
        """Mean, variance, scale and shift of all batches, float[n_domains, dim] each."""
        ones, zeros = x.new_ones(x.shape[1]), x.new_zeros(x.shape[1])
        rows = [
            (bn.running_mean, bn.running_var, *((bn.weight, bn.bias) if bn.affine else (ones, zeros)))
            for bn in self.bns
        ]
        return [torch.stack(column) for column in zip(*rows, strict=True)]


def normed(norm: nn.Module | None, x: Tensor, domains: Tensor | None) -> Tensor:
    """Tokens after the norm of a model, if it has one."""
    if norm is None:
        return x
    if isinstance(norm, DomainNorm):
        if domains is None:
            raise ValueError("this network has a norm for each batch of cells: the batches have to be given")
        return norm(x, domains)
    out: Tensor = norm(x)
    return out
