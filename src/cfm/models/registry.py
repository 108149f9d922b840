"""Finding and loading models by name or folder."""

from __future__ import annotations

import builtins
import difflib
import inspect
import os
import tomllib
from functools import cache, lru_cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cfm._core.errors import CheckpointError, OptionError, UnknownModelError
from cfm._core.settings import settings

from .contract import CellModel, ModelSpec


@cache
def _registry() -> dict[str, Any]:
    return tomllib.loads((files("cfm.models") / "registry.toml").read_text(encoding="utf-8"))


def list() -> pd.DataFrame:
    """The models that can be called by name.

    Returns
    -------
    A table indexed by name: family, species, licence, description.

    Examples
    --------
    >>> import cfm
    >>> cfm.models.list().index.tolist()
    ['cfm-mini']
    """
    columns = ["family", "species", "licence", "description"]
    table = pd.DataFrame.from_dict(_registry()["models"], orient="index")[columns]
    return table.rename_axis("name")


def load(model: str | Path, *, device: str | None = None, **options: Any) -> CellModel:
    """Load a model by registry name or folder. A model that is in use already is not read again.

    Parameters
    ----------
    model
        Name in `cfm.models.list`, or a folder that holds a checkpoint.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``...; None takes `cfm.settings.device`.
    **options
        Options of the family; its page in the documentation has them.

    Raises
    ------
    UnknownModelError
        Neither a name nor a folder.
    CheckpointError
        The folder is incomplete, damaged, or of no known family.
    OptionError
        The family has no such option, or not this value.

    Examples
    --------
    >>> import cfm
    >>> cfm.models.load("cfm-mini").spec.dim
    128
    """
    folder, family, name = _locate(model)
    # The time of the last change is part of the key: a folder that was written anew is read anew.
    changed = max(path.stat().st_mtime_ns for path in [folder, *folder.iterdir()])
    return _load(folder, family, name, str(pick_device(device)), changed, **_checked(name, family, options))


def info(model: str | Path) -> ModelSpec:
    """What a model is: family, version, digest of its weights, licence, species, sizes.

    Examples
    --------
    >>> import cfm
    >>> cfm.models.info("cfm-mini").family
    'mini'
    """
    return load(model, device="cpu").spec


def pick_device(device: str | None = None) -> torch.device:
    """The device for a name; ``"auto"`` is CUDA where there is one."""
    name = device or settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"There is no device {name!r}. Type 'auto', 'cpu', 'cuda' or 'cuda:0'.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"Device {name!r} was asked for, but torch sees no CUDA GPU. Type device='cpu' or 'auto'.")
    return found


@lru_cache(maxsize=2)
def _load(folder: Path, family: str, name: str, device: str, changed: int, **options: Any) -> CellModel:
    return _family(family).load(folder, name=name, device=torch.device(device), **options)


def _checked(name: str, family: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, if the family has them; None leaves an option at its default."""
    parameters = inspect.signature(_family(family).load).parameters
    known = [option for option in parameters if option not in ("folder", "name", "device")]
    if wrong := sorted(options.keys() - set(known)):
        takes = f"takes {', '.join(f'{option}=' for option in known)}" if known else "takes no options"
        raise OptionError(f"There is no option {wrong[0]}=: {name} (family {family}) {takes}.")
    given = {option: value for option, value in options.items() if value is not None}
    # Loaded models are kept by their options, and lists cannot be a key.
    return {option: tuple(value) if isinstance(value, builtins.list) else value for option, value in given.items()}


def _family(family: str) -> type[CellModel]:
    module, _, attribute = _registry()["families"][family].partition(":")
    found: type[CellModel] = getattr(import_module(module), attribute)
    return found


def _locate(model: str | Path) -> tuple[Path, str, str]:
    """Folder, family and name of a model."""
    models = _registry()["models"]
    if not isinstance(model, str | Path):
        raise OptionError(f"model= takes a name or a folder, not {type(model).__name__}. Names: {', '.join(models)}.")
    if isinstance(model, str) and model in models:
        package, _, inside = models[model]["packaged"].partition("/")
        return Path(str(files(package) / inside)), models[model]["family"], model
    # Unlike Path's, this expanduser leaves alone what it cannot expand. An empty text is no folder, though Path says ".".
    folder = Path(os.path.expanduser(model))
    if str(model) and folder.is_dir():
        folder = folder.resolve()
        for family in _registry()["families"]:
            if _family(family).recognises(folder):
                return folder, family, folder.name
        found = sorted(path.name for path in folder.iterdir())[:10]
        known = ", ".join(_registry()["families"])
        raise CheckpointError(f"{folder} has the layout of no known family ({known}). It holds {found}.")
    near = difflib.get_close_matches(str(model), models, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    msg = f"No model is called {str(model)!r}, and there is no such folder. {hint}Names: {', '.join(models)}."
    raise UnknownModelError(msg)
