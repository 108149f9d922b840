"""The modalities of a MuData object that a joint model trains on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core.errors import MissingKeyError, OptionError
from cfm._core.logging import logger
from cfm.counts import in_memory

from .features import NOUNS, Kind, keep_features, kinds_of_types, read_counts
from .pairing import check_pairing, names_of, rows_of

KINDS: tuple[Kind, ...] = get_args(Kind)

_NAMES: dict[Kind, frozenset[str]] = {
    "rna": frozenset({"rna", "gex", "geneexpression", "expression", "mrna", "scrna", "snrna", "transcriptome"}),
    "protein": frozenset(
        {"protein", "proteins", "prot", "adt", "adts", "cite", "ab", "abs", "antibody", "antibodies", "antibodycapture"}
    ),
    "atac": frozenset({"atac", "peak", "peaks", "scatac", "snatac", "chromatinaccessibility"}),
}
"""Names of modalities as people write them, in small letters and without signs."""

_OTHERS = frozenset({"hto", "htos", "hashtag", "hashtags", "hash", "hashing", "lmo", "cmo", "gdo", "sgrna", "grna", "guide",
                     "guides", "crispr", "multiplexing", "activity", "activities", "score", "scores"})  # fmt: skip
"""Words in names of what is no modality of ours, even where a name such as ``atac`` or ``ab`` stands beside them."""


@dataclass(frozen=True)
class Modality:
    """The counts of one modality.

    Parameters
    ----------
    kind
        What it is.
    name
        Its key in ``mdata.mod``.
    counts
        float32[n_measured, n_features]: whole numbers, of peaks as they were found. No zeros are stored.
    features
        str[n_features]: names of the columns.
    columns
        int64[n_features]: their column in ``mdata.mod[name]``.
    rows
        int64[n_measured]: row in ``mdata.obs`` of each cell, in the order of ``mdata.mod[name]``.
    """

    kind: Kind
    name: str
    counts: sp.csr_matrix
    features: NDArray[np.str_]
    columns: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Modalities:
    """What was measured of the cells of a MuData object.

    Parameters
    ----------
    n_cells
        Rows of ``mdata.obs``; a cell may be in no modality that was taken.
    parts
        The modalities, in the order rna, protein, atac.
    """

    n_cells: int
    parts: dict[Kind, Modality]

    @property
    def measured(self) -> NDArray[np.bool_]:
        """bool[n_cells, n_parts]: which cells are in which modality."""
        found = np.zeros((self.n_cells, len(self.parts)), bool)
        for column, part in enumerate(self.parts.values()):
            found[part.rows, column] = True
        return found


def find_modalities(
    mdata: Any, modalities: Mapping[str, str] | None = None, layers: Mapping[str, str] | None = None
) -> Modalities:
    """Read the counts of RNA, proteins and peaks, and see which cells have which.

    Cells of one modality only are as good as any: nothing has to be paired.

    Parameters
    ----------
    mdata
        A MuData object.
    modalities
        Which key of ``mdata.mod`` is what: ``{"rna": "gex", "protein": "adt"}``; others are left out. None takes common
        names, and where these say nothing 10x's ``feature_types``.
    layers
        Where the counts of a kind are, if not in X: ``{"protein": "counts"}``.

    Raises
    ------
    OptionError
        It cannot be told which modality is what, one has no cells or two cells of one name, the same cells have other
        names in each, or peaks are named in two styles.
    MissingKeyError
        No such modality or layer.
    CountsError
        Values that are no counts. The message has what they look like, and where counts are.
    """
    from mudata import MuData  # here, since `import cfm` shall not wait for it

    if not isinstance(mdata, MuData):
        raise OptionError(
            f"Expected a MuData object, got {type(mdata).__name__}. Put modalities together: "
            "mudata.MuData({'rna': RNA, 'protein': PROTEINS}), each an AnnData object with the same names of cells."
        )
    keys = _guess(mdata) if modalities is None else _check_keys(mdata, modalities)
    layers = dict(layers or {})
    if unknown := [kind for kind in layers if kind not in keys]:
        raise OptionError(f"layers= names {unknown}, and what is read is {list(keys)}: type layers={{{next(iter(keys))!r}: "
                          "'NAME'}.")  # fmt: skip
    rows = {}
    for kind, name in keys.items():
        if mdata.mod[name].n_obs == 0:
            others = {other: key for other, key in keys.items() if other != kind}
            hint = f" Leave it out: type modalities={others}." if others else ""
            raise OptionError(f"mdata.mod[{name!r}], read as {kind}, has no cells.{hint}")
        rows[kind] = rows_of(mdata, name)
    check_pairing({name: names_of(mdata.mod[name]) for name in keys.values()})
    parts: dict[Kind, Modality] = {}
    said = []
    for kind, name in keys.items():
        adata = mdata.mod[name]
        where, counts, columns = read_counts(adata, kind, name, layers.get(kind))
        counts, columns = keep_features(adata, kind, name, counts, columns)
        features = np.array(adata.var_names[columns], dtype=np.str_)
        parts[kind] = Modality(kind, name, counts, features, columns, rows[kind])
        said.append(
            f"{kind} is mdata.mod[{name!r}], {where} ({counts.shape[0]:,} cells, {counts.shape[1]:,} {NOUNS[kind]})"
        )
    found = Modalities(mdata.n_obs, parts)
    left = [key for key in mdata.mod.keys() if key not in keys.values()]
    n_measured = found.measured.sum(axis=1)
    logger.info(
        "modalities: %s; left out: %s; of %s cells, %s are in all of these and %s in none",
        ", ".join(said),
        ", ".join(map(repr, left)) or "none",
        f"{found.n_cells:,}",
        f"{int((n_measured == len(parts)).sum()):,}",
        f"{int((n_measured == 0).sum()):,}",
    )
    return found


def _check_keys(mdata: Any, modalities: Mapping[str, str]) -> dict[Kind, str]:
    """Keys by kind as the user gave them, in our order."""
    names = list(mdata.mod.keys())
    if unknown := [kind for kind in modalities if kind not in KINDS]:
        turned = {key: kind for kind, key in modalities.items()}
        hint = f"The kind comes first: type modalities={turned}." if set(turned) <= set(KINDS) else (
            f"Type for example modalities={{'rna': {names[0]!r}}}.")  # fmt: skip
        raise OptionError(f"modalities= has {unknown}, and kinds are {list(KINDS)}. {hint}")
    if not modalities:
        raise OptionError(f"modalities={{}} takes nothing. mdata.mod has {names}: {_example(names)}")
    for kind, key in modalities.items():
        if key not in mdata.mod:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise MissingKeyError(f"mdata.mod has no {key!r} to read as {kind}. {hint}It has {names}.")
        if not isinstance(mdata.mod[key], AnnData):
            raise OptionError(
                f"mdata.mod[{key!r}] is a {type(mdata.mod[key]).__name__}, and a modality has to be an AnnData object. Put "
                f"those inside it into one MuData: mudata.MuData(dict(mdata.mod[{key!r}].mod))"
            )
    if len(set(modalities.values())) < len(modalities):
        raise OptionError(f"modalities={dict(modalities)} reads one modality as two kinds. mdata.mod has {names}: give each "
                          "kind a key of its own.")  # fmt: skip
    return {kind: modalities[kind] for kind in KINDS if kind in modalities}


def _guess(mdata: Any) -> dict[Kind, str]:
    """Keys by kind, by name and by what 10x says of the columns."""
    names = list(mdata.mod.keys())
    found: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
    for key in names:
        if not isinstance(mdata.mod[key], AnnData):
            continue
        words = set(re.split(r"[^a-z0-9]+", key.lower()))
        if words & _OTHERS:
            continue
        by_name = _kinds_of_name(key, words)
        by_type = kinds_of_types(in_memory(mdata.mod[key].var))
        if by_name and by_type and not by_name & by_type:
            raise OptionError(
                f"mdata.mod[{key!r}] is {_or(by_name)} by its name, and {_or(by_type)} by its var['feature_types']. "
                f"{_example(names)}"
            )
        kinds = (by_name & by_type) or by_name or by_type
        if len(kinds) > 1:
            raise OptionError(f"mdata.mod[{key!r}] may be {_or(kinds)}. {_example(names)}")
        for kind in kinds:
            found[kind].append(key)
    if several := {kind: keys for kind, keys in found.items() if len(keys) > 1}:
        which = "; ".join(f"{kind} may be {_or(keys)}" for kind, keys in several.items())
        raise OptionError(f"It cannot be told which modality is what: {which}. {_example(names)}")
    if not any(found.values()):
        raise OptionError(
            f"No modality of RNA, proteins or peaks was recognised by name or by var['feature_types']. mdata.mod has {names}. "
            f"{_example(names)}"
        )
    return {kind: keys[0] for kind, keys in found.items() if keys}


def _kinds_of_name(key: str, words: set[str]) -> set[Kind]:
    """By the whole name, or else by the words in it."""
    whole = re.sub(r"[^a-z0-9]", "", key.lower())
    return {kind for kind in KINDS if whole in _NAMES[kind]} or {kind for kind in KINDS if words & _NAMES[kind]}


def _or(names: Any) -> str:
    return " or ".join(repr(name) for name in sorted(names))


def _example(names: list[str]) -> str:
    return (
        f"Type modalities={{'rna': KEY, 'protein': KEY, 'atac': KEY}} with keys out of {names}, and leave out kinds that "
        "there are not."
    )
