"""The columns of a modality that a joint model trains on, and their counts."""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core.errors import CountsError, MissingKeyError, OptionError
from cfm._core.logging import logger
from cfm._core.settings import settings
from cfm.counts import CountSource, Evidence, find_counts, find_normalized, in_memory

Kind = Literal["rna", "protein", "atac"]

NOUNS: dict[Kind, str] = {"rna": "genes", "protein": "proteins", "atac": "peaks"}
"""What the columns of a modality are."""

_NOT_COUNTS: dict[Kind, str] = {
    "rna": "A joint model trains on the counts of molecules, not on normalised values.",
    "protein": "A joint model trains on the counts of antibodies, not on values that dsb, CLR or a logarithm made of them.",
    "atac": "A joint model trains on the counts of fragments or cuts, not on TF-IDF.",
}

_FLAGS = ("isotype_control", "is_isotype_control", "is_isotype")
"""Columns of var that say which antibodies are isotype controls."""

_TRUTH = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}

# IgM, IgD and "anti-human IgG Fc" are markers of B cells: a bare IgG needs a species or the word control beside it.
_ISOTYPE = re.compile(
    r"isotype"
    r"|(?<![a-z0-9])(?:mouse|rat|rabbit|goat|ham(?:ster)?|ms|m|r)[ ._-]*igg"
    r"|(?<![a-z0-9])igg[1-4]"
    r"|(?<![a-z0-9])ig[gam](?:.*[^a-z])?(?:control|ctrl)",
    re.IGNORECASE,
)

_PEAK_STYLES = {
    "chr:start-end": re.compile(r"^.+:\d+-\d+$"),
    "chr-start-end": re.compile(r"^.+-\d+-\d+$"),
    "chr_start_end": re.compile(r"^.+_\d+_\d+$"),
}


def read_counts(
    adata: AnnData, kind: Kind, name: str, layer: str | None
) -> tuple[str, sp.csr_matrix, NDArray[np.int64]]:
    """Read the counts of a modality, all in memory.

    Parameters
    ----------
    adata
        The modality.
    kind
        What it is. Counts of rna are looked for in X, raw and the usual layers, as everywhere in this package; others are
        read from X.
    name
        Its key in ``mdata.mod``, for messages.
    layer
        Where to read instead.

    Returns
    -------
    Where the counts were; float32[n_measured, n_columns] without stored zeros; and the columns of `adata` that they are of:
    all, unless they were read from ``raw`` and it lacks some.

    Raises
    ------
    MissingKeyError
        No such layer.
    CountsError
        Something else than whole numbers from 0 on, or nothing but zeros.
    OptionError
        Columns of other kinds are among them.
    """
    place = f"mdata.mod[{name!r}]"
    _check_types(in_memory(adata.var), kind, place)
    names = [str(key) for key in adata.layers.keys() if key is not None]
    if layer is not None and layer not in {*names, "X"} and not (layer == "raw" and adata.raw is not None):
        raise MissingKeyError(
            f"{place} has no layer {layer!r}. It has {names}: type layers={{{kind!r}: 'NAME'}}, where 'X' takes X."
        )
    asked = layer if kind == "rna" else layer or "X"
    source: CountSource | None = None
    try:
        source = find_counts(adata, layer=asked)
        chunks = [chunk.counts.astype(np.float32, copy=False) for chunk in source.chunks(settings.chunk_cells)]
    except CountsError as error:
        found = _evidence(adata, asked, source, error)
        raise CountsError(
            f"{place} is read as {kind}. {found}\n{_NOT_COUNTS[kind]} {_elsewhere(adata, kind, place, names, asked)}"
        ) from None
    counts = sp.csr_matrix(sp.vstack(chunks, format="csr"))
    counts.sum_duplicates()
    counts.eliminate_zeros()
    if counts.nnz == 0:
        raise CountsError(
            f"{place} is read as {kind}, and {source.where} holds nothing but zeros. "
            f"{_elsewhere(adata, kind, place, names, asked)}"
        )
    columns = np.arange(adata.n_vars, dtype=np.int64)
    if source.where == "raw.X":
        counts, columns = _of_raw(counts, source, adata, place)
    return source.where, counts, columns


def keep_features(
    adata: AnnData, kind: Kind, name: str, counts: sp.csr_matrix, columns: NDArray[np.int64]
) -> tuple[sp.csr_matrix, NDArray[np.int64]]:
    """Leave out isotype controls and peaks that are open in no cell, and say so.

    Parameters
    ----------
    adata
        The modality.
    kind, name
        What it is, and its key in ``mdata.mod``.
    counts, columns
        As `read_counts` gives them.

    Raises
    ------
    OptionError
        Peaks are named in two styles, or a column of var says neither yes nor no.
    CountsError
        Nothing is left.
    """
    place = f"mdata.mod[{name!r}]"
    var = in_memory(adata.var).iloc[columns]
    seen = np.bincount(counts.indices, minlength=len(columns)) > 0
    kept = np.ones(len(columns), bool)
    if kind == "protein":
        kept = ~_isotypes(var, place)
        if not kept.any():
            raise CountsError(
                f"All {len(kept)} proteins of {place} look like isotype controls: {_some(var.index)}. If they are none, "
                f"type {place}.var['isotype_control'] = False."
            )
        if left := var.index[~kept].tolist():
            logger.info(
                "protein: isotype controls of %s are left out: %s. False in var['isotype_control'] keeps one",
                place,
                ", ".join(left),
            )
        if zero := var.index[kept & ~seen].tolist():
            logger.info("protein: zero in all cells of %s, and kept: %s", place, ", ".join(zero))
    elif kind == "atac":
        _check_peaks(var.index, place)
        kept = seen
        if not kept.all():
            logger.info("atac: %d of %d peaks of %s are open in no cell and are left out",
                        int((~kept).sum()), len(kept), place)  # fmt: skip
    return (counts if kept.all() else counts[:, np.flatnonzero(kept)]), columns[kept]


