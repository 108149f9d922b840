"""Reading models.ckpt, the file with the three models of scFoundation: one of them, strictly, and only that one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfm._core.errors import CheckpointError
from cfm._core.logging import logger
from cfm.models.weights import LoadReport, check_family, fill, read_saved

from .module import N_DEPTHS, ScfoundationNetwork, Shape
from .names import IGNORED, PREFIX, from_official, official_name

WEIGHTS = "models.ckpt"
_ADVICE = "Get models.ckpt from its official source, and leave it as it is."
_PROJECTION = "decoder.layers.0.projection"
_HEAD = "decoder.layers.0.query.weight"


def weights_of(folder: Path) -> Path:
    """The file with the weights."""
    path = folder / WEIGHTS
    if path.is_file():
        return path
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "nothing: there is no such folder"
    raise CheckpointError(
        f"{folder} has no {WEIGHTS}, which a scFoundation folder needs. It holds {there}. Files of fine-tuned models hold no "
        "settings: put the pretrained models.ckpt beside them, and name them with head=."
    )


def read(path: Path, key: str) -> tuple[ScfoundationNetwork, LoadReport]:
    """One of the models of a file, in evaluation.

    The file is mapped: what is not used of it is not in memory.

    Parameters
    ----------
    path
        models.ckpt.
    key
        ``"cell"``, ``"gene"`` or ``"rde"``.

    Raises
    ------
    CheckpointError
        The file is damaged, hostile, of another family, has no such model, or settings that are unknown here.
    """
    config, tensors = _part(path, key)
    names = tuple(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in IGNORED}
    ours = from_official(tensors)
    with torch.device("meta"):
        network = ScfoundationNetwork(shape_of(config, ours, path))
    fill(network, ours, where=path, advice=_ADVICE, called=lambda name: f"{key}: {PREFIX}{official_name(name)}")
    report = LoadReport(tuple(tensors), tuple(name for name in names if name in IGNORED))
    logger.debug("%s, %s: %s", path, key, report)
    return network.eval().requires_grad_(False), report


def _part(path: Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of a model, as the file has them."""
    found = read_saved(path)
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {type(found).__name__}, and not the models of scFoundation. {_ADVICE}")
    check_family(path, map(str, found), "scfoundation")
    part = found.get(key)
    if not isinstance(part, dict) or not {"config", "state_dict"} <= part.keys():
        raise CheckpointError(
            f"{path} has no model {key!r} with settings and weights. It holds {_some(found)}. {_ADVICE}"
        )
    tensors = part["state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} has no tensors for its model {key!r}. {_ADVICE}")
    return _flat(part["config"], path), {str(name).removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _flat(config: Any, path: Path) -> dict[str, Any]:
    """Settings of the network in one dictionary, as the official loader merges them."""
    try:
        kind = config["model"]
        return {**config["model_config"][kind], **config["dataset_config"]["rnaseq"]}
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} has settings of another form than scFoundation's: no {error}. {_ADVICE}"
        ) from error


def shape_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> Shape:
    """Sizes by the settings, and by the tensors where no setting tells."""
    encoder, decoder = (_section(config, name, path) for name in ("encoder", "decoder"))
    for name, section, kind in (("encoder", encoder, "transformer"), ("decoder", decoder, "performer")):
        if section.get("module_type") != kind:
            raise CheckpointError(
                f"{path} has {section.get('module_type')!r} as its {name}; known: {kind!r}. {_ADVICE}"
            )
    sizes = {
        "positions": config.get("seq_len"),
        "dim": encoder.get("hidden_dim"),
        "layers": encoder.get("depth"),
        "heads": encoder.get("heads"),
        "n_bins": config.get("bin_num"),
        "decoder_dim": decoder.get("hidden_dim"),
        "decoder_layers": decoder.get("depth"),
        "decoder_heads": decoder.get("heads"),
        "decoder_width": decoder.get("dim_head", 64),
    }
    alpha = config.get("bin_alpha", 1.0)
    if wrong := {name: size for name, size in sizes.items() if type(size) is not int or size < 1}:
        raise CheckpointError(f"{path} has no whole number above 0 for {wrong}. {_ADVICE}")
    if not isinstance(alpha, int | float) or sizes["positions"] <= N_DEPTHS or sizes["dim"] % sizes["heads"]:
        raise CheckpointError(f"{path} has settings that do not go together: {sizes | {'bin_alpha': alpha}}. {_ADVICE}")
    projection = tensors.get(_PROJECTION)
    n_features = len(projection) if projection is not None and projection.ndim else 1  # filling says what is missing
    return Shape(**sizes, alpha=float(alpha), n_features=n_features)


def _section(config: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{path} has no settings of its {name}. {_ADVICE}")
    return section


def _some(found: Mapping[Any, Any]) -> list[str]:
    return sorted(map(str, found))[:8]
