"""Finding and loading models by name or folder."""

from __future__ import annotations

import builtins
import difflib
import inspect
import os
import re
import tomllib
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib import import_module
from importlib.resources import files
from numbers import Number
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cfm._core.errors import CheckpointError, OptionError, UnknownModelError
from cfm._core.logging import logger
from cfm._core.settings import settings

from .contract import CellModel, ModelSpec
from .download import cache_folder, fetch_files
from .entry import Entry, read_entries
from .weights import WEIGHTS_SUFFIXES, read_tensors


@cache
def _registry() -> dict[str, Any]:
    return tomllib.loads((files("cfm.models") / "registry.toml").read_text(encoding="utf-8"))


@cache
def entries() -> dict[str, Entry]:
    """What the registry knows of each model, by name."""
    return read_entries(_registry())


def list() -> pd.DataFrame:
    """The models that can be called by name. The network is not asked.

    Returns
    -------
    A table indexed by name: family, species, licence, available, description. `available` is ``"packaged"``,
    ``"cached"``, ``"download, "`` and what is missing of it, or ``"by hand"``: `fetch` then says where to get it.

    Examples
    --------
    >>> import cfm
    >>> cfm.models.list().loc["cfm-mini", "available"]
    'packaged'
    """
    cached = cache_folder()
    rows = {
        name: (entry.family, entry.species, entry.licence, entry.available(cached), entry.description)
        for name, entry in entries().items()
    }
    columns = ["family", "species", "licence", "available", "description"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("name")


def fetch(name: str, *, folder: str | Path | None = None) -> Path:
    """Bring a model into the cache, so that it works by name and without a network.

    Files that are there and intact are left alone; their checksums are compared each time. A download that was cut goes
    on where it stopped. Several processes may call this at once: one downloads, the others wait.

    Parameters
    ----------
    name
        Name in `cfm.models.list`.
    folder
        Folder with the files, for models that cannot be downloaded, and for machines without a network. They are
        checked and copied; what it does not have is downloaded.

    Returns
    -------
    The folder that holds the model.

    Raises
    ------
    UnknownModelError
        No such name.
    DownloadError
        A file that cannot be had, is not the one that is known, or has to be brought by hand: the message says from
        where.

    Examples
    --------
    >>> import cfm
    >>> cfm.models.fetch("cfm-mini").name  # ships with cfm
    'weights'
    """
    entry = _entry(name)
    if folder is not None:
        folder = Path(os.path.expanduser(folder)).absolute()
        if not folder.is_dir():
            raise OptionError(f"folder= takes a folder that exists, with the files of {name}; {folder} is none.")
    if entry.packaged:
        return _packaged(entry)
    _show_notice(name)
    return fetch_files(entry, cache_folder(), folder=folder, offline=settings.offline)


def load(model: str | Path, *, device: str | None = None, species: str | None = None, **options: Any) -> CellModel:
    """Load a model by registry name or folder. A model that is in use already is not read again.

    A named model that is not in the cache is fetched first, see `cfm.models.fetch`.

    Parameters
    ----------
    model
        Name in `cfm.models.list`, or a folder that holds a checkpoint.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``...; None takes `cfm.settings.device`.
    species
        Species of the cells, for families that know the genes of several; the others do not look at it.
    **options
        Options of the family; its page in the documentation has them.

    Raises
    ------
    UnknownModelError
        Neither a name nor a folder.
    DownloadError
        The files of a named model are not there and cannot be had.
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
    if model not in entries():
        _show_family_notice(family)
    # The time of the last change is part of the key: a folder that was written anew is read anew.
    changed = max(path.stat().st_mtime_ns for path in [folder, *folder.iterdir()])
    chosen = _checked(name, family, options)
    if species is not None and "species" in inspect.signature(_family(family).load).parameters:
        chosen["species"] = species.lower()
    return _load(folder, family, name, str(pick_device(device)), changed, **chosen)


def info(model: str | Path) -> ModelSpec:
    """What a model is: family, version, digest of its weights, licence, species, sizes.

    The model is read for it, and fetched first where it is not in the cache; `cfm.models.list` does neither.

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
    known = [option for option in parameters if option not in ("folder", "name", "device", "species")]
    if wrong := sorted(options.keys() - set(known)):
        takes = f"takes {', '.join(f'{option}=' for option in known)}" if known else "takes no options"
        near = difflib.get_close_matches(wrong[0], known, n=1)
        hint = f" Did you mean {near[0]}=?" if near else ""
        msg = (
            f"There is no option {wrong[0]}=: {name} (family {family}) {takes}, besides the arguments of the function."
        )
        raise OptionError(f"{msg}{hint}")
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        # Loaded models are kept by their options.
        if isinstance(value, builtins.list):
            given[option] = tuple(value)
        elif not isinstance(value, str | Path | Number | tuple):
            raise OptionError(
                f"{option}={value!r}: an option is a text, a number or a path, not {type(value).__name__}."
            )
    return given


def looks_like(names: Iterable[str]) -> str | None:
    """The family whose weights have tensors of such names."""
    names = builtins.list(names)
    for family, mark in _registry()["marks"].items():
        if any(re.match(mark, name) for name in names):
            return str(family)
    return None


def families_with(output: str) -> tuple[str, ...]:
    """The families some models of which give an output that not all do."""
    return tuple(_registry()["gives"].get(output, ()))


def _by_weights(folder: Path) -> str | None:
    """The family whose weights a folder holds, where its other files do not tell."""
    for path in sorted(folder.iterdir()):
        if path.suffix in WEIGHTS_SUFFIXES:
            try:
                family = looks_like(read_tensors(path))
            except CheckpointError:
                continue  # whoever reads this folder will say what is wrong with the file
            if family in _registry()["families"]:
                return family
    return None


def _family(family: str) -> type[CellModel]:
    module, _, attribute = _registry()["families"][family].partition(":")
    found: type[CellModel] = getattr(import_module(module), attribute)
    return found


def _locate(model: str | Path) -> tuple[Path, str, str]:
    """Folder, family and name of a model."""
    if isinstance(model, str) and model in entries():
        return _ready(model), entries()[model].family, model
    if not isinstance(model, str | Path):
        raise _unknown(model)
    # Unlike Path's, this expanduser leaves alone what it cannot expand. An empty text is no folder, though Path says ".".
    folder = Path(os.path.expanduser(model))
    if str(model) and folder.is_dir():
        folder = folder.resolve()
        for family in _registry()["families"]:
            if _family(family).recognises(folder):
                return folder, family, folder.name
        if of_weights := _by_weights(folder):
            return folder, of_weights, folder.name  # loading names the file that is missing
        found = sorted(path.name for path in folder.iterdir())[:10]
        known = ", ".join(_registry()["families"])
        raise CheckpointError(f"{folder} has the layout of no known family ({known}). It holds {found}.")
    raise _unknown(model)


def _ready(name: str) -> Path:
    """Folder of a named model, fetched where it is not complete. Sizes tell, so that each load need not read it all."""
    entry = entries()[name]
    if entry.packaged:
        return _packaged(entry)
    cached = cache_folder()
    if entry.lacking(cached, content=False):
        return fetch(name)
    _show_notice(name)
    return cached / entry.store / entry.folder


def _entry(name: object) -> Entry:
    """The entry of what should be a name."""
    if isinstance(name, str) and name in entries():
        return entries()[name]
    if isinstance(name, str | Path) and str(name) and Path(name).is_dir():
        raise OptionError(f"fetch takes a name, and {name} is a folder: use it as it is, model={str(name)!r}.")
    raise _unknown(name)


def _packaged(entry: Entry) -> Path:
    package, _, inside = entry.packaged.partition("/")
    return Path(str(files(package) / inside))


@cache
def _show_notice(name: str) -> None:
    """Once in a session, before a model is used or downloaded."""
    if notice := entries()[name].notice:
        logger.warning("%s: %s", name, notice)


@cache
def _show_family_notice(family: str) -> None:
    """The same for folders that users brought."""
    if notice := _registry().get("notices", {}).get(family):
        logger.warning("%s: %s", family, notice)


def _unknown(model: object) -> OptionError | UnknownModelError:
    names = ", ".join(entries())
    if not isinstance(model, str | Path):
        return OptionError(f"model= takes a name or a folder, not {type(model).__name__}. Names: {names}.")
    near = difflib.get_close_matches(str(model), entries(), n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return UnknownModelError(f"No model is called {str(model)!r}, and there is no such folder. {hint}Names: {names}.")
