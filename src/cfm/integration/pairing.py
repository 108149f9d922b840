"""Which cells of a MuData were measured in which modality, and names that keep the same cells apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cfm._core.errors import OptionError
from cfm._core.logging import logger

_MODALITY = r"(?:sci[_.-]?|sc|sn)?(?:rna|gex|atac|peaks|adt|prot|protein|cite|ab)(?:[_.-]?seq)?"

_SPELLINGS = (
    (r"(?:-\d+)+$", ""),
    (rf"(?i)^{_MODALITY}[^A-Za-z0-9]+|[^A-Za-z0-9]+{_MODALITY}$", ""),
    (rf"(?i)^{_MODALITY}[^A-Za-z0-9]+|[^A-Za-z0-9]+{_MODALITY}$|(?:-\d+)+$", ""),
    (r"[^A-Za-z0-9]+", "_"),
    (r"^(?:.*[^ACGTN])?([ACGTN]{4,}).*$", r"\1"),
)
"""What people do to names of cells, from the least to the most: each is a pattern and what to put in its place."""

_BARCODE = re.compile("[ACGTN]{4,}")

_FEW = 0.02
_MANY = 0.2
"""Shares of the smaller modality. Of thousands of cells of two samples, 1 in 100 has a barcode of the other by chance: fewer
pairs than `_FEW` may be such, and a spelling that makes `_MANY` is no chance.
"""


# Not mdata.update(), which gives up where names changed and their number too.
_AGAIN = "mdata = mudata.MuData(dict(mdata.mod))"


def names_of(data: Any) -> pd.Index:
    """The names of cells as text."""
    return pd.Index(data.obs_names).astype(str)


def rows_of(mdata: Any, name: str) -> NDArray[np.int64]:
    """Row in ``mdata.obs`` of each cell of a modality, in the order of the modality.

    Parameters
    ----------
    mdata
        A MuData object.
    name
        Key in ``mdata.mod``.

    Raises
    ------
    OptionError
        A name stands for two cells, or `mdata` does not know a cell of the modality.
    """
    names, every = names_of(mdata.mod[name]), names_of(mdata)
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise OptionError(
            f"In mdata.mod[{name!r}], {len(twice):,} obs names stand for several cells, such as {twice[0]!r}: they cannot be "
            "told apart in other modalities. Put the sample in front of the names, in every modality in the same way: "
            f"mdata.mod[{name!r}].obs_names = mdata.mod[{name!r}].obs['SAMPLE'].astype(str) + '_' + "
            f"mdata.mod[{name!r}].obs_names, then {_AGAIN}"
        )
    rows = np.full(len(names), -1, np.int64)
    if name in mdata.obsmap:
        # The number of the row in the modality, from 1; 0 where the cell is not in it. Of floats in some releases.
        position = np.asarray(mdata.obsmap[name]).ravel().astype(np.int64)
        present = np.flatnonzero(position)
        if position.max(initial=0) <= len(names) and len(position) == len(every):
            rows[position[present] - 1] = present
    if (rows < 0).any() or not (every[rows] == names).all():
        # A modality was replaced or cut after the object was made.
        rows = (every.get_indexer(names) if every.is_unique else np.full(len(names), -1)).astype(np.int64)
    if (rows < 0).any():
        raise OptionError(
            f"mdata does not know {int((rows < 0).sum()):,} of {len(names):,} cells of mdata.mod[{name!r}], such as "
            f"{names[int(np.argmax(rows < 0))]!r}: the modality was changed after mdata was made. Type "
            f"mdata.update() or, where that gives up, {_AGAIN}."
        )
    return rows


def check_pairing(names: Mapping[str, pd.Index]) -> None:
    """Refuse modalities with the same cells under other names, and warn of those that share no cell.

    Parameters
    ----------
    names
        The names of the cells of each modality, by its key in ``mdata.mod``; unique in each.

    Raises
    ------
    OptionError
        The names of two modalities share nothing, and are the same barcodes once a prefix or a suffix is cut.
    """
    if len(names) < 2:
        return
    alone = [
        key
        for key, index in names.items()
        if not any(index.isin(other).any() for name, other in names.items() if name != key)
    ]
    _warn_of_chance(names)
    if not alone and all(index.str.fullmatch(r"\d+").all() for index in names.values()):
        logger.warning(
            "the names of the cells are numbers in all of %s: the first cell of one is taken for the first of the others. If "
            "they are other cells, give them other obs_names and make the object again: %s",
            ", ".join(map(repr, names)),
            _AGAIN,
        )
    if not alone:
        return
    for key in alone:
        for other in names:
            if other != key and (found := _spelt_apart(names, key, other)):
                first, second, pattern, instead = found
                raise OptionError(
                    f"No cell of mdata.mod[{key!r}] has the name of a cell of mdata.mod[{other!r}], and yet they look like the "
                    f"same barcodes: {first!r} and {second!r}. Name them alike: for name in {list(names)}: "
                    f"mdata.mod[name].obs_names = mdata.mod[name].obs_names.str.replace(r'{pattern}', r'{instead}', regex=True)"
                    f" and then {_AGAIN}; what stands in mdata.obs alone is lost. If they are other cells, number them: mdata.mod[{key!r}].obs_names = "
                    f"[f'{key}_{{i}}' for i in range(mdata.mod[{key!r}].n_obs)] and then {_AGAIN}"
                )
    examples = " and ".join(f"{index[0]!r} ({key})" for key, index in names.items())
    logger.warning(
        "%s: no cell is paired with one of another modality (names such as %s). Only features or batches that modalities "
        "share could connect them. If they are the same cells, give them the same obs_names and make the object again: %s",
        "nothing is paired" if len(alone) == len(names) else ", ".join(map(repr, alone)),
        examples,
        _AGAIN,
    )


def _warn_of_chance(names: Mapping[str, pd.Index]) -> None:
    """Say so if two modalities share as few cells as barcodes of two samples share by chance."""
    for one, two in combinations(names, 2):
        n_shared = int(names[one].isin(names[two]).sum())
        n_cells = min(len(names[one]), len(names[two]))
        if 0 < n_shared < _FEW * n_cells:
            logger.warning(
                "only %s of %s cells that could be in both %r and %r are, by their names. Barcodes of two samples are the same "
                "by chance about as often: if these are other cells, put the sample in front of the obs_names and make the object "
                "again: %s",
                f"{n_shared:,}",
                f"{n_cells:,}",
                one,
                two,
                _AGAIN,
            )


def _spelt_apart(names: Mapping[str, pd.Index], key: str, other: str) -> tuple[str, str, str, str] | None:
    """A name of each for the same barcode, and the replacement that makes them, and all others, alike."""
    one, two = names[key], names[other]
    for pattern, instead in _SPELLINGS:
        # In all modalities, so that cells that are paired stay so.
        spelt = {name: index.str.replace(pattern, instead, regex=True) for name, index in names.items()}
        if not all(index.is_unique for index in spelt.values()):
            continue
        first, second = spelt[key], spelt[other]
        # Numbers pair with numbers whatever the cells are; barcodes do not.
        shared = first[first.isin(second) & first.str.contains(_BARCODE)]
        if len(shared) and len(shared) >= _MANY * min(len(one), len(two)):
            return str(one[first.get_loc(shared[0])]), str(two[second.get_loc(shared[0])]), pattern, instead
    return None
