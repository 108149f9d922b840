"""Reading a Geneformer folder: config.json beside model.safetensors or pytorch_model.bin."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfm._core.errors import CheckpointError
from cfm.models.weights import LoadReport, check_family, fill, read_tensors

from .module import (
    BertEncoder,
    BertShape,
    CellClassifierHead,
    GeneClassifierHead,
    Geneformer,
    Head,
    MaskedGeneHead,
    MultiTaskHead,
)

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADVICE = "The files of one folder belong together: copy config.json and the weights from one source."

_SIZES = {
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "dim": "hidden_size",
    "hidden": "intermediate_size",
    "heads": "num_attention_heads",
    "layers": "num_hidden_layers",
}

_SHARES = ("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob")

# Official names of parts, and ours. What stands in a layer is told apart by the part's own name.
_PARTS = {
    "bert.embeddings.word_embeddings": "bert.word",
    "bert.embeddings.position_embeddings": "bert.position",
    "bert.embeddings.token_type_embeddings": "bert.token_type",
    "bert.embeddings.LayerNorm": "bert.norm",
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "bert.pooler.dense": "head.pooler",
    "classifier": "head.classifier",
}
_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
_WHOLE = {"cls.predictions.bias": "head.bias", "attention_pool.attention_weights": "head.pool"}
_TASK = re.compile(r"classification_heads\.(\d+)\.(weight|bias)")


def weights_path(folder: Path) -> Path:
    """The weights of a folder; safetensors where both formats are there, since they hold the same numbers."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.name for path in folder.iterdir())
    msg = f"{folder} has neither {WEIGHTS[0]} nor {WEIGHTS[1]}, and a Geneformer folder needs one. It holds {there}."
    raise CheckpointError(msg)


def read_config(folder: Path) -> dict[str, Any]:
    """The checked content of config.json."""
    path = folder / CONFIG
    if not path.is_file():
        there = sorted(p.name for p in folder.iterdir())
        raise CheckpointError(f"{folder} has no {CONFIG}, which a Geneformer folder needs. It holds {there}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error}). Copy the file again from where it came.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds {type(config).__name__}, not the settings of a model.")
    bad = [key for key in _SIZES.values() if not isinstance(config.get(key), int) or config[key] < 1]
    if bad:
        raise CheckpointError(f"{path} lacks, or has no whole number above 0 for, {bad}. Copy the file again.")
    if bad := [key for key in _SHARES if not isinstance(config.get(key, 0), int | float)]:
        raise CheckpointError(f"{path} has no number for {bad}. Copy the file again.")
    expected = {"model_type": "bert", "hidden_act": "relu", "position_embedding_type": "absolute"}
    if other := {key: config[key] for key, value in expected.items() if config.get(key, value) != value}:
        raise CheckpointError(f"{path} says {other}; Geneformer models have {expected}.")
    if config["hidden_size"] % config["num_attention_heads"]:
        heads = config["num_attention_heads"]
        raise CheckpointError(f"{path}: hidden_size {config['hidden_size']} is no multiple of {heads} heads.")
    return config


def shape_of(config: dict[str, Any]) -> BertShape:
    """The sizes that a configuration names."""
    return BertShape(
        **{ours: config[theirs] for ours, theirs in _SIZES.items()},
        eps=float(config.get("layer_norm_eps", 1e-12)),
        dropout=float(config.get("hidden_dropout_prob", 0.0)),
        attention_dropout=float(config.get("attention_probs_dropout_prob", 0.0)),
    )


def read_module(path: Path, shape: BertShape) -> tuple[Geneformer, LoadReport]:
    """The network with its weights, strictly, and how the tensors of the file went in."""
    tensors = read_tensors(path)
    names = tuple(tensors)
    check_family(path, names, "geneformer")
    ignored = _drop_copies(tensors, path)
    head = _head_for(tensors, shape)
    with torch.device("meta"):
        module = Geneformer(BertEncoder(shape), head)
    fill(module, {_our_name(name): t for name, t in tensors.items()}, where=path, advice=ADVICE, called=official_name)
    matched = tuple(name for name in names if name not in ignored)
    return module.eval().requires_grad_(False), LoadReport(matched, ignored)


def _drop_copies(tensors: dict[str, Tensor], path: Path) -> tuple[str, ...]:
    """Take out what older files hold twice: position numbers, and the output layer that shares the embedding."""
    copies = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    for copy, original in copies.items():
        if copy in tensors and original in tensors and not torch.equal(tensors[copy], tensors[original]):
            msg = f"{path} has a {copy} of its own, and Geneformer's is the {original}. Is it another kind of BERT?"
            raise CheckpointError(msg)
    ignored = tuple(name for name in (*copies, "bert.embeddings.position_ids") if name in tensors)
    if any(_TASK.fullmatch(name) for name in tensors):
        # Multi-task models are saved with a pooler that their forward pass never calls.
        ignored += tuple(name for name in tensors if name.startswith("bert.pooler."))
    for name in ignored:
        del tensors[name]
    return ignored


def _head_for(tensors: dict[str, Tensor], shape: BertShape) -> Head | None:
    """The head whose tensors are there, on the meta device."""
    with torch.device("meta"):
        if any(name.startswith("cls.predictions.") for name in tensors):
            return MaskedGeneHead(shape)
        tasks = {int(found[1]): len(tensors[name]) for name in tensors if (found := _TASK.fullmatch(name))}
        if tasks:
            classes = tuple(tasks[i] for i in sorted(tasks))
            return MultiTaskHead(shape.dim, classes, "attention_pool.attention_weights" in tensors, shape.dropout)
        if "classifier.bias" in tensors:
            kind = CellClassifierHead if "bert.pooler.dense.weight" in tensors else GeneClassifierHead
            return kind(shape.dim, len(tensors["classifier.bias"]), shape.dropout)
    return None


def _our_name(name: str) -> str:
    """The name in our network of a tensor of a file; a name that is unknown stays as it is."""
    if found := _LAYER.fullmatch(name):
        number, part, kind = found.groups()
        return f"bert.layers.{number}.{_PARTS[part]}.{kind}" if part in _PARTS else name
    if found := _TASK.fullmatch(name):
        return f"head.heads.{found[1]}.{found[2]}"
    part, _, kind = name.rpartition(".")
    return _WHOLE.get(name) or (f"{_PARTS[part]}.{kind}" if part in _PARTS else name)


def official_name(name: str) -> str:
    """The name in files of a tensor of our network.

    Examples
    --------
    >>> official_name("bert.layers.3.query.bias")
    'bert.encoder.layer.3.attention.self.query.bias'
    """
    parts, whole = ({ours: theirs for theirs, ours in table.items()} for table in (_PARTS, _WHOLE))
    if found := re.fullmatch(r"bert\.layers\.(\d+)\.(\w+)\.(\w+)", name):
        number, part, kind = found.groups()
        return f"bert.encoder.layer.{number}.{parts[part]}.{kind}"
    if found := re.fullmatch(r"head\.heads\.(\d+)\.(\w+)", name):
        return f"classification_heads.{found[1]}.{found[2]}"
    part, _, kind = name.rpartition(".")
    return whole.get(name) or (f"{parts[part]}.{kind}" if part in parts else name)
