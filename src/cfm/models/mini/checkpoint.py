"""Reading and writing a cfm-mini folder: config.json, vocabulary.tsv, weights.safetensors, reference.safetensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cfm._core.errors import CheckpointError
from cfm._core.resources import atomic_path, sha256
from cfm.genes import Vocabulary
from cfm.models.weights import check_family, fill, read_tensors

from .module import GeneBag

CONFIG, VOCABULARY, WEIGHTS, REFERENCE, CARD = (
    "config.json",
    "vocabulary.tsv",
    "weights.safetensors",
    "reference.safetensors",
    "README.md",
)
_GENES = "genes_sha256"
_CONFIG_KEYS = {"family": str, "version": str, "licence": str, "species": str, "width": int, "dim": int}


def digest(folder: Path) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the weights."""
    return sha256(_existing(folder, WEIGHTS))[:12]


def read_config(folder: Path) -> dict[str, Any]:
    """The checked content of config.json."""
    path = _existing(folder, CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}). Copy the file again from where it came.") from error
    wrong = {
        key: kind.__name__
        for key, kind in _CONFIG_KEYS.items()
        if not isinstance(config, dict) or not isinstance(config.get(key), kind)
    }
    if not wrong and (config["width"] < 1 or config["dim"] < 1):
        wrong = {key: "int above 0" for key in ("width", "dim") if config[key] < 1}
    if wrong or config["family"] != "mini":
        what = f"lacks or mistypes {wrong}" if wrong else f"says family {config['family']!r}"
        raise CheckpointError(f"{path} is no cfm-mini configuration: it {what}.")
    return dict(config)


def read_vocabulary(folder: Path) -> Vocabulary:
    """The genes of the model."""
    return Vocabulary.read(_existing(folder, VOCABULARY))


def check_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """That the weights were trained with these genes in this order, where they say so."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as handle:
            made_for = (handle.metadata() or {}).get(_GENES)
    except (SafetensorError, OSError):
        return  # `read_tensors` tells what is wrong with the file
    if made_for not in (None, genes_digest(vocabulary)):
        msg = (
            f"{folder / VOCABULARY} has other genes, or another order of genes, than {WEIGHTS} was trained with. The "
            "files of one folder belong together: copy all of them from one source."
        )
        raise CheckpointError(msg)


def genes_digest(vocabulary: Vocabulary) -> str:
    """Hexadecimal SHA-256 of the Ensembl ids in their order."""
    return hashlib.sha256("\n".join(vocabulary.ensembl_ids).encode()).hexdigest()


def read_module(folder: Path, config: dict[str, Any], n_genes: int) -> GeneBag:
    """The network with its weights; every tensor must be expected, present and of the right shape."""
    path = _existing(folder, WEIGHTS)
    found = read_tensors(path)
    check_family(path, found, "mini")
    with torch.device("meta"):
        module = GeneBag(n_genes, config["width"], config["dim"])
    advice = f"It has to go with {CONFIG} and {VOCABULARY} ({n_genes:,} genes): copy all files of one folder from one source."
    fill(module, found, where=path, advice=advice)
    return module.eval().requires_grad_(False)


def write_module(folder: Path, module: GeneBag, vocabulary: Vocabulary, config: dict[str, Any]) -> None:
    """Write a folder that `MiniModel.load` takes. Matrices are kept in float16, vectors in float32."""
    tensors = {
        name: (tensor.half() if tensor.ndim == 2 else tensor.float()).contiguous().cpu()
        for name, tensor in module.state_dict().items()
    }
    with atomic_path(folder / WEIGHTS) as path:
        save_file(tensors, path, metadata={_GENES: genes_digest(vocabulary)})
    with atomic_path(folder / VOCABULARY) as path:
        vocabulary.write(path)
    with atomic_path(folder / CONFIG) as path:
        path.write_text(json.dumps({"family": "mini", **config}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "nothing: there is no such folder"
        raise CheckpointError(f"{folder} has no {name}, which a cfm-mini folder needs. It holds {there}.")
    return path
