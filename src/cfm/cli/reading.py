"""Opening h5ad files and zarr stores without reading their matrices.

`anndata.read_h5ad` with ``backed="r"`` reads all layers, and `anndata.experimental.read_lazy` needs dask, which is not a
dependency. So the object is put together here from what stays on disk: X, raw and layers as stored, and genes.
"""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset

from cfm._core import records
from cfm._core.errors import OptionError

Kind = Literal["h5ad", "zarr", "h5mu"]
Group = Any  # h5py.Group | zarr.Group: the same interface, no common type

_HINT = "cfm reads .h5ad files and .zarr folders that anndata wrote."


def kind_of(path: Path, *, several: bool = False) -> Kind:
    """What a path holds, by looking into it.

    Parameters
    ----------
    path
        A file or a folder.
    several
        Whether an h5mu file, of several modalities, will do too.

    Raises
    ------
    OptionError
        It does not exist, or is neither an h5ad file nor a zarr store of an AnnData object.
    """
    if not path.exists():
        raise OptionError(f"{path} does not exist. {_neighbours(path)}")
    if path.is_dir():
        if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
            raise OptionError(f"{path} is a folder, but no zarr store. {_HINT}")
    elif not h5py.is_hdf5(path):
        if several and path.suffix == ".h5mu":
            raise OptionError(f"{path} is no HDF5 file, so no h5mu. In Python: mdata.write(NEW)")
        raise OptionError(f"{path} is no HDF5 file, so no h5ad. {_HINT} In Python: sc.read(FILE).write_h5ad(NEW)")
    kind: Kind = "zarr" if path.is_dir() else "h5ad"
    with group_of(path, kind) as group:
        if several and kind == "h5ad" and _is_mudata(group):
            return "h5mu"
        _require_anndata(path, group)
    return kind


def _is_mudata(group: Group) -> bool:
    return group.attrs.get("encoding-type") == "MuData" or "mod" in group


@contextlib.contextmanager
def group_of(path: Path, kind: Kind, mode: Literal["r", "r+"] = "r") -> Iterator[Group]:
    """The root group of a store, closed at the end."""
    if kind != "zarr":
        with h5py.File(path, mode) as file:
            yield file
    elif mode == "r":
        yield zarr.open_group(path, mode=mode)
    else:
        # What is written past the consolidated metadata would be invisible to readers, so these are made anew.
        consolidated = zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None
        group = zarr.open_group(path, mode=mode, use_consolidated=False)
        yield group
        if consolidated:
            with warnings.catch_warnings():
                # As in anndata, which does the same at the end of every write.
                warnings.filterwarnings("ignore", ".*[Cc]onsolidated metadata.*", UserWarning)
                zarr.consolidate_metadata(group.store, zarr_format=group.metadata.zarr_format)


@contextlib.contextmanager
def open_cells(path: Path, *, obs: bool = False, obsm: bool = False) -> Iterator[AnnData]:
    """The counts, genes and records of a file, with the matrices left on disk.

    Whatever the object holds besides at the end of a call is a result of that call.

    Parameters
    ----------
    path
        An h5ad file or a zarr store.
    obs, obsm
        Read these too, whole.
    """
    with group_of(path, kind_of(path)) as group:
        x, raw = _part(group, "X"), _part(group, "raw")
        yield AnnData(
            X=None if x is None else _left_on_disk(x),
            obs=read_frame(group["obs"]) if obs else _nameless(group["obs"]),
            var=read_frame(group["var"]),
            uns=_records(group),
            obsm=_all_of(group, "obsm") if obsm else None,
            layers={name: _left_on_disk(group["layers"][name]) for name in group.get("layers", ())},
            raw=None if raw is None else {"X": _left_on_disk(raw["X"]), "var": read_frame(raw["var"])},
        )


def read_column(path: Path, name: str) -> pd.Series | None:
    """A column of obs, or None where there is none of this name."""
    with group_of(path, kind_of(path)) as group:
        return pd.Series(read_elem(group["obs"][name])) if name in group["obs"] else None


def read_frame(group: Group) -> pd.DataFrame:
    """A stored data frame: obs or var."""
    frame = read_elem(group)
    assert isinstance(frame, pd.DataFrame)
    return frame


def _part(group: Group, name: str) -> Any:
    """An element, or None where it is missing or stored as nothing (anndata does so for ``raw`` in zarr)."""
    element = group.get(name)
    return None if element is None or element.attrs.get("encoding-type") == "null" else element


def _left_on_disk(element: Any) -> Any:
    encoding = element.attrs.get("encoding-type")
    if encoding in ("csr_matrix", "csc_matrix"):
        return sparse_dataset(element)
    return element if encoding == "array" else read_elem(element)


def _all_of(group: Group, slot: str) -> dict[str, Any]:
    return {key: read_elem(group[slot][key]) for key in group.get(slot, ())}


def _nameless(frame: Group) -> pd.DataFrame:
    """A frame of the same length and nothing else: no function looks at the names of cells."""
    return pd.DataFrame(index=pd.RangeIndex(len(np.asarray(read_elem(frame[frame.attrs["_index"]])))).astype(str))


def _records(group: Group) -> dict[str, Any]:
    kept = group.get("uns", {})
    return {records.UNS: read_elem(kept[records.UNS])} if records.UNS in kept else {}


def _require_anndata(path: Path, group: Group) -> None:
    if _is_mudata(group):
        found = sorted(group["mod"]) if "mod" in group else []
        msg = (
            f"{path} holds several modalities {found}. `cfm integrate` reads these from .h5mu files, and everything else reads "
            f"one. Type in Python: mudata.read(FILE)['NAME'].write_h5ad(NEW)"
        )
        raise OptionError(msg)
    if "obs" not in group or "var" not in group:
        hint = " It looks like a 10x file: sc.read_10x_h5(FILE).write_h5ad(NEW)" if "matrix" in group else ""
        raise OptionError(f"{path} holds {sorted(group)[:10]}, no AnnData object (obs and var). {_HINT}{hint}")
    if "_index" not in group["obs"].attrs or "_index" not in group["var"].attrs:
        msg = f"{path} was written before anndata 0.7. Type in Python: anndata.read_h5ad(FILE).write_h5ad(NEW)"
        raise OptionError(msg)


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    cells = {p.stem: p.name for p in sorted(path.parent.iterdir()) if p.suffix in (".h5ad", ".zarr")}
    if near := difflib.get_close_matches(path.stem, cells, n=3, cutoff=0.5):
        return f"Did you mean {' or '.join(str(path.parent / cells[stem]) for stem in near)}?"
    some = f"; some of those there: {', '.join([*cells.values()][:5])}" if cells else ", and there is none there"
    return f"Type an .h5ad or .zarr of the folder {path.parent.resolve()}{some}."
