"""From a file of scBERT's weights to a network, strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cfm._core.errors import CheckpointError
from cfm._core.logging import logger
from cfm.models.weights import LoadReport, check_family, fill

from . import files
from .module import Layout, ScbertNetwork

_ADVICE = "Take panglao_pretrain.pth from its official source, or the file that the official finetune.py wrote."
_POSITIONS, _REDRAWS = "pos_emb.emb.weight", "performer.calls_since_last_redraw"
_TOKENS = "token_emb.weight"

_IN_LAYER = (
    ("0.norm.", "norm1."),
    ("0.fn.fast_attention.projection_matrix", "projection"),
    ("0.fn.to_q.", "query."),
    ("0.fn.to_k.", "key."),
    ("0.fn.to_v.", "value."),
    ("0.fn.to_out.", "out."),
    ("1.norm.", "norm2."),
    ("1.fn.fn.w1.", "up."),
    ("1.fn.fn.w2.", "down."),
)
_OUTSIDE = (("token_emb.", "tokens."), ("to_out.conv1.", "head.score."), ("to_out.", "head."))
_LAYER = re.compile(r"^(performer\.net\.layers|layers)\.(\d+)\.")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Parameters
    ----------
    network
        With its weights, in evaluation.
    report
        How the tensors went into it.
    """

    network: ScbertNetwork
    report: LoadReport


def read(path: Path, n_genes: int | None = None) -> Checkpoint:
    """Read the weights of a file; parameters and errors as in `read_named` and `network_of`."""
    return network_of(read_named(path), n_genes, path)


def read_named(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by their official names, if they are scBERT's.

    Raises
    ------
    CheckpointError
        Damaged, hostile, or of another family.
    """
    found = files.read_state(path)
    check_family(path, found, "scbert")
    if _TOKENS not in found or found[_TOKENS].ndim != 2:
        raise CheckpointError(f"{path} is no scBERT checkpoint: it has no {_TOKENS}. It holds {sorted(found)[:6]}.")
    return found


def network_of(found: Mapping[str, Tensor], n_genes: int | None, path: Path) -> Checkpoint:
    """The network that tensors with official names belong to, with them in it.

    Parameters
    ----------
    found
        The tensors; each has to be expected, present, and of its shape.
    n_genes
        Length of the gene list, for networks whose tensors do not tell the number of positions.
    path
        The file, for messages.

    Raises
    ------
    CheckpointError
        Tensors that do not fit.
    """
    tensors, ignored = _ours(found)
    positions = tensors.pop("positions", None)
    n_positions = n_positions_of(found) or (None if n_genes is None else n_genes + 1)
    if n_positions is None:
        raise CheckpointError(f"{path} has no {_POSITIONS}, and no gene list tells the number of positions. {_ADVICE}")
    layout = layout_of(tensors, n_positions, path)
    with torch.device("meta"):
        network = ScbertNetwork(layout)
    fill(network, tensors, where=path, advice=_ADVICE, called=official_name)
    if positions is not None:
        network.positions = _checked(positions, layout, path)
    report = LoadReport(tuple(sorted(name for name in found if name not in ignored)), ignored)
    logger.debug("%s: %s", path, report)
    return Checkpoint(network.eval().requires_grad_(False), report)


def n_positions_of(found: Mapping[str, Tensor]) -> int | None:
    """Positions of a network, by tensors with their official names; None where they do not tell."""
    if _POSITIONS in found:
        return found[_POSITIONS].shape[0] if found[_POSITIONS].ndim else 0
    fc1 = found.get("to_out.fc1.weight")
    return fc1.shape[1] if fc1 is not None and fc1.ndim == 2 else None


def _checked(positions: Tensor, layout: Layout, path: Path) -> Tensor:
    """The vectors of positions in float64, in which they are added."""
    if tuple(positions.shape) != (layout.n_positions, layout.dim) or not positions.is_floating_point():
        raise CheckpointError(
            f"{path}: {_POSITIONS} is {tuple(positions.shape)} of {positions.dtype}, not "
            f"{(layout.n_positions, layout.dim)} of numbers. {_ADVICE}"
        )
    return positions.double()


def official_name(name: str) -> str:
    """The name in official files of a tensor of our network.

    Examples
    --------
    >>> official_name("layers.3.query.weight")
    'performer.net.layers.3.0.fn.to_q.weight'
    """
    if name == "positions":
        return _POSITIONS
    if found := _LAYER.match(name):
        inside = name[found.end() :]
        for theirs, ours in _IN_LAYER:
            if inside.startswith(ours):
                return f"performer.net.layers.{found[2]}.{theirs}{inside.removeprefix(ours)}"
    for theirs, ours in _OUTSIDE:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def our_name(name: str) -> str:
    """The name in our network of a tensor of an official file.

    Examples
    --------
    >>> our_name("performer.net.layers.3.0.fn.to_q.weight")
    'layers.3.query.weight'
    """
    if name == _POSITIONS:
        return "positions"
    if found := _LAYER.match(name):
        inside = name[found.end() :]
        for theirs, ours in _IN_LAYER:
            if inside.startswith(theirs):
                return f"layers.{found[2]}.{ours}{inside.removeprefix(theirs)}"
    for theirs, ours in _OUTSIDE:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def layout_of(tensors: Mapping[str, Tensor], n_positions: int, path: Path) -> Layout:
    """The sizes that tensors (by our names) tell. What is missing is left for loading to name."""

    def shape(name: str, default: tuple[int, int]) -> tuple[int, int]:
        found = tensors[name].shape if name in tensors else ()
        return (found[0], found[1]) if len(found) == 2 else default

    n_tokens, dim = shape("tokens.weight", (1, 1))
    n_features, width = shape("layers.0.projection", (1, dim))
    inner, _ = shape("layers.0.query.weight", (width, dim))
    if not width or inner % width:
        raise CheckpointError(
            f"{path}: heads of {width} numbers (the columns of {official_name('layers.0.projection')}) do not divide the "
            f"{inner} rows of {official_name('layers.0.query.weight')}. {_ADVICE}"
        )
    layers = [int(found[2]) for name in tensors if (found := _LAYER.match(name))]
    return Layout(
        n_positions=n_positions,
        n_tokens=n_tokens,
        dim=dim,
        heads=inner // width,
        width=width,
        hidden=shape("layers.0.up.weight", (4 * dim, dim))[0],
        layers=max(layers, default=0) + 1,
        n_features=n_features,
        classes=_classes(tensors),
    )


def _classes(tensors: Mapping[str, Tensor]) -> tuple[int, int, int] | None:
    """Sizes of the classifier, where any of its tensors is there."""
    if not any(name.startswith(("head.score.", "head.fc")) for name in tensors):
        return None
    sizes = [tensors[f"head.fc{i}.bias"].shape[0] if f"head.fc{i}.bias" in tensors else 1 for i in (1, 2, 3)]
    return sizes[0], sizes[1], sizes[2]


def _ours(found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors by our names, and names of those that are not needed."""
    tensors = {our_name(name): tensor for name, tensor in found.items() if name != _REDRAWS}
    if (kernel := tensors.get("head.score.weight")) is not None and kernel.ndim == 4:
        # A convolution whose kernel is as wide as a vector is a dot product.
        tensors["head.score.weight"] = kernel.flatten(1)
    return tensors, tuple(name for name in found if name == _REDRAWS)
