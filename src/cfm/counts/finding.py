"""Finding the raw counts of an AnnData object."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core.errors import CountsError, MissingKeyError
from cfm._core.logging import logger

from .evidence import Evidence
from .reading import row_reader, view_reader
from .source import CountSource

COUNT_LAYERS = ("counts", "raw", "raw_counts")
"""Names under which people keep raw counts, in the order in which they are tried."""


def find_counts(adata: AnnData, *, layer: str | None = None) -> CountSource:
    """Find the raw counts: `layer` if given, else the first of X, raw.X and the usual layers that holds counts.

    Parameters
    ----------
    adata
        In memory, backed, lazy or a view.
    layer
        Look only at this layer; ``"X"`` looks only at X, and ``"raw"``, where no layer is called so, only at raw.

    Raises
    ------
    MissingKeyError
        The layer does not exist.
    CountsError
        Nothing that was looked at holds counts. The message has the evidence for each place.
    """
    seen: list[tuple[str, Evidence]] = []
    empty: CountSource | None = None
    for source in _places(adata, layer):
        evidence = source.sample()
        if evidence.is_counts and evidence.maximum > 0:
            if seen:
                logger.info("counts: took %s, since %s holds no counts", source.where, seen[0][0])
            if layer is None:
                _mention_raw(adata, source)
            return source
        if evidence.is_counts and empty is None:
            # Nothing but zeros so far: a placeholder, or cells without counts. Another place may say more.
            empty = source
        seen.append((source.where, evidence))
    if empty is not None:
        return empty
    raise CountsError(_nothing_found(adata, layer, seen))


def find_normalized(adata: AnnData, *, layer: str | None = None) -> CountSource:
    """Where normalised values are, for models that were told to read such: `layer` if given, else X.

    Raises
    ------
    MissingKeyError
        The layer does not exist.
    CountsError
        There is no X, or it holds counts.
    """
    source = next(_places(adata, layer or "X"), None)
    if source is None:
        raise CountsError(
            f"There is no X. Name the layer with normalised values: layer=, one of {_layer_names(adata)}."
        )
    evidence = source.sample()
    if evidence.is_counts and evidence.maximum > 1:
        raise CountsError(
            f"{source.where} holds counts, and the model was told to take normalised values as they are: {evidence}. Leave "
            "that option out, or name the layer with normalised values: layer=."
        )
    return replace(source, whole=False)


def _mention_raw(adata: AnnData, taken: CountSource) -> None:
    """Say where more genes are: people keep all of them in raw, and cut the object to variable ones."""
    raw = _whole(adata).raw
    if taken.where == "raw.X" or raw is None or raw.X is None or raw.n_vars < 1.5 * len(taken.var):
        return
    if _source(adata, "raw.X", raw.var, lambda whole: whole.raw.X).sample().is_counts:
        logger.info("counts: raw.X holds counts of %s genes, and %s of %s. layer='raw' reads those of raw",
                    f"{raw.n_vars:,}", taken.where, f"{len(taken.var):,}")  # fmt: skip


def _places(adata: AnnData, layer: str | None) -> Iterator[CountSource]:
    # anndata >= 0.13 lists X among the layers, under the key None.
    if layer is not None and layer != "X":
        if layer == "raw" and layer not in adata.layers and adata.raw is not None:
            yield _source(adata, "raw.X", _whole(adata).raw.var, lambda whole: whole.raw.X)
            return
        if layer not in adata.layers:
            near = difflib.get_close_matches(layer, _layer_names(adata), n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            msg = f"adata.layers has no {layer!r}. {hint}It has {_layer_names(adata)}; layer='X' takes X."
            raise MissingKeyError(msg)
        yield _source(adata, f"layers[{layer!r}]", adata.var, lambda whole: whole.layers[layer])
        return
    whole = _whole(adata)
    if whole.X is not None:
        yield _source(adata, "X", adata.var, lambda whole: whole.X)
    if layer == "X":
        return
    if whole.raw is not None and whole.raw.X is not None:
        yield _source(adata, "raw.X", whole.raw.var, lambda whole: whole.raw.X)
    for name in COUNT_LAYERS:
        if name in adata.layers:
            yield from _places(adata, name)


def _whole(adata: AnnData) -> Any:
    """The object that a view looks at, which is never a view itself; any other object as it is."""
    return adata._adata_ref if adata.is_view else adata


def _source(adata: AnnData, where: str, var: object, matrix_of: Callable[[AnnData], Any]) -> CountSource:
    whole = _whole(adata)
    matrix = matrix_of(whole)
    if adata.is_view:
        rows = _positions(adata._oidx, whole.n_obs)
        # Columns that were cut from X are still in raw.
        columns = np.arange(matrix.shape[1]) if where == "raw.X" else _positions(adata._vidx, whole.n_vars)
        read = view_reader(matrix, rows, columns)
    else:
        read = row_reader(matrix)
    return CountSource(where, in_memory(var), adata.n_obs, read)


def _positions(index: Any, length: int) -> NDArray[np.intp]:
    """The positions that an index of a view stands for: a slice, an array, or an object that holds one."""
    return np.arange(length)[index if isinstance(index, slice) else np.asarray(index)]


def in_memory(var: object) -> pd.DataFrame:
    """`var` in memory: lazily read objects hold a frame that reads on request."""
    return var if isinstance(var, pd.DataFrame) else var.to_memory()  # type: ignore[attr-defined,no-any-return]


def _layer_names(adata: AnnData) -> list[str]:
    return [str(name) for name in adata.layers.keys() if name is not None]


def _nothing_found(adata: AnnData, layer: str | None, seen: list[tuple[str, Evidence]]) -> str:
    lines = ["No raw counts found. Looked at:", *(f"  {where}: {evidence}" for where, evidence in seen)]
    if not seen:
        lines.append("  X: there is none")
    if layer is None:
        tried = ", ".join(repr(name) for name in COUNT_LAYERS)
        lines.append(f"  layers: none of {tried} holds counts (layers present: {_layer_names(adata)})")
    lines.append(
        "Models read raw counts. Keep them before normalising: adata.layers['counts'] = adata.X.copy(), then "
        "sc.pp.normalize_total. If they stand in another layer, name it: layer='NAME'."
    )
    return "\n".join(lines)
