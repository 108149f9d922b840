"""Bringing the files of a model into the cache: downloaded, or taken from a folder that the user has."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cfm._core.errors import DownloadError
from cfm._core.logging import logger
from cfm._core.resources import atomic_path
from cfm._core.settings import settings

from .entry import Entry, ModelFile, readable
from .transfer import Patience, ResumingDownloader, TransferError

_INCOMING, _LOCKS = ".incoming", ".locks"


def cache_folder() -> Path:
    """Where models are kept: ``models`` in `settings.cache_dir`, or in the folder for caches of the system."""
    import pooch

    chosen = settings.cache_dir
    return Path(os.path.expanduser(chosen or pooch.os_cache("cfm"))).absolute() / "models"


def fetch_files(
    entry: Entry,
    cache: Path,
    *,
    folder: Path | None = None,
    offline: bool = False,
    patience: Patience | None = None,
) -> Path:
    """Bring all files of a model into a cache, and give the folder to load.

    Files that are there and intact, which is told by their content, are left alone. A file lands under its name only
    when it is complete and checked, so a damaged one stays until a good one can take its place.

    Parameters
    ----------
    entry
        The model.
    cache
        The cache; several processes may use it at once.
    folder
        Folder of the user to take files from, in the layout of the source or all in one place.
    offline
        Whether to leave the network alone.
    patience
        How long to wait for a server.

    Raises
    ------
    DownloadError
        A file that cannot be had, or that is not the one that is known.
    """
    lacking = entry.lacking(cache, content=True)
    for file, problem in lacking.items():
        if problem != "is missing":
            logger.warning("%s %s: it is replaced as soon as a good one is here.", entry.place(file, cache), problem)
    given = {} if folder is None else {f: path for f in lacking if (path := _look(folder, entry, f)) is not None}
    wanted = [file for file in lacking if file not in given]
    if any(entry.url_of(file) is None for file in wanted):
        raise DownloadError(_by_hand(entry, cache, folder, wanted))
    if offline and wanted:
        raise DownloadError(_offline(entry, cache, folder, {file: lacking[file] for file in wanted}))
    for file, path in given.items():
        _check_given(entry, file, path)
    _check_space(entry, cache, list(lacking))
    for file, path in given.items():
        _take(entry, file, path, cache)
    if wanted:
        size = readable(sum(file.size or 0 for file in wanted))
        logger.info("%s: downloading %s (files: %d) from %s", entry.name, size, len(wanted), entry.url)
    for file in wanted:
        _download(entry, file, cache, patience or Patience())
    if lacking:
        logger.info("%s is in %s", entry.name, cache / entry.store / entry.folder)
    return cache / entry.store / entry.folder


def _download(entry: Entry, file: ModelFile, cache: Path, patience: Patience) -> None:
    import pooch

    target, (incoming, part) = entry.place(file, cache), _incoming(entry, file, cache)
    with _locked(cache, entry, file):
        if file.problem(target) is None:
            return  # another process was faster
        try:
            with _quiet(pooch.get_logger()):
                # Incoming files have a place of their own: a folder of the cache never holds a part of a file.
                pooch.retrieve(
                    entry.url_of(file),
                    known_hash=file.checksum,
                    fname=incoming.name,
                    path=incoming.parent,
                    downloader=ResumingDownloader(file, part, patience),
                )
        except TransferError as error:
            raise DownloadError(f"{error}\n{_elsewhere(entry)}") from error
        target.parent.mkdir(parents=True, exist_ok=True)
        incoming.replace(target)


def _incoming(entry: Entry, file: ModelFile, cache: Path) -> tuple[Path, Path]:
    """Where a file is between the network and its place, and what has come of it so far."""
    incoming = cache / _INCOMING / entry.store / file.path
    return incoming, incoming.with_name(f"{incoming.name}.part")


def _take(entry: Entry, file: ModelFile, path: Path, cache: Path) -> None:
    """Copy a file that was checked into the cache."""
    with _locked(cache, entry, file), atomic_path(entry.place(file, cache)) as copy:
        shutil.copyfile(path, copy)


def _check_given(entry: Entry, file: ModelFile, path: Path) -> None:
    if problem := file.problem(path):
        said = f" (checksum from {entry.hashes_from})" if file.checksum and entry.hashes_from else ""
        source = f" {entry.where}" if entry.url_of(file) is None else f" It is at {entry.url_of(file)}."
        raise DownloadError(
            f"{path} {problem}{said}: it is damaged, half downloaded, or not of {entry.name}. Nothing was taken. Download "
            f"it again.{source}\nIf you trust your files, use their folder as it is: model=FOLDER."
        )
    if file.checksum is None:
        logger.info("%s: no checksum of this file is known, it is taken as it is.", path)


def _look(folder: Path, entry: Entry, file: ModelFile) -> Path | None:
    """The file in a folder of the user: a copy of the source, the model's folder in one, or all files in one place."""
    inside = file.path.removeprefix(f"{entry.folder}/")
    places = (folder / file.path, folder / inside, folder.parent / file.path, folder / file.name)
    return next((path for path in places if path.is_file()), None)


