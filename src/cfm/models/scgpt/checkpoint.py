"""From a scGPT folder to a network with its weights, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from cfm._core.errors import CheckpointError, OptionError
from cfm._core.logging import logger
from cfm.models.weights import LoadReport, check_family, fill, read_tensors
from cfm.nn.encoder import NormOrder

from . import files
from .layout import FUSED, THIRDS, CellStyle, Layout, ValueStyle, layout_of, official_name, our_name
from .module import ScgptNetwork
from .options import is_whole

_GENES = "encoder.embedding.weight"
_ADVICE = "The files of one folder belong together: copy all of them from one source."


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    Parameters
    ----------
    network
        With its weights, in evaluation.
    tokens
        The vocabulary in the order of ids.
    modalities
        The same for modalities; empty for most models.
    args
        Settings of the training run; empty where the folder has none.
    report
        How the tensors went into the network.
    weights
        The file they came from.
    """

    network: ScgptNetwork
    tokens: list[str]
    modalities: list[str]
    args: dict[str, Any]
    report: LoadReport
    weights: Path

    @property
    def pad(self) -> str:
        """The padding token."""
        return pad_token(self.args)


def pad_token(args: Mapping[str, Any]) -> str:
    """The padding token, by the settings of the training run."""
    return str(args.get("pad_token", "<pad>"))


def read(folder: Path, heads: int | None = None) -> Checkpoint:
    """Read a folder.

    Parameters
    ----------
    folder
        With the files of an official checkpoint.
    heads
        Number of attention heads; None takes it from args.json.

    Raises
    ------
    CheckpointError
        A file is missing, damaged, hostile, of another family, or does not go with the others.
    OptionError
        So many heads do not divide the vectors.
    """
    path = files.weights_of(folder)
    args = files.read_args(folder)
    tokens = files.read_vocabulary(folder, pad_token(args))
    found = read_tensors(path)
    check_family(path, found, "scgpt")
    tensors, names = _renamed(found, path)
    layout = _layout(tensors, args, heads, path)
    _check_sizes(layout, args, tokens, path)
    modalities = files.read_modalities(folder) if layout.n_modalities else []
    if len(modalities) != layout.n_modalities:
        msg = f"{folder / files.MODALITIES} has {len(modalities)} modalities, {path.name} has {layout.n_modalities}."
        raise CheckpointError(f"{msg} {_ADVICE}")
    network = network_of(layout, tensors, where=path)
    report = LoadReport(tuple(sorted(names)))
    logger.debug("%s: %s", path, report)
    return Checkpoint(network, tokens, modalities, args, report, path)


def network_of(layout: Layout, tensors: Mapping[str, Tensor], *, where: Path) -> ScgptNetwork:
    """A network with weights, in evaluation; `tensors` by our names, each expected and present."""
    with torch.device("meta"):
        network = ScgptNetwork(layout)
    if lacking := [name for name in _attention(layout) if name not in tensors]:
        msg = (
            f"{where} lacks the attention weights {', '.join(map(official_name, lacking[:4]))}"
            f"{f' and {len(lacking) - 4} more' if len(lacking) > 4 else ''} (or in_proj_*, or _impl.* for them). "
            "Official loaders leave such weights at random without a word; every vector would be nonsense. Get the "
            "file from its official source."
        )
        raise CheckpointError(msg)
    fill(network, _split(tensors), where=where, advice=_ADVICE, called=official_name)
    return network.eval().requires_grad_(False)


def official_tensors(network: ScgptNetwork) -> dict[str, Tensor]:
    """The tensors of a network as official files have them: by their names, and queries, keys and values in one."""
    tensors = network.state_dict()
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, _, kind = name.rpartition(".")
        layer, _, part = before.rpartition(".")
        if not layer.startswith("layers.") or part not in THIRDS:
            out[official_name(name)] = tensor
        elif part == THIRDS[0]:
            thirds = [tensors[f"{layer}.{third}.{kind}"] for third in THIRDS]
            out[official_name(f"{layer}.{FUSED}.{kind}")] = torch.cat(thirds)
    return out


def _split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values apart, as parts of the one tensor in which files have them."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, _, kind = name.rpartition(f"{FUSED}.")
        if before and tensor.ndim and len(tensor) % 3 == 0:
            out |= {f"{before}{part}.{kind}": third for part, third in zip(THIRDS, tensor.chunk(3), strict=True)}
        else:
            out[name] = tensor
    return out