def kinds_of_types(var: pd.DataFrame) -> set[Kind]:
    """The kinds that 10x's column ``feature_types`` names."""
    if "feature_types" not in var:
        return set()
    types = {str(value) for value in var["feature_types"].unique()}
    return {kind for kind, value in FEATURE_TYPES.items() if value in types}


FEATURE_TYPES: dict[Kind, str] = {"rna": "Gene Expression", "protein": "Antibody Capture", "atac": "Peaks"}
"""How 10x calls the kinds."""


def _check_types(var: pd.DataFrame, kind: Kind, place: str) -> None:
    """Refuse a modality that was never split."""
    found = kinds_of_types(var)
    if kind in found and len(found) > 1:
        raise OptionError(
            f"{place} holds columns of several kinds: its var['feature_types'] has "
            f"{', '.join(repr(FEATURE_TYPES[other]) for other in sorted(found))}. Split it into modalities, one of each: "
            f"{place}[:, {place}.var['feature_types'] == {FEATURE_TYPES[kind]!r}].copy()"
        )


def _evidence(adata: AnnData, asked: str | None, source: CountSource | None, error: CountsError) -> str:
    """What was found where counts were expected."""
    if source is None:
        if asked is None:
            return str(error).rpartition("\n")[0]  # all places and what they hold; the last line is for AnnData
        if asked == "X" and adata.X is None:
            return "There is no X."
        source = find_normalized(adata, layer=asked)
    # All of it: a look at some cells may miss what is wrong.
    return f"{source.where} holds no counts: {Evidence.of(source.read(0, source.n_cells).data)}."


def _elsewhere(adata: AnnData, kind: Kind, place: str, names: list[str], asked: str | None) -> str:
    """What to type to have the counts."""
    for layer in ["X", *names, *(["raw"] if "raw" not in names and adata.raw is not None else [])]:
        try:
            source = find_counts(adata, layer=layer)
        except CountsError:
            continue
        if layer != asked and source.sample().maximum > 0:
            return f"{source.where} holds counts: type layers={{{kind!r}: {layer!r}}}."
    return (
        f"No other place in it holds counts (layers present: {names}). Put them there: "
        f"{place}.layers['counts'] = COUNTS, then type layers={{{kind!r}: 'counts'}}."
    )


def _of_raw(
    counts: sp.csr_matrix, source: CountSource, adata: AnnData, place: str
) -> tuple[sp.csr_matrix, NDArray[np.int64]]:
    """The columns of raw that `adata` has too, in the order of `adata`."""
    names, raw = pd.Index(adata.var_names), source.var.index
    if names.equals(raw):
        return counts, np.arange(len(names), dtype=np.int64)
    if not (names.is_unique and raw.is_unique):
        twice = (raw if names.is_unique else names)[(raw if names.is_unique else names).duplicated()][0]
        raise OptionError(
            f"The counts of {place} are in raw, whose columns are others than those of X and can be told by name only, and "
            f"a name stands twice: {twice!r}. Make the names unique before keeping raw: {place}.var_names_make_unique()"
        )
    position = raw.get_indexer(names)
    columns = np.flatnonzero(position >= 0).astype(np.int64)
    if not len(columns):
        raise CountsError(
            f"The counts of {place} are in raw, and none of its names are those of X: {_some(raw)} and {_some(names)}. "
            f"Put the counts of these columns into a layer: {place}.layers['counts'] = COUNTS"
        )
    if len(columns) < len(names):
        logger.info("%d of %d columns of %s are not in raw, where the counts are, and are left out",
                    len(names) - len(columns), len(names), place)  # fmt: skip
    return counts[:, position[columns]], columns


def _isotypes(var: pd.DataFrame, place: str) -> NDArray[np.bool_]:
    """Which proteins are isotype controls: by a column of var, and where it says nothing by name."""
    by_name = [_ISOTYPE.search(str(name)) is not None for name in var.index]
    flag = next((column for column in _FLAGS if column in var), None)
    if flag is None:
        return np.array(by_name, bool)
    found: list[bool] = []
    for value, guess in zip(var[flag], by_name, strict=True):
        said: bool | None = guess if pd.isna(value) else _TRUTH.get(str(value).lower())
        if said is None:
            raise OptionError(
                f"{place}.var[{flag!r}] says which proteins are isotype controls, and holds {value!r}. Make it True or "
                "False, or give the column another name."
            )
        found.append(said)
    return np.array(found, bool)


def _check_peaks(names: pd.Index, place: str) -> None:
    """Two styles in one matrix come from two callers of peaks, and the same peak would be two columns."""
    examples: dict[str, str] = {}
    for name in map(str, names):
        style = next((style for style, pattern in _PEAK_STYLES.items() if pattern.match(name)), None)
        if style is not None:
            examples.setdefault(style, name)
    if len(examples) > 1:
        raise OptionError(
            f"Peaks of {place} are named in {len(examples)} styles: {', '.join(map(repr, examples.values()))}. Name all in "
            f"one: {place}.var_names = {place}.var_names.str.replace("
            r"r'^(.+)[:_-](\d+)[_-](\d+)$', r'\1:\2-\3', regex=True)"
        )


def _some(names: Any, n: int = 3) -> str:
    return ", ".join(repr(str(name)) for name in names[:n]) + (", ..." if len(names) > n else "")
