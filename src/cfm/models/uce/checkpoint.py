"""From a file of weights to a network and its table of protein vectors, strictly."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cfm._core.errors import CheckpointError, OptionError
from cfm._core.logging import logger
from cfm.models.weights import LoadReport, check_family, fill, read_tensors

from .module import Shape, UceNetwork

CONFIG = "config.json"
_ENDINGS = (".torch", ".safetensors")
_TABLE, _POSITIONS = "pe_embedding.weight", "pos_encoder.pe"
_TOKENS = "all_tokens"
"""The table of tokens alone: the checkpoints hold it too, and it is never read."""
_PUBLISHED_DIM, _WIDTH = 1280, 64
_ADVICE = "Get the file from its official source."

_PARTS = {
    "encoder.0": "projection.linear",
    "encoder.2": "projection.norm",
    "gene_embedding_layer.0": "gene_projection.linear",
    "gene_embedding_layer.2": "gene_projection.norm",
    "self_attn.out_proj": "out",
    "linear1": "up",
    "linear2": "down",
    "norm1": "norm1",
    "norm2": "norm2",
}
_DECODERS = {"decoder": "decoder", "binary_decoder": "expressed"}
_LAYER = re.compile(r"transformer_encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = re.compile(r"(decoder|binary_decoder)\.(\d+)\.([01])\.(weight|bias)")
_LAST = re.compile(r"(decoder|binary_decoder)\.(\d+)\.(weight|bias)")
_THIRDS = ("query", "key", "value")


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Parameters
    ----------
    network
        With its weights, in evaluation.
    table
        float[rows, width]: protein vectors of all tokens, mapped from the file.
    report
        How the tensors went into the network.
    digest
        Of the weights and of the first and last row of the table. A digest of the file would read all of it, of
        which a cell needs little.
    """

    network: UceNetwork
    table: Tensor
    report: LoadReport
    digest: str


def weights_of(folder: Path, name: str | None = None) -> Path:
    """The file with the weights.

    Parameters
    ----------
    folder
        Where to look.
    name
        Its name, where there are several.

    Raises
    ------
    CheckpointError
        There is none, or several.
    OptionError
        `name` is none of them.
    """
    found = candidates(folder)
    if name is not None:
        if (folder / name) not in found:
            there = ", ".join(path.name for path in found) or "none"
            raise OptionError(f"weights={name!r} is no file of weights in {folder}. Found there: {there}.")
        return folder / name
    # The same weights in two formats.
    found = [path for path in found if path.suffix == _ENDINGS[0] or path.with_suffix(_ENDINGS[0]) not in found]
    if not found:
        holds = sorted(path.name for path in folder.iterdir())
        raise CheckpointError(f"{folder} has no weights (*.torch or *.safetensors), which UCE needs. It holds {holds}.")
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise CheckpointError(f"{folder} holds the weights of several models, {names}. Type weights={found[0].name!r}.")
    return found[0]


def candidates(folder: Path) -> list[Path]:
    """Files that can be weights, by their names."""
    return sorted(p for p in folder.iterdir() if p.suffix in _ENDINGS and p.stem != _TOKENS and p.is_file())


def read(path: Path, heads: int | None = None) -> Checkpoint:
    """Read a file of weights.

    Parameters
    ----------
    path
        The file.
    heads
        Number of attention heads, which no tensor tells; None takes config.json beside it, else heads of 64 numbers.

    Raises
    ------
    CheckpointError
        The file is damaged, hostile, of another family, or lacks something.
    OptionError
        So many heads do not divide the vectors.
    """
    found = read_tensors(path)
    check_family(path, found, "uce")
    shape = _shape(found, path, heads)
    table = found[_TABLE]
    if table.ndim != 2 or table.shape[1] != shape.width or not table.is_floating_point():
        msg = f"{path} has a {_TABLE} of {tuple(table.shape)}, {table.dtype}, which does not go with {shape.width} inputs."
        raise CheckpointError(f"{msg} {_ADVICE}")
    with torch.device("meta"):
        network = UceNetwork(shape)
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if name != _TABLE:
            tensors |= renamed(name, tensor)
    fill(network, tensors, where=path, advice=_ADVICE, called=official_name)
    report = LoadReport(tuple(sorted(found)))
    logger.debug("%s: %s", path, report)
    return Checkpoint(network.eval().requires_grad_(False), table, report, _digest(found, table))


def first_chromosome(path: Path) -> int | None:
    """The row at which chromosomes begin, where config.json tells it."""
    told = _config_beside(path).get("CHROM_TOKEN_OFFSET")
    return told if isinstance(told, int) else None


def _config_beside(path: Path) -> dict[str, object]:
    """What config.json beside the weights says; published folders have none."""
    where = path.parent / CONFIG
    if not where.is_file():
        return {}
    try:
        found = json.loads(where.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{where} is no JSON ({error}). Copy the file again from where it came.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} holds {type(found).__name__}, not the settings of a model.")
    return found


