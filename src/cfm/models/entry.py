"""What the registry knows of a model: its files, where they come from, and how to tell that one is intact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfm._core.resources import hexdigest


@dataclass(frozen=True)
class ModelFile:
    """A file of a model.

    Parameters
    ----------
    path
        Where it lies in the source, and below the folder of the source in the cache; parts joined by ``/``.
    size
        Bytes, where known.
    sha256, md5
        Hexadecimal checksums, where known; the first is compared where both are.
    by_hand
        The source does not have it: users bring it.
    address
        What follows the address of the source, where that is not the path.
    unless
        Path of a file that takes the place of this one: where it is, this one is not needed.
    """

    path: str
    size: int | None = None
    sha256: str | None = None
    by_hand: bool = False
    md5: str | None = None
    address: str = ""
    unless: str = ""

    @property
    def checksum(self) -> str | None:
        """The checksum as pooch writes it, with its kind; None where none is known."""
        known = {"sha256": self.sha256, "md5": self.md5}
        return next((f"{kind}:{digest}" for kind, digest in known.items() if digest), None)

    @property
    def name(self) -> str:
        """Without folders."""
        return self.path.rpartition("/")[2]

    def problem(self, path: Path, *, content: bool = True) -> str | None:
        """What is wrong with a copy of this file, as the end of a sentence; None where nothing is.

        Parameters
        ----------
        path
            The copy.
        content
            Whether to read it; otherwise its size decides, which is fast enough for each load.
        """
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if self.size not in (None, size):
            return f"has {size:,} bytes, not {self.size:,}"
        if not size:
            return "is empty"
        if not content:
            return None
        if self.checksum:
            kind, _, known = self.checksum.partition(":")
            found = hexdigest(path, kind)
            called = {"sha256": "SHA-256", "md5": "MD5"}[kind]
            return None if found == known else f"has the {called} {found}, not {known}"
        if self.path.endswith(".json"):
            try:
                json.loads(path.read_bytes())
            except ValueError as error:
                return f"is no JSON ({error})"
        return None


@dataclass(frozen=True)
class Entry:
    """A model of the registry.

    Parameters
    ----------
    name
        What users type.
    family
        Family that reads it.
    species, licence, description
        For people.
    packaged
        Package and folder in it, for weights that ship with cfm; all below is for the others.
    store
        Folder in the cache that models of one source share, so that common files are there once.
    folder
        Folder to load, below `store`.
    files
        All that the model needs.
    url
        Address to which the paths of the files are appended; empty where nothing can be downloaded.
    where
        How people get the files that cannot be downloaded.
    notice
        What to tell people about the licence before they use the model; for licences that are not permissive.
    hashes_from
        Who says that the checksums are these, where it is not the source itself.
    """

    name: str
    family: str
    species: str
    licence: str
    description: str
    packaged: str = ""
    store: str = ""
    folder: str = ""
    files: tuple[ModelFile, ...] = ()
    url: str = ""
    where: str = ""
    notice: str = ""
    hashes_from: str = ""

    def place(self, file: ModelFile, cache: Path) -> Path:
        """Where a file lies in the cache."""
        return cache / self.store / file.path

    def url_of(self, file: ModelFile) -> str | None:
        """Address of a file; None for those that users bring."""
        return None if file.by_hand or not self.url else self.url + (file.address or file.path)

    def lacking(self, cache: Path, *, content: bool) -> dict[ModelFile, str]:
        """Files that are not in the cache as they should be, and what is wrong with each."""
        needed = [file for file in self.files if not (file.unless and (cache / self.store / file.unless).is_file())]
        problems = {file: file.problem(self.place(file, cache), content=content) for file in needed}
        return {file: problem for file, problem in problems.items() if problem}

    def available(self, cache: Path) -> str:
        """Whether it can be used at once, for the table of models."""
        if self.packaged:
            return "packaged"
        lacking = self.lacking(cache, content=False)
        if not lacking:
            return "cached"
        if any(self.url_of(file) is None for file in lacking):
            return "by hand"
        return f"download, {readable(sum(file.size or 0 for file in lacking))}"


def read_entries(registry: Mapping[str, Any]) -> dict[str, Entry]:
    """The models of a registry, by name."""
    sources, notices = registry.get("sources", {}), registry.get("notices", {})
    return {name: _entry(name, dict(model), sources, notices) for name, model in registry["models"].items()}


def _entry(name: str, model: dict[str, Any], sources: Mapping[str, Any], notices: Mapping[str, str]) -> Entry:
    if "packaged" in model:
        return Entry(name, **model)
    store, shared = model.pop("source"), model.pop("shared", None)
    source = {"notice": notices.get(model["family"], ""), **sources[store]}
    groups = source.pop("shared", {})
    files = [*model.pop("files"), *(groups[shared] if shared else [])]
    return Entry(name, store=store, files=tuple(ModelFile(**file) for file in files), **{**source, **model})


def readable(size: int) -> str:
    """A number of bytes for people.

    Examples
    --------
    >>> readable(417_571_156), readable(1_512_661), readable(584)
    ('418 MB', '1.51 MB', '584 bytes')
    """
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            number = size / scale
            return f"{number:,.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"
    return f"{size} bytes"
