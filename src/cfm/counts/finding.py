"""Finding the raw counts of an AnnData object."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from anndata import AnnData

from cfm._core.errors import CountsError, MissingKeyError
from cfm._core.logging import logger

from .evidence import Evidence
from .source import CountSource, row_reader

COUNT_LAYERS = ("counts", "raw", "raw_counts")
"""Names under which people keep raw counts, in the order in which they are tried."""


def find_counts(adata: AnnData, *, layer: str | None = None) -> CountSource:
    """Find the raw counts: `layer` if given, else the first of X, raw.X and the usual layers that holds counts.

    Parameters
    ----------
    adata
        In memory, backed, lazy or a view.
    layer
        Look only at this layer; ``"X"`` looks only at X.

    Raises
    ------
    MissingKeyError
        The layer does not exist.
    CountsError
        Nothing that was looked at holds counts. The message has the evidence for each place.
    """
    seen: list[tuple[str, Evidence]] = []
    for source in _places(adata, layer):
        evidence = source.sample()
        if evidence.is_counts:
            if seen:
                logger.info("counts: took %s, since %s holds no counts", source.where, seen[0][0])
            return source
        seen.append((source.where, evidence))
    raise CountsError(_nothing_found(adata, layer, seen))


def _places(adata: AnnData, layer: str | None) -> Iterator[CountSource]:
    if layer is not None and layer != "X":
        if layer not in adata.layers:
            msg = f"adata.layers has no {layer!r}. It has {_layer_names(adata)}; layer='X' takes X."
            raise MissingKeyError(msg)
        yield _source(adata, f"layers[{layer!r}]", layer)
        return
    if adata.X is not None:
        yield _source(adata, "X", None)
    if layer == "X":
        return
    if adata.raw is not None:
        raw = adata.raw
        yield CountSource("raw.X", pd.DataFrame(raw.var), adata.n_obs, row_reader(raw.X))
    for name in COUNT_LAYERS:
        if name in adata.layers:
            yield _source(adata, f"layers[{name!r}]", name)


def _source(adata: AnnData, where: str, layer: str | None) -> CountSource:
    if adata.is_view and adata.isbacked:
        # The X of a view on a backed file is read whole when touched: cut the rows first, then touch it.
        def read(start: int, stop: int) -> object:
            part = adata[start:stop]
            return part.X if layer is None else part.layers[layer]
    else:
        read = row_reader(adata.X if layer is None else adata.layers[layer])
    return CountSource(where, _frame(adata.var), adata.n_obs, read)


def _frame(var: object) -> pd.DataFrame:
    """`var` in memory: lazily read objects hold a frame that reads on request."""
    return var if isinstance(var, pd.DataFrame) else var.to_memory()  # type: ignore[attr-defined,no-any-return]


def _layer_names(adata: AnnData) -> list[str]:
    # anndata >= 0.13 lists X among the layers, under the key None.
    return [str(name) for name in adata.layers if name is not None]


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
