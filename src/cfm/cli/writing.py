"""Writing results into a copy of a file, which then takes its place under the new name, or the old one.

The matrices are copied as bytes, never read: the output holds them unchanged, and memory does not grow with them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from anndata.io import write_elem

from cfm._core import records
from cfm._core.errors import OptionError
from cfm._core.logging import logger
from cfm._core.resources import atomic_path

from .reading import Group, Kind, group_of, kind_of, read_frame

SLOTS = ("obsm", "varm", "layers")
"""Where matrices of results are."""

Results = list[tuple[str, str, str, Any]]
"""Modality, or nothing for the object itself; slot; key; value."""

_SUFFIXES: dict[Kind, str] = {"h5ad": ".h5ad", "zarr": ".zarr", "h5mu": ".h5mu"}


def choose_target(source: Path, output: Path | None, *, overwrite: bool) -> Path:
    """Where to write, checked before anything is computed. None for `output` is the source itself.

    Raises
    ------
    OptionError
        The output is the input, exists, has the name of another format, or lies where nothing can be written.
    """
    kind = kind_of(source, several=True)
    if output is None:
        target = source.resolve()  # a link stays a link
    else:
        _check(source, kind, output, overwrite)
        target = output
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK):
        raise OptionError(f"Nothing can be written to {folder}. Type another output: -o FILE")
    return target


def _check(source: Path, kind: Kind, output: Path, overwrite: bool) -> None:
    if output.exists() and output.samefile(source):
        raise OptionError(f"{output} is the input. Type --inplace to write into it, or another name after -o.")
    if source.resolve() in output.resolve().parents:
        raise OptionError(f"{output} lies inside the input. Type a name outside it after -o.")
    if output.suffix != _SUFFIXES[kind] and not output.is_dir():
        name = output.with_suffix(_SUFFIXES[kind])
        raise OptionError(f"{source} is {kind}, and so will the output be. Type -o {name}")
    if not output.exists():
        return
    if kind != "zarr" and output.is_dir():
        raise OptionError(f"{output} is a folder. Type -o {output / source.name}")
    if not overwrite:
        raise OptionError(f"{output} exists. Type --overwrite to replace it, or another name after -o.")
    if kind == "zarr":
        kind_of(output)  # a folder of something else is never replaced, whatever was typed


def write_results(source: Path, target: Path, results: AnnData) -> None:
    """Copy a file and add everything that `results` has in obs, var, obsm, varm, layers and in the records.

    Until the copy is complete it stands under a temporary name in the folder of `target`; what cuts the work short
    removes it.
    """
    with _completed(source, target) as group:
        _add(group, results)


def write_modalities(source: Path, target: Path, results: Results, record: Mapping[str, Any]) -> None:
    """Copy an h5mu file and add matrices to the object and to its modalities, as `write_results` does.

    Parameters
    ----------
    source, target
        The file, and where the copy goes.
    results
        What to add.
    record
        ``mdata.uns["cfm"]``.
    """
    with _completed(source, target) as group:
        for place, slot, key, value in results:
            _put(group[f"mod/{place}"] if place else group, slot, key, value)
        _put(group, "uns", records.UNS, record, announce=False)


@contextlib.contextmanager
def _completed(source: Path, target: Path) -> Iterator[Group]:
    """A copy of a file that takes its place when the block ends well."""
    kind = kind_of(source, several=True)
    same = target == source.resolve()
    mode = source.stat().st_mode
    with replaced(target) as temporary:
        _copy(source, temporary)
        with group_of(temporary, kind, "r+") as group:
            yield group
    if same and kind != "zarr":
        target.chmod(mode)
    logger.info("wrote %s", target)


@contextlib.contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """`atomic_path` that can also replace a folder: the old one steps aside first, and comes back if that fails."""
    if not target.is_dir():
        with atomic_path(target) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        new, old = Path(folder) / "new", Path(folder) / "old"
        yield new
        try:
            target.rename(old)
            new.rename(target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)
        return
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder, _, _ in os.walk(target):  # the modes of folders are copied too, and the source may be read-only
        os.chmod(folder, os.stat(folder).st_mode | 0o700)


def _add(group: Group, results: AnnData) -> None:
    for slot in SLOTS:
        for key, value in getattr(results, slot).items():
            if key is not None:  # X, which some releases of anndata list among the layers
                _put(group, slot, key, value)
    _put(group, "uns", records.UNS, results.uns[records.UNS], announce=False)
    for slot in ("obs", "var"):
        _add_columns(group, slot, getattr(results, slot))


def _put(group: Group, slot: str, key: str, value: Any, *, announce: bool = True) -> None:
    if slot not in group:
        write_elem(group, slot, {})
    if announce and key in group[slot]:
        logger.info("%s[%r] exists and is overwritten", slot, key)
    write_elem(group[slot], key, value)


def _add_columns(group: Group, slot: str, new: pd.DataFrame) -> None:
    if not len(new.columns):
        return
    frame = group[slot]
    columns = list(frame.attrs["column-order"])
    for key in new.columns:
        if key in columns:
            logger.info("%s[%r] exists and is overwritten", slot, key)
    if frame.attrs["encoding-version"] != "0.2.0":
        # Columns of old and new frames are stored differently, so an old one is written anew as a whole.
        whole = read_frame(frame)
        for key in new.columns:
            whole[key] = new[key].array
        write_elem(group, slot, whole)
        return
    for key in new.columns:
        write_elem(frame, key, new[key].values)
    frame.attrs["column-order"] = columns + [key for key in new.columns if key not in columns]