def _renamed(found: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by our names, and the names in the file."""
    tensors: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    for name, tensor in found.items():
        ours = our_name(name)
        if ours in tensors:
            raise CheckpointError(f"{path} holds one tensor under two names: {first[ours]} and {name}. {_ADVICE}")
        tensors[ours], first[ours] = tensor, name
    if _GENES not in tensors or tensors[_GENES].ndim != 2:
        some = ", ".join(sorted(found)[:6])
        raise CheckpointError(f"{path} is no scGPT checkpoint: it has no {_GENES}. It holds {some}.")
    return tensors, list(found)


def _layout(tensors: Mapping[str, Tensor], args: Mapping[str, Any], heads: int | None, path: Path) -> Layout:
    dim = tensors[_GENES].shape[1]
    values, cell = args.get("input_emb_style"), args.get("cell_emb_style", "cls")
    if values is not None and values not in get_args(ValueStyle):
        raise CheckpointError(
            f"{path.parent / files.ARGS} says input_emb_style = {values!r}; known: {get_args(ValueStyle)}."
        )
    if cell not in get_args(CellStyle):
        raise CheckpointError(
            f"{path.parent / files.ARGS} says cell_emb_style = {cell!r}; known: {get_args(CellStyle)}."
        )
    if (style := args.get("input_style", "binned")) != "binned":
        msg = f"{path.parent / files.ARGS} says input_style = {style!r}. Only models that read bins are supported"
        raise CheckpointError(f"{msg}, as all published ones do.")
    # Only the flash layers know of pre_norm; the published models have no such setting.
    order: NormOrder = "leading" if args.get("pre_norm") and args.get("fast_transformer") else "post"
    return layout_of(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        heads=_heads(dim, args, heads, path),
        values=cast(ValueStyle | None, values),
        cell=cast(CellStyle, cell),
        order=order,
        dropout=float(args.get("dropout", 0.0)),
    )


def _heads(dim: int, args: Mapping[str, Any], heads: int | None, path: Path) -> int:
    """Number of heads: asked for, or by args.json, or the usual width. No tensor tells it."""
    if heads is not None:
        if not is_whole(heads) or heads < 1 or dim % heads:
            raise OptionError(f"heads={heads!r} does not divide vectors of {dim} numbers.")
        return heads
    if "nheads" in args:
        found = int(args["nheads"])
        if dim % found:
            raise CheckpointError(f"{path.parent / files.ARGS} says nheads = {found}, which does not divide {dim}.")
        return found
    width = next((width for width in (64, 8) if dim % width == 0), dim)
    logger.warning(
        "%s has no %s, and no tensor tells the number of heads: taking %d, each %d wide%s. If that is wrong, every vector is; "
        "heads= sets it",
        path.parent,
        files.ARGS,
        dim // width,
        width,
        " as in the published models" if width == 64 else ", which is a guess",
    )
    return dim // width


def _check_sizes(layout: Layout, args: Mapping[str, Any], tokens: list[str], path: Path) -> None:
    """That vocabulary, settings and tensors are of one model."""
    if len(tokens) != layout.n_tokens:
        msg = (
            f"{path.parent / files.VOCABULARY} has {len(tokens):,} tokens, {path.name} has vectors for "
            f"{layout.n_tokens:,}: they are of two models. {_ADVICE}"
        )
        raise CheckpointError(msg)
    if not layout.layers:
        raise CheckpointError(f"{path} has no encoder layers (transformer_encoder.layers.*). {_ADVICE}")
    told = {"embsize": layout.dim, "nlayers": layout.layers, "d_hid": layout.hidden}
    if wrong := {key: (args[key], n) for key, n in told.items() if args.get(key, n) != n}:
        texts = ", ".join(f"{key} {said} and {n}" for key, (said, n) in wrong.items())
        raise CheckpointError(f"{path.parent / files.ARGS} and {path.name} are of two models: {texts}. {_ADVICE}")


def _attention(layout: Layout) -> list[str]:
    parts = (f"{FUSED}.weight", f"{FUSED}.bias", "out.weight", "out.bias")
    return [f"layers.{i}.{part}" for i in range(layout.layers) for part in parts]