@contextlib.contextmanager
def _locked(cache: Path, entry: Entry, file: ModelFile) -> Iterator[None]:
    """One process at a time for each file, on this machine and on others that share the cache."""
    from filelock import FileLock, Timeout

    path = cache / _LOCKS / f"{entry.store}.{file.path.replace('/', '.')}"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: another process is bringing %s; waiting for it.", entry.name, file.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _quiet(other: logging.Logger) -> Iterator[None]:
    """What pooch says is said by us, with the name of the model."""
    level = other.level
    other.setLevel(logging.WARNING)
    try:
        yield
    finally:
        other.setLevel(level)


def _check_space(entry: Entry, cache: Path, files: list[ModelFile]) -> None:
    come = [path for file in files for path in _incoming(entry, file, cache) if path.is_file()]
    needed = sum(file.size or 0 for file in files) - sum(path.stat().st_size for path in come)
    there = next(path for path in (cache, *cache.parents) if path.exists())
    if needed > (free := shutil.disk_usage(there).free):
        raise DownloadError(
            f"{entry.name} needs {readable(needed)} more, and the disk of {cache} has {readable(free)} left. Make room, or "
            "choose a folder on another disk: cfm.settings.cache_dir, or CFM_CACHE_DIR in the environment."
        )


def _names(entry: Entry, files: list[ModelFile]) -> str:
    """Names and sizes, for a message."""
    inside = {file: file.path.removeprefix(f"{entry.folder}/") for file in files}
    return ", ".join(f"{inside[f]} ({readable(f.size)})" if f.size else inside[f] for f in files)


def _by_hand(entry: Entry, cache: Path, folder: Path | None, wanted: list[ModelFile]) -> str:
    files = [file for file in wanted if entry.url_of(file) is None]
    if folder is None:
        first = f"{entry.name} ({entry.description.rstrip('.')}) is not in the cache, and cfm cannot download it."
    else:
        there = sorted(path.name for path in folder.iterdir())[:10]
        first = f"{folder} does not have all files of {entry.name}. It holds {there}."
    example = f"~/Downloads/{entry.folder}"
    return (
        f"{first} {entry.where}\n"
        f"Files: {_names(entry, files)}. Keep their names, and put them into one folder. Then type\n"
        f'    cfm.models.fetch("{entry.name}", folder="{example}")\n'
        f"or `cfm fetch {entry.name} --folder {example}`. This checks them and copies them into {cache / entry.store}; "
        f'from then on model="{entry.name}" works. A folder also works as it is: model="{example}".'
    )


def _offline(entry: Entry, cache: Path, folder: Path | None, wanted: dict[ModelFile, str]) -> str:
    given = "" if folder is None else f", nor are they in {folder}"
    problems = "\n".join(f"    {entry.place(file, cache)} {problem}" for file, problem in wanted.items())
    return (
        f"Files of {entry.name} are not in the cache{given}, and cfm.settings.offline (CFM_OFFLINE) keeps cfm from "
        f"downloading them:\n{problems}\nTurn it off, or bring them from elsewhere. {_elsewhere(entry)}"
    )


def _elsewhere(entry: Entry) -> str:
    return (
        f"On a machine without network: `cfm info {entry.name}` lists the addresses of the files. Get them on another "
        f'machine, copy them here in one folder, and type cfm.models.fetch("{entry.name}", folder="FOLDER") or `cfm fetch '
        f"{entry.name} --folder FOLDER`."
    )
