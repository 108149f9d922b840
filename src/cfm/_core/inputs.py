"""Checks of arguments that several public functions share."""

from __future__ import annotations

from collections.abc import Mapping

from anndata import AnnData

from .errors import OptionError
from .logging import logger
from .records import UNS


def writable(adata: AnnData, copy: bool) -> AnnData:
    """The object to write to: `adata` itself, or a copy of it."""
    if not isinstance(adata, AnnData):
        hint = (
            "Pass one modality: mdata['rna']."
            if type(adata).__name__ == "MuData"
            else "Read a file with anndata.read_h5ad(path)."
        )
        msg = f"Expected an AnnData object, got {type(adata).__name__}. {hint}"
        raise OptionError(msg)
    if not isinstance(kept := adata.uns.get(UNS, {}), Mapping):
        msg = f"uns[{UNS!r}] is kept for the records of cfm, and holds {type(kept).__name__}. Move it to another key."
        raise OptionError(msg)
    if copy:
        if adata.isbacked:
            raise OptionError("A backed object cannot be copied in memory. Leave out copy=True: X is not changed.")
        return adata.copy()
    if adata.is_view and adata.isbacked:
        raise OptionError("A view on a backed file cannot take results. Read these cells first: view.to_memory().")
    if adata.is_view:
        logger.info("the object is a view: results go to this subset, and the object it was cut from stays as it is")
    return adata


def announce_overwrite(adata: AnnData, slot: str, key: str) -> None:
    """Say that a key exists and is replaced, as scanpy does without a word."""
    if key in getattr(adata, slot):
        logger.info("%s[%r] exists and is overwritten", slot, key)


def chosen_key(key_added: str | None, default: str) -> str:
    """The key to write to, checked before the work: files take no slash in a key, and no empty one."""
    if key_added is None:
        return default
    if not key_added or "/" in key_added:
        raise OptionError(
            f"key_added={key_added!r} cannot be written to a file. Leave out slashes, for example 'X_mine'."
        )
    return key_added
