"""Everybody who can compute ragged attention, called as their makers mean it.

What can be made ahead of the layers is made ahead and not timed: tiles, masks, and for the padded ones the padded inputs.
That is generous to the padded ones.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from gpu_cases import WIDTH, Case
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cfm.kernels import backends, composite, ops
from cfm.kernels.plan import plan

SCALE = WIDTH**-0.5


class Ready(NamedTuple):
    """A call with its inputs: what gradients are taken of, the call, and how its result becomes [tokens, heads, width]."""

    leaves: list[Tensor]
    forward: Callable[[], Tensor]
    packed: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rival:
    """Somebody who can compute a case.

    Parameters
    ----------
    name
        What the table calls it.
    lacks
        What it lacks for a case on a device and dtype; None when nothing.
    ready
        Makes calls of a case and of some inputs for it.
    gradients
        Whether it has them.
    around
        What its calls happen in.
    needs
        Bytes, roughly, that it needs besides the packed inputs.
    """

    name: str
    lacks: Callable[[Case, torch.device, torch.dtype], str | None]
    ready: Callable[[Case, list[list[Tensor]]], list[Ready]]
    gradients: bool = True
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    needs: Callable[[Case], int] = lambda case: 0


def inputs(case: Case, device: torch.device, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Queries, keys and values as views of one product, normal numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    fused = torch.randn(case.tokens, 3, case.heads, WIDTH, generator=generator, device=device)
    return list(fused.to(dtype).unbind(1))


def error(case: Case, qkv: list[Tensor], out: Tensor, heads: int = 2) -> float:
    """Largest error in the first cell, against the formula in float64."""
    n, known = case.lengths[0], case.known
    q, k, v = (x.detach()[:n, :heads].double() for x in qkv)
    right, _ = composite.by_hand(q, k, v, [0, n], [0, n], known[:1] if known else None, SCALE)
    return float((out.detach()[:n, :heads].double() - right).abs().max())


def anybody(case: Case, device: torch.device, dtype: torch.dtype) -> None:
    """Nothing is missing."""


def _same(x: Tensor) -> Tensor:
    return x


# -- Ours ---------------------------------------------------------------------------------------------------------------


def _ours(backend: str, case: Case, sets: list[list[Tensor]]) -> list[Ready]:
    made = plan(case.offsets, None, case.known, case.tokens, case.tokens, sets[0][0].device, backend)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.varlen_attention(q, k, v, made.offsets, None, made.n_known, made.tiles, made.narrow, made.n_wide,
                                    SCALE, torch.is_grad_enabled(), backend)[0]  # fmt: skip

    return [Ready(qkv, partial(call, *qkv), _same) for qkv in sets]


def _ours_lacks(backend: str, case: Case, device: torch.device, dtype: torch.dtype) -> str | None:
    return backends.lacks(backend, backends.Call(device, dtype, WIDTH, case.share is not None))


# -- For packed cells ---------------------------------------------------------------------------------------------------


def _flash(module: str, case: Case, sets: list[list[Tensor]]) -> list[Ready]:
    attend = importlib.import_module(module).flash_attn_varlen_func
    starts = torch.tensor(case.offsets, dtype=torch.int32, device=sets[0][0].device)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, v, starts, starts, case.longest, case.longest, softmax_scale=SCALE)
        return out[0] if isinstance(out, tuple) else out  # the third version gave log-sum-exp too, in some releases

    return [Ready(qkv, partial(call, *qkv), _same) for qkv in sets]


def _flash_lacks(
    module: str, least: tuple[int, int], case: Case, device: torch.device, dtype: torch.dtype
) -> str | None:
    if device.type != "cuda":
        return "runs on a GPU"
    if case.share is not None:
        return "has no rule for unknown tokens"
    if importlib.util.find_spec(module) is None:
        return "is not installed"
    if torch.cuda.get_device_capability(device) < least:
        return f"needs compute capability {least[0]}.{least[1]}"
    return None


def _varlen(case: Case, sets: list[list[Tensor]]) -> list[Ready]:
    from torch.nn.attention.varlen import varlen_attn

    starts = torch.tensor(case.offsets, dtype=torch.int32, device=sets[0][0].device)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = varlen_attn(q, k, v, starts, starts, case.longest, case.longest, scale=SCALE)
        return out[0] if isinstance(out, tuple) else out

    return [Ready(qkv, partial(call, *qkv), _same) for qkv in sets]


def _flex(case: Case, sets: list[list[Tensor]]) -> list[Ready]:
    """FlexAttention over all tokens, with cells and scGPT's rule as a mask of blocks. Compiled on a GPU only."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device = sets[0][0].device
    lengths = torch.tensor(case.lengths, device=device)
    cell = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    within = torch.arange(case.tokens, device=device) - torch.tensor(case.offsets[:-1], device=device)[cell]
    known = torch.tensor(case.known or case.lengths, device=device)[cell]
    seen = within < known

    def rule(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (cell[i] == cell[j]) & (seen[j] | (i == j))

    def same_cell(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return cell[i] == cell[j]

    on_gpu = device.type == "cuda"
    mask = create_block_mask(
        same_cell if case.share is None else rule, None, None, case.tokens, case.tokens, device=device, _compile=on_gpu
    )
    if on_gpu:
        # Each shape and mask compiles anew, and after eight of them torch would go on without compiling.
        torch._dynamo.reset()
        # The same graph is gone back through again and again, so its buffers are not the first pass's to overwrite.
        functorch = importlib.import_module("torch._functorch.config")
        functorch.donated_buffer = False
    attend = torch.compile(flex_attention, dynamic=False) if on_gpu else flex_attention
    made = []
    for qkv in sets:
        q, k, v = (x.transpose(0, 1)[None].contiguous() for x in qkv)
        call = partial(attend, q, k, v, block_mask=mask, scale=SCALE)
        made.append(Ready([q, k, v], call, lambda out: out[0].transpose(0, 1)))
    return made


def _loop(case: Case, sets: list[list[Tensor]]) -> list[Ready]:
    """One call of torch a cell."""
    device, known, offsets = sets[0][0].device, case.known, case.offsets
    masks = [None if known is None else rule_mask(n, n, known[i], device) for i, n in enumerate(case.lengths)]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = []
        for a, b, mask in zip(offsets, offsets[1:], masks, strict=False):
            one_q, one_k, one_v = (x[a:b].transpose(0, 1)[None] for x in (q, k, v))
            out = F.scaled_dot_product_attention(one_q, one_k, one_v, attn_mask=mask, scale=SCALE)
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)

    return [Ready(qkv, partial(call, *qkv), _same) for qkv in sets]


# -- For padded cells ---------------------------------------------------------------------------------------------------


def rule_mask(length: int, padded: int, known: int, device: torch.device) -> Tensor:
    """Who sees whom in a cell padded to some length, bool[padded, padded]; pads see the known tokens and themselves."""
    places = torch.arange(padded, device=device)
    return (places[None] < min(known, length)) | (places[None] == places[:, None])


def square(case: Case, x: Tensor) -> Tensor:
    """[cells, heads, longest, width], filled up with zeros."""
    out = x.new_zeros(len(case.lengths), x.shape[1], case.longest, x.shape[2])
    for i, (a, b) in enumerate(zip(case.offsets, case.offsets[1:], strict=False)):
        out[i, :, : b - a] = x[a:b].transpose(0, 1)
    return out


def pack(case: Case, x: Tensor) -> Tensor:
    """Undo `square`."""
    return torch.cat([x[i, :, :n].transpose(0, 1) for i, n in enumerate(case.lengths)])


def padded_mask(case: Case, device: torch.device) -> Tensor | None:
    """bool[cells, 1, longest or 1, longest]; None where nothing is padded."""
    if case.same:
        return None
    if case.known is None:
        places = torch.arange(case.longest, device=device)
        return (places[None] < torch.tensor(case.lengths, device=device)[:, None])[:, None, None]
    masks = [rule_mask(n, case.longest, k, device) for n, k in zip(case.lengths, case.known, strict=True)]
    return torch.stack(masks)[:, None]


def matrices(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Attention as models give it away, [cells, heads, longest, longest]: scores, then a softmax in float32."""
    scores = q @ k.transpose(-1, -2) * SCALE
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=composite.lse_dtype(scores)).to(q.dtype)


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The formula written out."""
    return matrices(q, k, mask) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE)


def _padded(attend: Callable[..., Tensor], case: Case, sets: list[list[Tensor]]) -> list[Ready]:
    mask = padded_mask(case, sets[0][0].device)
    made = []
    for qkv in sets:
        leaves = [square(case, x) for x in qkv]
        made.append(Ready(leaves, partial(attend, *leaves, mask), partial(pack, case)))
    return made


def _forced_lacks(masks: bool, case: Case, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return "runs on a GPU"
    return None if masks or case.same else "takes no mask, and these cells need one"


def _padded_bytes(case: Case) -> int:
    tokens = len(case.lengths) * case.longest
    masks = 0 if case.share is None else 3 * tokens * case.longest  # as bool, and once more as numbers
    return 16 * tokens * case.heads * WIDTH + masks


def _eager_bytes(case: Case) -> int:
    # Scores, what is masked of them, softmax in float32, weights; the gradients need as much once more.
    return 16 * len(case.lengths) * case.heads * case.longest**2


def _only(backend: SDPBackend) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    return lambda: sdpa_kernel([backend])


RIVALS = (
    Rival("cfm cuda", partial(_ours_lacks, "cuda"), partial(_ours, "cuda")),
    Rival("cfm triton", partial(_ours_lacks, "triton"), partial(_ours, "triton"), gradients=False),
    Rival("flash_attn 2", partial(_flash_lacks, "flash_attn", (8, 0)), partial(_flash, "flash_attn")),
    Rival("flash_attn 3", partial(_flash_lacks, "flash_attn_interface", (9, 0)), partial(_flash, "flash_attn_interface")),
    Rival("torch varlen", partial(_ours_lacks, "varlen"), _varlen),
    Rival("FlexAttention", lambda case, *_: None if case.flex else "not in this case, see gpu_cases.py", _flex),
    Rival("padded SDPA", anybody, partial(_padded, _sdpa), needs=_padded_bytes),
    Rival("padded SDPA, flash", partial(_forced_lacks, False), partial(_padded, _sdpa),
          around=_only(SDPBackend.FLASH_ATTENTION), needs=_padded_bytes),
    Rival("padded SDPA, cuDNN", partial(_forced_lacks, True), partial(_padded, _sdpa),
          around=_only(SDPBackend.CUDNN_ATTENTION), needs=_padded_bytes),
    Rival("padded eager", anybody, partial(_padded, eager), needs=_eager_bytes),
    Rival("SDPA cell by cell", anybody, _loop),
)  # fmt: skip
