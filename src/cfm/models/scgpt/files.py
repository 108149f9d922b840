"""The files of a scGPT folder: args.json, vocab.json, vocab_mod.json, and the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cfm._core.errors import CheckpointError

ARGS, VOCABULARY, MODALITIES = "args.json", "vocab.json", "vocab_mod.json"
WEIGHTS = ("best_model.pt", "model.pt", "best_model.safetensors", "model.safetensors")
CLS = "<cls>"
PAD_VALUE = -2.0
"""Value beside padding in all published models, and in pretraining beside ``<cls>``."""
_ENDINGS = (".pt", ".pth", ".safetensors")
_ADVICE = "The files of one folder belong together: copy all of them from one source."

ZEROS, CLS_VALUE, BATCHES = "include_zero_gene", "cls_value", "batch_names"
"""Settings that a folder from here has in args.json, and the official code does not look for: whether genes with a count of
0 are tokens, the value beside ``<cls>``, and the names of batches in the order of their numbers."""

_NUMBERS = ("embsize", "nheads", "d_hid", "nlayers", "n_bins", "max_seq_len")


def weights_of(folder: Path) -> Path:
    """The file with the weights.

    Raises
    ------
    CheckpointError
        There is none, or several and none of a usual name.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = _with_weights(folder)
    if len(found) == 1:
        return found[0]
    if not found:
        raise missing(folder, WEIGHTS[0])
    names = ", ".join(path.name for path in found)
    raise CheckpointError(f"{folder} holds several files with weights ({names}). Rename the right one {WEIGHTS[0]}.")


def is_scgpt(folder: Path) -> bool:
    """Whether a folder has this layout; one of its files may be missing, and loading will name it."""
    try:
        args = json.loads((folder / ARGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        args = None
    if isinstance(args, dict) and {"embsize", "nlayers"} <= args.keys():
        return True
    if (folder / "config.json").is_file():  # Hugging Face's layouts have it, also beside a vocab.json
        return False
    # A damaged args.json counts as well as a good one: the error will say so.
    signs = [(folder / ARGS).is_file(), (folder / VOCABULARY).is_file(), bool(_with_weights(folder))]
    return sum(signs) >= 2 or (folder / WEIGHTS[0]).is_file()


def read_args(folder: Path) -> dict[str, Any]:
    """Settings of the training run; empty where there are none, as in most fine-tuned folders."""
    path = folder / ARGS
    if not path.is_file():
        return {}
    args = _json_object(path)
    for key in _NUMBERS:
        value = args.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise CheckpointError(f"{path} says {key} = {value!r}, which is no whole number above 0. {_ADVICE}")
    for key in ("pad_value", "dropout", CLS_VALUE):
        if not isinstance(args.get(key, 0), int | float):
            raise CheckpointError(f"{path} says {key} = {args[key]!r}, which is no number. {_ADVICE}")
    if not isinstance(args.get(ZEROS, False), bool):
        raise CheckpointError(f"{path} says {ZEROS} = {args[ZEROS]!r}, which is neither true nor false. {_ADVICE}")
    names = args.get(BATCHES, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path} says {BATCHES} = {names!r}, which is no list of names. {_ADVICE}")
    return args


def read_vocabulary(folder: Path, pad: str) -> list[str]:
    """Tokens in the order of their ids.

    Parameters
    ----------
    folder
        Where vocab.json is.
    pad
        The padding token, which has to be among them beside ``<cls>``.

    Raises
    ------
    CheckpointError
        No such file, no JSON, ids that are not 0 to n - 1, or special tokens that are missing.
    """
    tokens = _tokens(_existing(folder, VOCABULARY))
    if lacking := [token for token in (pad, CLS) if token not in tokens]:
        msg = (
            f"{folder / VOCABULARY} has {len(tokens):,} tokens and lacks {', '.join(lacking)}. The official loaders append "
            "what is missing, and then leave the whole gene embedding at random, since its size no longer fits. A "
            f"vocab.json that goes with published weights has these tokens. {_ADVICE}"
        )
        raise CheckpointError(msg)
    return tokens


def read_modalities(folder: Path) -> list[str]:
    """Modalities in the order of their ids, from vocab_mod.json."""
    return _tokens(_existing(folder, MODALITIES))


def missing(folder: Path, name: str) -> CheckpointError:
    """The error for a file that is not there."""
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "nothing: there is no such folder"
    looks = _other_family(folder)
    return CheckpointError(f"{folder} has no {name}, which a scGPT folder needs. It holds {there}.{looks}")


def _other_family(folder: Path) -> str:
    """A sentence on what a folder is instead, or nothing."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    if not isinstance(config, dict):
        return ""
    if config.get("model_type") == "bert":
        return " It looks like a Geneformer checkpoint: its config.json says model_type 'bert'."
    kind = config.get("model_type", config.get("family", "of another kind"))
    return f" It looks like another family: its config.json says {kind!r}."


def _with_weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS) if folder.is_dir() else []


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise missing(folder, name)
    return folder / name


def _tokens(path: Path) -> list[str]:
    ids = _json_object(path)
    # The order of the keys is arbitrary: the numbers alone say which row of the embedding is whose.
    if any(type(i) is not int for i in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
        msg = f"{path} has {len(ids):,} tokens, whose ids are not 0 to {len(ids) - 1:,} once each. {_ADVICE}"
        raise CheckpointError(msg)
    return sorted(ids, key=ids.__getitem__)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        size = path.stat().st_size
        msg = f"{path} ({size:,} bytes) is no JSON: {error}. It is damaged or cut short. Copy it again."
        raise CheckpointError(msg) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object, but {type(found).__name__}. Copy it again.")
    return found