def official_name(name: str) -> str:
    """The name in files of a tensor of our network.

    Examples
    --------
    >>> official_name("layers.2.query.bias"), official_name("decoder.blocks.0.norm.weight")
    ('transformer_encoder.layers.2.self_attn.in_proj_bias', 'decoder.0.1.weight')
    """
    back = {ours: theirs for theirs, ours in _PARTS.items()}
    heads = {ours: theirs for theirs, ours in _DECODERS.items()}
    if found := re.fullmatch(r"layers\.(\d+)\.(\w+)\.(\w+)", name):
        number, part, kind = found.groups()
        theirs = f"self_attn.in_proj_{kind}" if part in _THIRDS else f"{back[part]}.{kind}"
        return f"transformer_encoder.layers.{number}.{theirs}"
    if found := re.fullmatch(r"(\w+)\.blocks\.(\d+)\.(linear|norm)\.(\w+)", name):
        return f"{heads[found[1]]}.{found[2]}.{int(found[3] == 'norm')}.{found[4]}"
    if found := re.fullmatch(r"(\w+)\.out\.(\w+)", name):
        return f"{heads[found[1]]}.3.{found[2]}"
    part, _, kind = name.rpartition(".")
    return _POSITIONS if name == "positions" else f"{back[part]}.{kind}" if part in back else name


def renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of a file by our name, or the three that it holds; a name that is unknown stays as it is."""
    if name == _POSITIONS:
        return {"positions": tensor}
    if found := re.fullmatch(r"transformer_encoder\.layers\.(\d+)\.self_attn\.in_proj_(weight|bias)", name):
        parts = tensor.chunk(3) if tensor.ndim and len(tensor) % 3 == 0 else (tensor,)
        return {f"layers.{found[1]}.{third}.{found[2]}": part for third, part in zip(_THIRDS, parts, strict=False)}
    if found := _LAYER.fullmatch(name):
        return {f"layers.{found[1]}.{_PARTS[found[2]]}.{found[3]}" if found[2] in _PARTS else name: tensor}
    if found := _IN_BLOCK.fullmatch(name):
        part = ("linear", "norm")[int(found[3])]
        return {f"{_DECODERS[found[1]]}.blocks.{found[2]}.{part}.{found[4]}": tensor}
    if found := _LAST.fullmatch(name):
        return {f"{_DECODERS[found[1]]}.out.{found[3]}": tensor}
    part, _, kind = name.rpartition(".")
    return {f"{_PARTS[part]}.{kind}" if part in _PARTS else name: tensor}


def _shape(tensors: Mapping[str, Tensor], path: Path, heads: int | None) -> Shape:
    """Sizes by the shapes of some tensors; whether the others agree is seen when the network is filled."""

    def size(name: str, dimension: int = 0) -> int:
        if name not in tensors or tensors[name].ndim <= dimension:
            some = ", ".join(sorted(tensors)[:6])
            raise CheckpointError(f"{path} is no UCE checkpoint: it has no {name}. It holds {some}. {_ADVICE}")
        return tensors[name].shape[dimension]

    def outputs(part: str) -> tuple[int, ...]:
        return (*(size(f"{part}.{i}.0.weight") for i in range(3)), size(f"{part}.3.weight"))

    size(_TABLE)
    dim = size("encoder.0.weight")
    layers = {int(found[1]) for name in tensors if (found := _LAYER.fullmatch(name))}
    return Shape(
        width=size("encoder.0.weight", 1),
        dim=dim,
        heads=_heads(dim, heads, path),
        hidden=size("transformer_encoder.layers.0.linear1.weight"),
        layers=max(layers) + 1,
        positions=size(_POSITIONS),
        decoder=outputs("decoder"),
        expressed=outputs("binary_decoder"),
    )


def _heads(dim: int, heads: int | None, path: Path) -> int:
    """Number of heads: asked for, or by config.json, or of the usual width."""
    if heads is not None:
        if type(heads) is not int or heads < 1 or dim % heads:
            raise OptionError(f"heads={heads!r} does not divide vectors of {dim} numbers.")
        return heads
    told = _config_beside(path).get("nhead")
    if told is not None:
        if not isinstance(told, int) or told < 1 or dim % told:
            raise CheckpointError(f"{path.parent / CONFIG} says nhead = {told!r}, which does not divide {dim}.")
        return told
    width = next((width for width in (_WIDTH, 8) if dim % width == 0), dim)
    if dim != _PUBLISHED_DIM:
        logger.warning(
            "%s: no tensor tells the number of heads; taking %d, each %d wide, which is a guess for vectors of %d. If it is "
            "wrong, every vector is; heads= sets it",
            path,
            dim // width,
            width,
            dim,
        )
    return dim // width


def _digest(tensors: Mapping[str, Tensor], table: Tensor) -> str:
    found = hashlib.sha256(str(tuple(table.shape)).encode())
    ends = {_TABLE: table[[0, -1]] if len(table) else table}
    for name, tensor in sorted((dict(tensors) | ends).items()):
        found.update(name.encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:12]
