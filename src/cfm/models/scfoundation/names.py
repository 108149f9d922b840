"""Official names of tensors, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "model."
IGNORED = frozenset({"decoder.performer.calls_since_last_redraw"})
"""A counter of training: in evaluation the random directions stay those of the file."""

FUSED = "self_attn.in_proj_"
THIRDS = ("query", "key", "value")

_PARTS = {
    "token_emb.mlp": "encoder.values.linear1",
    "token_emb.mlp2": "encoder.values.linear2",
    "token_emb.emb": "encoder.values.bins",
    "token_emb.emb_mask": "encoder.values.hidden",
    "token_emb.emb_pad": "encoder.values.padding",
    "pos_emb": "encoder.positions",
    "encoder.norm": "encoder.norm",
    "decoder_embed": "decoder.embed",
    "decoder.norm": "decoder.norm",
    "norm": "decoder.last_norm",
    "to_final": "decoder.to_value",
}
_LAYERS = {
    ("encoder.transformer_encoder", "encoder.layers"): {
        "self_attn.out_proj": "out",
        "linear1": "up",
        "linear2": "down",
        "norm1": "norm1",
        "norm2": "norm2",
    },
    ("decoder.performer.net.layers", "decoder.layers"): {
        "0.norm": "norm1",
        "0.fn.to_q": "query",
        "0.fn.to_k": "key",
        "0.fn.to_v": "value",
        "0.fn.to_out": "out",
        "1.norm": "norm2",
        "1.fn.fn.w1": "up",
        "1.fn.fn.w2": "down",
    },
}
_PROJECTION = ("0.fn.fast_attention.projection_matrix", "projection")
_LAYER = re.compile(r"(.+?)\.(\d+)\.(.+)")


def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names; queries, keys and values apart, as parts of the one tensor in which files have them.

    Unknown names stay as they are, for the error that lists them.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, found, kind = name.rpartition(FUSED)
        if found and tensor.ndim and len(tensor) % len(THIRDS) == 0:
            layer = our_name(f"{before}linear1.{kind}").removesuffix(f"up.{kind}")
            out |= {f"{layer}{part}.{kind}": third for part, third in zip(THIRDS, tensor.chunk(3), strict=True)}
        else:
            out[our_name(name)] = tensor
    return out


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as official files have them."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        theirs = official_name(name)
        if FUSED in theirs:
            out[theirs] = torch.cat([out[theirs], tensor]) if theirs in out else tensor
        else:
            out[theirs] = tensor
    return out


def our_name(official: str) -> str:
    """Our name of a tensor."""
    part, _, kind = official.rpartition(".")
    if part in _PARTS:
        return f"{_PARTS[part]}.{kind}"
    for (theirs, ours), parts in _LAYERS.items():
        if (found := _LAYER.fullmatch(official)) and found[1] == theirs:
            if found[3] == _PROJECTION[0]:
                return f"{ours}.{found[2]}.{_PROJECTION[1]}"
            part, _, kind = found[3].rpartition(".")
            if part in parts:
                return f"{ours}.{found[2]}.{parts[part]}.{kind}"
    return official


def official_name(ours: str) -> str:
    """The name of one of our tensors in official files, without `PREFIX`. Queries, keys and values have one in common."""
    part, _, kind = ours.rpartition(".")
    for theirs, mine in _PARTS.items():
        if part == mine:
            return f"{theirs}.{kind}"
    for (theirs, mine), parts in _LAYERS.items():
        if (found := _LAYER.fullmatch(ours)) and found[1] == mine:
            start = f"{theirs}.{found[2]}."
            if found[3] == _PROJECTION[1]:
                return start + _PROJECTION[0]
            part, _, kind = found[3].rpartition(".")
            if mine.startswith("encoder") and part in THIRDS:
                return f"{start}{FUSED}{kind}"
            if name := next((name for name, our in parts.items() if our == part), None):
                return f"{start}{name}.{kind}"
    return ours
