"""The batch of each cell of a MuData object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cfm._core.errors import MissingKeyError, OptionError
from cfm._core.logging import logger
from cfm.counts import in_memory

from .batches import as_text
from .pairing import rows_of


def batch_column(mdata: Any, batch_key: str) -> pd.Series:
    """The batch of each cell, as text, by the names of ``mdata.obs``.

    It is read from ``mdata.obs``, and for cells without a value there from the modalities: from their own column, or from
    the copy that MuData puts into ``mdata.obs`` as ``"rna:batch"``.

    Parameters
    ----------
    mdata
        A MuData object.
    batch_key
        ``"batch"`` for what all modalities say, or ``"rna:batch"`` for one of them.

    Raises
    ------
    MissingKeyError
        No such column, or cells without a value in any.
    OptionError
        Modalities say different things of a cell, or numbers with fractions.
    """
    found = pd.Series(None, index=range(mdata.n_obs), dtype=object)
    looked = []
    if batch_key in mdata.obs:
        looked = [f"mdata.obs[{batch_key!r}]"]
        found = as_text(mdata.obs[batch_key], looked[0])
    open_ = found.isna()
    if open_.any():
        columns = dict(_batch_columns(mdata, batch_key))
        for column in columns.values():
            both = open_ & found.notna() & column.notna()
            if (apart := both & (found != column)).any():
                raise OptionError(_disagreement(mdata, batch_key, columns, np.flatnonzero(apart)))
            found = found.where(found.notna(), column)
        looked += columns
    if not looked:
        has = [f"{key!r} has {list(map(str, in_memory(mdata.mod[key].obs).columns))}" for key in mdata.mod.keys()]
        raise MissingKeyError(
            f"Neither mdata.obs nor the obs of a modality has {batch_key!r}. mdata.obs has "
            f"{list(map(str, mdata.obs.columns))}, {', '.join(has)}: type batch_key=."
        )
    if len(without := np.flatnonzero(found.isna())):
        raise MissingKeyError(
            f"{len(without):,} of {mdata.n_obs:,} cells have no value of {batch_key!r}, such as "
            f"{', '.join(repr(mdata.obs_names[i]) for i in without[:3])}. Looked at {', '.join(looked)}. Put one value for "
            f"each cell into mdata.obs[{batch_key!r}], or leave these cells out."
        )
    logger.info("batches: read from %s", ", ".join(looked))
    return pd.Series(found.to_numpy(), index=mdata.obs_names, name=batch_key)


def _batch_columns(mdata: Any, batch_key: str) -> Iterator[tuple[str, pd.Series]]:
    """What each modality says of each row of ``mdata.obs``, and where it stands."""
    names = list(mdata.mod.keys())
    one = next((name for name in names if batch_key.startswith(f"{name}:")), None)
    key = batch_key if one is None else batch_key.removeprefix(f"{one}:")
    for name in names if one is None else [one]:
        obs = in_memory(mdata.mod[name].obs)
        if key in obs:
            where = f"mdata.mod[{name!r}].obs[{key!r}]"
            column = pd.Series(None, index=range(mdata.n_obs), dtype=object)
            column.iloc[rows_of(mdata, name)] = as_text(obs[key], where).to_numpy()
            yield where, column
        elif f"{name}:{key}" in mdata.obs:
            where = f"mdata.obs[{f'{name}:{key}'!r}]"
            yield where, as_text(mdata.obs[f"{name}:{key}"], where)


def _disagreement(mdata: Any, batch_key: str, columns: dict[str, pd.Series], cells: NDArray[np.intp]) -> str:
    """What is said of the first of `cells`, and by which column."""
    said = "; ".join(
        f"{mdata.obs_names[i]!r}: "
        + ", ".join(f"{column[i]!r} in {where}" for where, column in columns.items() if pd.notna(column[i]))
        for i in cells[:3]
    )
    return (
        f"Modalities give {len(cells):,} of {mdata.n_obs:,} cells different values of {batch_key!r}: {said}. Put the right "
        f"one into mdata.obs[{batch_key!r}], or name one modality's: batch_key='NAME:{batch_key}'."
    )
