"""The files of a scBERT folder: weights in the official layout or bare, a gene list, names of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from cfm._core.errors import CheckpointError, OptionError
from cfm.models.given import find_file
from cfm.models.pickles import read_array
from cfm.models.weights import read_saved, read_tensors

PRETRAINED = ("panglao_pretrain.pth", "panglao_pretrained.pth", "panglao_pretrain.safetensors")
LABELS = "label_dict"
_ENDINGS = (".pth", ".safetensors", ".pt", ".ckpt")
_STATE = "model_state_dict"
_WRAPPER = "module."
_HOLDS = "files of labels"


def weights_of(folder: Path, given: str | None) -> Path:
    """The file with the weights: the one asked for, the published one, or the only one.

    Raises
    ------
    OptionError
        The one asked for is not in the folder.
    CheckpointError
        There is none, or several and none of a usual name.
    """
    found = _with_weights(folder)
    names = ", ".join(path.name for path in found) or "none"
    if given is not None:
        if not (folder / given).is_file():
            raise OptionError(f"weights={given!r} is no file in {folder}. Files with weights there: {names}.")
        return folder / given
    for name in PRETRAINED:
        if (folder / name).is_file():
            return folder / name
    if len(found) == 1:
        return found[0]
    if not found:
        there = sorted(path.name for path in folder.iterdir())
        raise CheckpointError(f"{folder} has no {PRETRAINED[0]}, which a scBERT folder needs. It holds {there}.")
    raise CheckpointError(f"{folder} holds several files with weights ({names}). Say which: weights={found[0].name!r}.")


def is_scbert(folder: Path) -> bool:
    """Whether a folder has this layout, by the name of a file or by what its weights are called inside."""
    if any((folder / name).is_file() for name in PRETRAINED):
        return True
    # Other families' folders say what they are, and their weights need not be opened.
    if any((folder / name).is_file() for name in ("args.json", "config.json")):
        return False
    return any(_has_performer(path) for path in _with_weights(folder) if path.suffix in (".pth", ".safetensors"))


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name: of the state dict inside the official layout, or of a file that is one.

    Raises
    ------
    CheckpointError
        Damaged, hostile, or of another form.
    """
    if path.suffix == ".safetensors":
        return _unwrapped(read_tensors(path))
    found = read_saved(path)
    state = found[_STATE] if isinstance(found, dict) and _STATE in found else found
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        what = sorted(map(str, state))[:8] if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"{path} has no weights where scBERT's files have them, under {_STATE} or as names and tensors. It holds {what}."
        )
    return _unwrapped(state)


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that training on several GPUs puts before each name."""
    return {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}


def read_classes(folder: Path, given: str | Path | None, n_classes: int) -> tuple[str, ...]:
    """Names of the classes in the order of the head; empty where no file has them.

    Parameters
    ----------
    folder
        Where the weights are.
    given
        A file to read instead of label_dict beside the weights.
    n_classes
        Classes of the head.

    Raises
    ------
    OptionError
        `given` is no file.
    CheckpointError
        The file is damaged or hostile, or names another number of classes.
    """
    if given is not None:
        path = find_file(given, "labels", folder, "Name the label_dict that fine-tuning wrote.")
    elif not (path := folder / LABELS).is_file():
        return ()
    names = tuple(map(str, read_array(path, _HOLDS).ravel()))
    if len(names) != n_classes:
        raise CheckpointError(
            f"{path} names {len(names)} classes, and the weights have {n_classes}: they are of two models. Copy both from "
            "the folder in which the model was fine-tuned, or type labels='FILE'."
        )
    return names


def _with_weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS and path.is_file())


def _has_performer(path: Path) -> bool:
    return any(name.removeprefix(_WRAPPER).startswith("performer.net.layers.") for name in _names_in(path))


def _names_in(path: Path) -> Iterable[str]:
    """Names of the tensors of a file; none where it cannot be read, which loading will say."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as handle:
                return list(handle.keys())
        return read_state(path)
    except (CheckpointError, SafetensorError, OSError):
        return ()
