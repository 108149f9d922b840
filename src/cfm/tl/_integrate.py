"""Cells of several batches in one space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cfm import infer, models
from cfm._core import records
from cfm._core.errors import MissingKeyError, OptionError
from cfm._core.inputs import announce_overwrite, chosen_key, writable
from cfm._core.logging import logger
from cfm._core.settings import settings
from cfm.counts import find_counts
from cfm.integration import align, build_space, expression, find_batches, warn_of_conditions

Method = Literal["auto", "harmony", "zero_shot"]
METHODS: tuple[Method, ...] = ("auto", "harmony", "zero_shot")


def integrate(
    adata: AnnData,
    *,
    batch_key: str,
    condition_key: str | None = None,
    model: str | Path = "cfm-mini",
    method: Method = "auto",
    use_rep: str | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    gene_table: str | Path | Mapping[str, str] | None = None,
    device: str | None = None,
    seed: int = 0,
    key_added: str | None = None,
    copy: bool = False,
    **options: Any,
) -> AnnData | None:
    """Put cells of several batches into one space, in which like cells lie together whatever their batch.

    Labels are never looked at. What is special about a batch is taken out, be it chemistry or biology: if batches
    also differ in something that you study (a treatment, a disease), name it with `condition_key`.

    Parameters
    ----------
    adata
        Cells x genes with raw counts somewhere. X, layers, raw and var are not changed.
    batch_key
        Column of ``obs`` with the batch: names, categories or whole numbers.
    condition_key
        Column of ``obs`` whose differences are to stay. Batches are then aligned within each of its values only; where a
        value has a single batch, nothing is taken out, and a warning says so.
    model
        A name in `cfm.models.list`, or a folder that holds a checkpoint.
    method
        ``"auto"``: Harmony on 20 principal components of the counts, beside the vectors of the model if these help (see
        below). ``"harmony"``: Harmony on the vectors of the model alone. ``"zero_shot"``: the vectors as they are, for
        comparison; only what the model does not see is taken out.
    use_rep
        Key in ``obsm`` with vectors to take in the place of the model's, such as ``"X_cfm"`` from an earlier call.
    layer, gene_column, species, gene_table, device
        As in `cfm.tl.embed`.
    seed
        For the clusters that Harmony starts from.
    key_added
        Key of the result and of the record instead of ``"X_cfm_integrated"``.
    copy
        Return a copy with the result instead of writing to `adata`.
    **options
        Options of the model's family, as in `cfm.tl.embed`.

    Returns
    -------
    None, or with ``copy=True`` the new object. Written:

    ``obsm["X_cfm_integrated"]`` : float32, n_obs x dim
        The vectors. A cell without counts gets what its batch's correction makes of a zero vector.
    ``uns["cfm"]["X_cfm_integrated"]`` : dict
        What was used, and for ``"auto"`` what it chose and by which numbers.

    Raises
    ------
    MissingKeyError
        No such column of ``obs``, key in ``obsm`` or layer, or cells without a batch.
    OptionError
        A single batch, a batch column with fractions, or no such method.
    CountsError, GeneMatchError, UnknownModelError, CheckpointError, DownloadError, UnsupportedOutput
        As in `cfm.tl.embed`.

    Notes
    -----
    ``"auto"`` decides without labels. Half of the 2,000 most variable genes is put aside; the question is how much of
    their variance the 15 nearest neighbours of a cell explain, once neighbours in the principal components of the other
    half, once neighbours by the model, both within batches. The model takes part if it explains at least 0.7 of what the
    components do. So a model that does not know these cells, such as cfm-mini on cell lines, is left out.

    References
    ----------
    Korsunsky et al. 2019, "Fast, sensitive and accurate integration of single-cell data with Harmony".

    Examples
    --------
    >>> import cfm, numpy as np
    >>> adata = cfm.datasets.pbmc68k()
    >>> adata.obs["half"] = np.where(np.arange(adata.n_obs) % 2, "odd", "even")
    >>> cfm.tl.integrate(adata, batch_key="half")
    >>> adata.obsm["X_cfm_integrated"].shape[0]
    700
    """
    adata = writable(adata, copy)
    key = chosen_key(key_added, records.INTEGRATED)
    if method not in METHODS:
        raise OptionError(f"method={method!r}: type one of {', '.join(map(repr, METHODS))}.")
    batches = find_batches(adata.obs, batch_key, condition_key)
    if condition_key is None and method != "zero_shot":
        warn_of_conditions(adata.obs, batches)
    if use_rep is None:
        vectors, facts = _embedded(
            adata, model, device, options, layer=layer, gene_column=gene_column, species=species, gene_table=gene_table
        )
    else:
        vectors, facts = _kept(adata, use_rep, options), {"use_rep": use_rep}
    if method == "auto":
        source = find_counts(adata, layer=layer)
        space = build_space(expression(source, batches).values, vectors, batches)
        facts = facts | {"parts": space.parts, "explained": space.explained, "counts": source.where}
        vectors = space.vectors
    if method != "zero_shot":
        vectors = align(vectors, batches, seed=seed)
    logger.info("integrate: %s over %d batches in obs[%r]", method, len(batches.names), batch_key)

    announce_overwrite(adata, "obsm", key)
    adata.obsm[key] = np.asarray(vectors, np.float32)
    facts = facts | {"method": method, "batch_key": batch_key, "condition_key": condition_key, "seed": seed}
    records.write_record(adata.uns, key, records.make_record("cfm.tl.integrate", **facts))
    return adata if copy else None


def _embedded(
    adata: AnnData, model: str | Path, device: str | None, options: dict[str, Any], **where: Any
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Vectors of a model, and what was used."""
    loaded = models.load(model, device=device, **options)
    prepared = infer.prepare(adata, loaded, **where)
    result = infer.run(loaded, prepared.stream, adata.n_obs, settings.pack_tokens)
    logger.info("integrate: %s", prepared)
    return result.vectors, prepared.facts() | {"options": options or None}


def _kept(adata: AnnData, use_rep: str, options: dict[str, Any]) -> NDArray[np.float32]:
    """Vectors that the object holds."""
    if options:
        raise OptionError(f"use_rep={use_rep!r} runs no model: leave out {', '.join(options)}.")
    if use_rep not in adata.obsm:
        raise MissingKeyError(
            f"obsm has no {use_rep!r}. It has {list(adata.obsm)}; cfm.tl.embed(adata) writes 'X_cfm'."
        )
    vectors = np.asarray(adata.obsm[use_rep], np.float32)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise OptionError(f"obsm[{use_rep!r}] has missing or infinite values. Leave these cells out.")
    return vectors
