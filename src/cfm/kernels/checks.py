"""Refusing tokens, places and tables that a kernel would read wrongly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cfm._core.errors import OptionError

from .performer import SCOPES
from .ragged import checked_known, checked_offsets


def check_tokens(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse tokens that a kernel would read wrongly: their shapes, dtypes, devices and strides. Reads no numbers."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3:
            raise OptionError(f"{name} has shape {tuple(x.shape)}; [n_tokens, heads, width] is needed.")
        if x.dtype != q.dtype or not x.is_floating_point():
            raise OptionError(f"q, k and v need one dtype of floating point; {name} is {x.dtype}, q is {q.dtype}.")
        if x.device != q.device:
            raise OptionError(f"q, k and v need one device; {name} is on {str(x.device)!r}, q on {str(q.device)!r}.")
        if x.shape[1:] != q.shape[1:]:
            raise OptionError(
                f"q, k and v need the same heads and width; {name} has shape {tuple(x.shape)}, q {tuple(q.shape)}."
            )
        if x.shape[2] > 1 and x.stride(2) != 1:
            raise OptionError(
                f"The numbers of a head have to stand beside each other: {name} has strides {tuple(x.stride())}. "
                f"Type {name}.contiguous()."
            )
    if k.shape[0] != v.shape[0]:
        raise OptionError(f"k and v need as many tokens; they have {k.shape[0]} and {v.shape[0]}.")


def host_lists(
    q: Tensor, k: Tensor, offsets: Tensor, q_offsets: Tensor | None, n_known: Tensor | None
) -> tuple[list[int], list[int], list[int] | None]:
    """Offsets of keys, of queries, and known tokens as lists, checked."""
    for name, x in (("offsets", offsets), ("q_offsets", q_offsets), ("n_known", n_known)):
        if x is not None and x.device.type != "cpu":
            raise OptionError(
                f"{name} is on {str(x.device)!r}; this backend goes cell by cell and needs it on the CPU."
            )
        if x is not None and x.dtype not in (torch.int32, torch.int64):
            raise OptionError(f"{name} is {x.dtype}; int32 or int64 is needed.")
    starts = checked_offsets(offsets.numpy(), len(k))
    known = None if n_known is None else checked_known(n_known.numpy(), starts).tolist()
    if q_offsets is None:
        if len(q) != len(k):
            raise OptionError(f"There are {len(q):,} queries and {len(k):,} keys: q_offsets has to say who asks where.")
        return starts.tolist(), starts.tolist(), known
    if known is not None:
        raise OptionError("q_offsets and n_known do not go together: with unknown tokens, all tokens ask.")
    asking = checked_offsets(q_offsets.numpy(), len(q), "q_offsets")
    check_asking(starts, asking)
    return starts.tolist(), asking.tolist(), known


def check_asking(starts: Any, asking: Any) -> None:
    """Refuse queries in cells without keys, and offsets of another number of cells."""
    if len(asking) != len(starts):
        raise OptionError(f"q_offsets are for {len(asking) - 1:,} cells, offsets for {len(starts) - 1:,}.")
    empty = (asking[1:] > asking[:-1]) & (starts[1:] == starts[:-1])
    if empty.any():
        raise OptionError(f"Cell {int(empty.argmax())} has queries and no keys.")


def check_tables(q: Tensor, lse: Tensor, genes: Tensor, sums: Tensor, counts: Tensor, bad: Tensor) -> None:
    """Refuse what `gene_attention_sum` cannot add to."""
    if lse.shape != (q.shape[1], q.shape[0]):
        raise OptionError(f"lse has shape {tuple(lse.shape)}; {(q.shape[1], q.shape[0])} is needed: ask for with_lse.")
    if genes.shape != q.shape[:1] or genes.dtype != torch.int32:
        raise OptionError(f"genes is {genes.dtype} of shape {tuple(genes.shape)}; int32[{len(q)}] is needed.")
    if bad.shape != (1,) or bad.dtype != torch.int64:
        raise OptionError(f"bad is {bad.dtype} of shape {tuple(bad.shape)}; int64[1] is needed.")
    for name, table, dtype in (("sums", sums, torch.int64), ("counts", counts, torch.int32)):
        if table.dtype != dtype or table.ndim != 2 or table.shape[0] != table.shape[1]:
            raise OptionError(
                f"{name} is {table.dtype} of shape {tuple(table.shape)}; {dtype} of n_genes x n_genes is needed."
            )
        if not table.is_contiguous() or table.shape != sums.shape:
            raise OptionError("sums and counts have to be contiguous and of one shape.")
    # On a GPU a look at the numbers would wait for it; torch itself stops there at a place that is none.
    if genes.device.type == "cpu" and len(genes) and int(genes.max()) >= len(sums):
        raise OptionError(f"genes go up to {int(genes.max()):,}, and sums has {len(sums):,} rows.")


def check_projection(q: Tensor, projection: Tensor, scope: str) -> None:
    """Refuse a projection of another width, and an unknown scope."""
    if scope not in SCOPES:
        raise OptionError(f"scope={scope!r}: type {', '.join(map(repr, SCOPES[:-1]))} or 'batch'.")
    if projection.ndim != 2 or projection.shape[1] != q.shape[2] or not len(projection):
        raise OptionError(
            f"projection has shape {tuple(projection.shape)}; [n_features, {q.shape[2]}] is needed, the width of a head."
        )
