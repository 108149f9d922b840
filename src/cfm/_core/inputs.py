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
        msg = f"Expected an AnnData object, got {type(adata).__name__}. Read a file with anndata.read_h5ad(path) first."
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
        logger.info("the object is a view; anndata makes it a copy of its own when results are written")
    return adata


def announce_overwrite(adata: AnnData, slot: str, key: str) -> None:
    """Say that a key exists and is replaced, as scanpy does without a word."""
    if key in getattr(adata, slot):
        logger.info("%s[%r] exists and is overwritten", slot, key)
