"""The operators ``torch.ops.cfm.*``: ragged attention, its sum over genes, and Performer attention.

They are seen by autograd and by ``torch.compile``. None waits for the GPU: what the host has to know comes as a number.
Lists of places are tensors on the device where a kernel reads them, and on the CPU where torch goes cell by cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from cfm._core.errors import OptionError
from cfm._core.settings import settings

from . import backends, composite, gene_sums, performer
from .checks import check_projection, check_tables, check_tokens, host_lists

HOST = ("sdpa", "eager")
"""Backends that read offsets on the host."""

DEVICE = ("cuda", "triton")
"""Backends that read offsets on the device."""


def _operator[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Make an operator of torch of a function that changes none of its arguments.

    ``torch.library.custom_op`` would import torch's compiler at the first call, which takes longer than most calls.
    """
    name = f"cfm::{function.__name__}"
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(name, "default", function)
    return cast(Callable[P, R], getattr(torch.ops.cfm, function.__name__).default)


@_operator
def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    q_offsets: Tensor | None,
    n_known: Tensor | None,
    tiles: Tensor | None,
    narrow: Tensor | None,
    n_wide: int,
    scale: float,
    with_lse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Softmax attention within each cell.

    Parameters
    ----------
    q, k, v
        [n_tokens, heads, width], one dtype; the numbers of a head stand beside each other in memory.
    offsets
        int32 or int64[n_cells + 1]: cell i has the keys from ``offsets[i]`` to ``offsets[i + 1]``.
    q_offsets
        The same for queries, where only some tokens ask; None takes `offsets`.
    n_known
        Of each cell, how many tokens are known, which stand first: every token sees these and itself. None: all are.
    tiles
        int32[2, n], cells and rows of `cfm.kernels.ragged.row_tiles`, for backends on a GPU.
    narrow
        The same where all tiles are narrow: gradients take these.
    n_wide
        How many of `tiles` are wide.
    scale
        What q.k is multiplied with.
    with_lse
        Whether to give the logarithm of the sum of exponentials of every query.
    backend
        Who computes it: ``"cuda"``, ``"triton"``, ``"sdpa"`` or ``"eager"``.

    Returns
    -------
    The result, of the shape of `q`, and float32[heads, n_queries]; [heads, 0] where it was not asked for.
    """
    check_tokens(q, k, v)
    lists = (offsets, q_offsets, n_known)
    if backend in DEVICE:
        if (
            tiles is None
            or narrow is None
            or any(x is not None and x.device != q.device for x in (*lists, tiles, narrow))
        ):
            raise OptionError(
                f"backend={backend!r} needs tiles, and they and the offsets have to be on {str(q.device)!r}."
            )
        return _on_device(q, k, v, offsets, q_offsets, n_known, tiles, narrow, n_wide, scale, with_lse, backend)
    starts, q_starts, known = host_lists(q, k, offsets, q_offsets, n_known)
    if backend == "eager":
        out, lse = composite.by_hand(q, k, v, starts, q_starts, known, scale)
        return out, lse if with_lse else _no_lse(q)
    if backend != "sdpa":
        raise OptionError(f"backend={backend!r}: there are {', '.join(map(repr, (*DEVICE, *HOST)))}.")
    if with_lse:
        return composite.with_lse(q, k, v, starts, q_starts, known, scale)
    out = composite.by_sdpa(q, k, v, starts, q_starts, known, scale)
    return out.contiguous(), _no_lse(q)


def _on_device(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    q_offsets: Tensor | None,
    n_known: Tensor | None,
    tiles: Tensor,
    narrow: Tensor,
    n_wide: int,
    scale: float,
    with_lse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((q.shape[1], len(q)), dtype=torch.float32)
    if tiles.shape[1] and q.numel():
        if backend == "triton":
            from . import twin

            twin.forward(q, k, v, out, lse, offsets, q_offsets, n_known, narrow, scale)
        else:
            from . import launch

            launch.forward(q, k, v, out, lse, offsets, n_known, tiles, n_wide, scale)
    return out, lse if with_lse else _no_lse(q)


@torch.library.register_fake("cfm::varlen_attention")
def _(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, q_offsets: Tensor | None, n_known: Tensor | None,
    tiles: Tensor | None, narrow: Tensor | None, n_wide: int, scale: float, with_lse: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_tokens(q, k, v)
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=composite.lse_dtype(q)) if with_lse else _no_lse(q)
    return torch.empty_like(q, memory_format=torch.contiguous_format), lse


@_operator
def varlen_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    q_offsets: Tensor | None,
    n_known: Tensor | None,
    narrow: Tensor | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, from what `varlen_attention` gave with ``with_lse=True``."""
    if backend == "cuda" and narrow is not None:
        from . import launch

        return launch.backward(grad, q, k, v, out, lse, offsets, n_known, narrow, scale)
    if backend not in HOST:
        raise OptionError(f"backend={backend!r} has no gradients: take 'cuda' or 'sdpa'.")
    starts, q_starts, known = host_lists(q, k, offsets, q_offsets, n_known)
    return composite.backward(grad, q, k, v, out, lse, starts, q_starts, known, scale)


@torch.library.register_fake("cfm::varlen_attention_backward")
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor,
    q_offsets: Tensor | None, n_known: Tensor | None, narrow: Tensor | None, scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _like_tokens(q, k, v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, offsets, q_offsets, n_known, tiles, narrow, n_wide, scale, with_lse, backend = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, offsets, q_offsets, n_known, tiles, narrow)
    ctx.rest = n_wide, scale, with_lse, backend


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, offsets, q_offsets, n_known, tiles, narrow = ctx.saved_tensors
    n_wide, scale, with_lse, backend = ctx.rest
    if not with_lse:
        out, lse = varlen_attention(q, k, v, offsets, q_offsets, n_known, tiles, narrow, n_wide, scale, True, backend)
    found = varlen_attention_backward(
        grad.contiguous(), q, k, v, out, lse, offsets, q_offsets, n_known, narrow, scale, backend
    )
    return (*found, *[None] * 9)


