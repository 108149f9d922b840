"""The batch of each cell, and what else changes from batch to batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cfm._core.errors import MissingKeyError, OptionError
from cfm._core.logging import logger

FEW_CELLS = 10
"""A batch with fewer is named in a warning: its own mean says little."""

_NAMED = 10

_MANY = 50
"""A column of ``obs`` with more categories is no condition."""


@dataclass(frozen=True)
class Batches:
    """The batch of each cell, and the condition that is to stay.

    Parameters
    ----------
    key
        Column of ``obs`` with the batch.
    codes
        int64[n_cells]: number of the batch, in the order of `names`.
    names
        The batches, sorted.
    strata
        int64[n_cells]: cells of different numbers are never aligned with each other. All 0 without a condition.
    """

    key: str
    codes: NDArray[np.int64]
    names: list[str]
    strata: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64]) -> Batches:
        """Those of some cells."""
        return Batches(self.key, self.codes[rows], self.names, self.strata[rows])

    def to_align(self) -> Iterator[NDArray[np.int64]]:
        """int64[n]: the cells of each stratum that has several batches."""
        for stratum in np.unique(self.strata):
            cells = np.flatnonzero(self.strata == stratum)
            if len(np.unique(self.codes[cells])) > 1:
                yield cells

    def categories(self) -> pd.Categorical[str]:
        """The batch of each cell by name."""
        return pd.Categorical.from_codes(self.codes, categories=pd.Index(self.names))


def find_batches(obs: Any, batch_key: str, condition_key: str | None = None, *, alone: bool = False) -> Batches:
    """Read the batch column, and say which batches a condition leaves nothing to compare with.

    Parameters
    ----------
    obs
        Of the cells, a data frame or a lazy one.
    batch_key
        Column of text, categories, whole numbers or booleans.
    condition_key
        A column of the same kind, whose differences are to stay: batches are then aligned within a condition only.
    alone
        Whether a single batch will do, since it joins others elsewhere.

    Raises
    ------
    MissingKeyError
        No such column, or cells without a value in it.
    OptionError
        Numbers with fractions, a single batch, or no batch of three cells.
    """
    obs = in_memory(obs)
    batch = _column(obs, batch_key, "batch_key")
    names = sorted(batch.unique())
    if len(names) < 2 and not alone:
        raise OptionError(
            f"obs[{batch_key!r}] has one batch, {names[0]!r}, in all {len(obs):,} cells: there is nothing to integrate. "
            "cfm.tl.embed(adata) gives the vectors."
        )
    sizes = batch.value_counts()
    if sizes.max() < 3 and not alone:
        raise OptionError(
            f"obs[{batch_key!r}] has {len(names):,} batches for {len(obs):,} cells, none with three: it looks like a column "
            "of barcodes. Name the column of the experiment or donor with batch_key=."
        )
    if few := sorted(sizes.index[sizes < FEW_CELLS]):
        logger.warning(
            "batches of fewer than %d cells in obs[%r]: %s. What is special about them cannot be told from chance; merge "
            "them with another batch, or leave them out",
            FEW_CELLS,
            batch_key,
            ", ".join(f"{name!r} ({sizes[name]})" for name in few[:_NAMED])
            + (f" and {len(few) - _NAMED:,} more" if len(few) > _NAMED else ""),
        )
    codes = batch.map({name: i for i, name in enumerate(names)}).to_numpy(np.int64)
    strata = np.zeros(len(obs), np.int64)
    if condition_key is not None:
        condition = _column(obs, condition_key, "condition_key")
        strata = pd.factorize(condition, sort=True)[0].astype(np.int64)
        _say_what_stays(batch, condition, batch_key, condition_key)
    return Batches(batch_key, codes, names, strata)


def warn_of_conditions(obs: Any, batches: Batches) -> None:
    """Name columns of ``obs`` with one value in each batch: whatever they stand for goes with the batches."""
    obs = in_memory(obs)
    same: list[str] = []
    for name in obs.columns:
        values = obs[name]
        if name == batches.key or values.dtype.kind in "f" or values.isna().any():
            continue
        values = values.astype(str)
        if 2 <= values.nunique() <= _MANY and (values.groupby(batches.codes).nunique() == 1).all():
            same.append(f"{name!r} ({values.nunique()} values)")
    if same:
        logger.warning(
            "each batch of obs[%r] has one value of %s: what differs between these is taken out with the batches. If one of "
            "them is what you study, name it with condition_key=, and it stays",
            batches.key,
            " and of ".join(same),
        )


def in_memory(obs: Any) -> pd.DataFrame:
    """A data frame, read if it is a lazy one."""
    return obs if isinstance(obs, pd.DataFrame) else obs.to_memory()


def as_text(values: pd.Series, where: str, argument: str = "batch_key") -> pd.Series:
    """Text, and None where there is no value; whole numbers that became floats beside a missing value are whole again."""
    values = values.astype(values.cat.categories.dtype) if isinstance(values.dtype, pd.CategoricalDtype) else values
    known = values.dropna()
    if known.dtype.kind == "f":
        if (known % 1 != 0).any():
            raise OptionError(
                f"{where} holds numbers with fractions, and {argument}= takes names or whole numbers. If they are names, "
                f"type {where} = {where}.astype(str)."
            )
        known = known.astype(np.int64)
    text = pd.Series(None, index=range(len(values)), dtype=object)
    text.iloc[np.flatnonzero(values.notna())] = known.astype(str).to_numpy(dtype=object)
    return text


def _column(obs: pd.DataFrame, key: str, argument: str) -> pd.Series:
    """A column of ``obs`` as text."""
    if not isinstance(key, str):
        raise OptionError(
            f"{argument}= takes the name of one column of obs, and {key!r} is none. To join two, type "
            "adata.obs['both'] = adata.obs['one'].astype(str) + ' ' + adata.obs['other'].astype(str)."
        )
    if key not in obs:
        raise MissingKeyError(f"obs has no {key!r}. It has {[str(c) for c in obs.columns]}: type {argument}=.")
    values = obs[key]
    if values.isna().any():
        raise MissingKeyError(
            f"obs[{key!r}] has no value for {int(values.isna().sum()):,} of {len(values):,} cells. Fill it, or leave "
            "these cells out."
        )
    return as_text(values, f"adata.obs[{key!r}]", argument).set_axis(obs.index)


def _say_what_stays(batch: pd.Series, condition: pd.Series, batch_key: str, condition_key: str) -> None:
    """Say which batches cannot be told from a condition."""
    table = pd.crosstab(condition, batch)
    per_condition = (table > 0).sum(axis=1)
    nested = int(((table > 0).sum(axis=0) == 1).sum())
    alone = sorted(per_condition.index[per_condition == 1])
    if alone:
        logger.warning(
            "of the %d values of obs[%r], %d have a single batch of obs[%r] (%s): there the batch cannot be told from the "
            "condition, and nothing is taken out",
            len(per_condition),
            condition_key,
            len(alone),
            batch_key,
            ", ".join(map(repr, alone)),
        )
    logger.info(
        "batches of obs[%r] are aligned within each value of obs[%r]; %d of %d batches have cells of one value only",
        batch_key,
        condition_key,
        nested,
        table.shape[1],
    )