torch.library.register_autograd("cfm::varlen_attention", _gradients, setup_context=_keep)


@torch.library.custom_op("cfm::gene_attention_sum", mutates_args=("sums", "counts", "bad"))
def gene_attention_sum(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    offsets: Tensor,
    n_known: Tensor | None,
    narrow: Tensor | None,
    genes: Tensor,
    scale: float,
    sums: Tensor,
    counts: Tensor,
    bad: Tensor,
    backend: str,
) -> None:
    """Add the attention of all cells, its mean over heads, to a table of genes by genes. Nothing else is written.

    Parameters
    ----------
    q, k
        [n_tokens, heads, width].
    lse
        float32[heads, n_tokens], as `varlen_attention` gives it.
    offsets, n_known, narrow
        As there.
    genes
        int32[n_tokens], the row of each token in the tables; below 0 leaves it out.
    scale
        As there.
    sums
        int64[n_genes, n_genes], row: who asks; column: who is seen. In units of 2^-40, so that the sum does not depend
        on the order and has the same bits in every run.
    counts
        int32[n_genes, n_genes], in how many cells the one gene sees the other.
    bad
        int64[1], how many weights were no numbers; they are not in the sums.
    backend
        ``"cuda"``, or ``"sdpa"`` for torch's operations.
    """
    check_tokens(q, k, k)
    check_tables(q, lse, genes, sums, counts, bad)
    if backend == "cuda":
        from . import launch

        if narrow is None or offsets.device != q.device:
            raise OptionError(f"backend='cuda' needs tiles, and they and the offsets have to be on {str(q.device)!r}.")
        launch.gene_sums(q, k, lse, offsets, n_known, narrow, genes, scale, sums, counts, bad)
        return
    starts, _, known = host_lists(q, k, offsets, None, n_known)
    gene_sums.add(q, k, lse, starts, known, genes, scale, sums, counts, bad)


@gene_attention_sum.register_fake
def _(
    q: Tensor, k: Tensor, lse: Tensor, offsets: Tensor, n_known: Tensor | None, narrow: Tensor | None, genes: Tensor,
    scale: float, sums: Tensor, counts: Tensor, bad: Tensor, backend: str,
) -> None:  # fmt: skip
    check_tokens(q, k, k)


@_operator
def performer_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, projection: Tensor, scope: str, eps: float
) -> Tensor:
    """Attention with random features in the place of the softmax (FAVOR+): time and memory grow with the tokens.

    Parameters
    ----------
    q, k, v
        [n_tokens, heads, width].
    offsets
        As in `varlen_attention`, on the CPU whatever computes it: `cfm.settings.attention` chooses, here.
    projection
        float32[n_features, width], the random directions; they belong to a checkpoint.
    scope
        Over what the largest key feature is taken: ``"head"``, each cell and head by itself; ``"cell"``, each cell by
        itself, over all its heads, which is what the published code gives for one cell at a time; ``"batch"``, over all
        there is, as the published code does. It matters, since `eps` is added after the exponential.
    eps
        Added to every feature.

    Returns
    -------
    Of the shape and dtype of `q`; sums are in float32 or better.
    """
    check_tokens(q, k, v)
    check_projection(q, projection, scope)
    starts, _, _ = host_lists(q, k, offsets, None, None)

    def by(backend: str) -> Tensor:
        if backend == "cuda":
            from . import launch_performer

            return launch_performer.attend(q, k, v, starts, projection, scope, eps)
        return performer.attend(q, k, v, starts, projection, scope, eps)

    call = backends.Call(q.device, q.dtype, q.shape[2], features=True)
    return backends.run(call, settings.attention, by)


@torch.library.register_fake("cfm::performer_attention")
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, projection: Tensor, scope: str, eps: float) -> Tensor:
    check_tokens(q, k, v)
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@_operator
def performer_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    offsets: Tensor,
    projection: Tensor,
    scope: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, from what `performer_attention` gave: torch's operations on every device.

    They go through the maxima too, as those of the published code do. On a GPU this waits for it, to find the maxima.
    """
    starts, _, _ = host_lists(q, k, offsets, None, None)
    return performer.backward(grad, q, k, v, out, starts, projection, scope, eps)


@torch.library.register_fake("cfm::performer_attention_backward")
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    offsets: Tensor,
    projection: Tensor,
    scope: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _like_tokens(q, k, v)


def _keep_performer(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, offsets, projection, scope, eps = inputs
    if projection.requires_grad:
        raise OptionError(
            "projection has no gradient: the random directions are not trained. Type projection.detach()."
        )
    ctx.save_for_backward(q, k, v, output, offsets, projection)
    ctx.rest = scope, eps


def _performer_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, offsets, projection = ctx.saved_tensors
    found = performer_attention_backward(grad.contiguous(), q, k, v, out, offsets, projection, *ctx.rest)
    return (*found, *[None] * 4)


torch.library.register_autograd("cfm::performer_attention", _performer_gradients, setup_context=_keep_performer)


def _like_tokens(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d_q, d_k, d_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return d_q, d_k, d_v


def _no_lse(q: Tensor) -> Tensor:
    return q.new_empty((q.shape[1], 0), dtype=composite.lse_dtype(q))
