"""Tokens of a model, stored in an object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cfm import infer, models
from cfm._core import records
from cfm._core.inputs import announce_overwrite, chosen_key, writable
from cfm._core.logging import logger, progress


def tokenize(
    adata: AnnData,
    *,
    model: str | Path = "cfm-mini",
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    gene_table: str | Path | Mapping[str, str] | None = None,
    key_added: str | None = None,
    copy: bool = False,
    **options: Any,
) -> AnnData | None:
    """Turn each cell into the tokens that a model reads.

    For looking at what a model sees, and for embedding the same cells several times. `cfm.tl.embed` needs no such
    step: it tokenises on the fly.

    Parameters
    ----------
    adata
        Cells x genes with raw counts somewhere; X, layers, raw and var are not changed.
    model
        A name in `cfm.models.list`, or a folder that holds a checkpoint.
    layer, gene_column, species, gene_table
        As in `cfm.tl.embed`.
    key_added
        Key of the tokens instead of ``"cfm_tokens"``; values go to ``key_added + "_values"`` and token numbers to
        ``key_added + "_n_tokens"``.
    copy
        Return a copy with the results instead of writing to `adata`.
    **options
        Options of the model's family, as in `cfm.tl.embed`.

    Returns
    -------
    None, or with ``copy=True`` the new object. Written:

    ``obsm["cfm_tokens"]`` : CSR int32, n_obs x the model's maximum length
        Column = position, value = token id. Token 0 is stored like any other, so read ``.data`` and ``.indptr``, and
        do not call ``eliminate_zeros``. The width is the model's, so that ``ad.concat`` loses nothing.
    ``obsm["cfm_values"]`` : CSR float32 of the same shape
        The value beside each token, for families that have values.
    ``obs["cfm_n_tokens"]`` : int32
        Tokens of each cell.
    ``uns["cfm"]["cfm_tokens"]`` : dict
        What was used.

    Raises
    ------
    CountsError, GeneMatchError, MissingKeyError, OptionError, UnknownModelError, CheckpointError, DownloadError
        As in `cfm.tl.embed`.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.pbmc68k()
    >>> cfm.pp.tokenize(adata)
    >>> cfm.tl.embed(adata, tokens="cfm_tokens")
    """
    adata = writable(adata, copy)
    key = chosen_key(key_added, records.TOKENS)
    values_key = records.VALUES if key_added is None else f"{key_added}_values"
    length_key = records.N_TOKENS if key_added is None else f"{key_added}_n_tokens"
    # Tokens are made on the CPU and have no precision: the same options go with tokenize and embed.
    kept = {option: value for option, value in options.items() if option != "precision"}
    loaded = models.load(model, device="cpu", species=species, **kept)
    prepared = infer.prepare(
        adata, loaded, layer=layer, gene_column=gene_column, species=species, gene_table=gene_table
    )
    batches = []
    with progress(adata.n_obs, f"tokens for {loaded.spec.name}") as bar:
        for batch in prepared.stream:
            batches.append(batch)
            bar.update(batch.n_cells)
    logger.info("tokenize: %s", prepared)
    lengths = np.concatenate([batch.lengths for batch in batches]) if batches else np.zeros(0, np.int64)
    has_values = any(batch.values is not None for batch in batches)

    announce_overwrite(adata, "obsm", key)
    ids = [batch.ids for batch in batches]
    adata.obsm[key] = _matrix(ids, np.dtype(np.int32), lengths, loaded.spec.max_tokens)
    if has_values:
        announce_overwrite(adata, "obsm", values_key)
        values = [batch.values for batch in batches if batch.values is not None]
        adata.obsm[values_key] = _matrix(values, np.dtype(np.float32), lengths, loaded.spec.max_tokens)
    announce_overwrite(adata, "obs", length_key)
    adata.obs[length_key] = lengths.astype(np.int32)
    facts = prepared.facts() | {"values_key": values_key if has_values else None, "options": options or None}
    records.write_record(adata.uns, key, records.make_record("cfm.pp.tokenize", **facts))
    return adata if copy else None


def _matrix(
    parts: list[NDArray[np.int32]] | list[NDArray[np.float32]],
    dtype: np.dtype[np.int32] | np.dtype[np.float32],
    lengths: NDArray[np.int64],
    width: int,
) -> sp.csr_matrix:
    """Ragged rows as CSR: column = position."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    data = np.concatenate(parts) if parts else np.zeros(0, dtype)
    positions = np.ones(len(data), np.int32)
    # Each position is one more than the one before; a new cell steps back from the last of the old one to 0.
    filled = lengths > 0
    positions[offsets[:-1][filled][1:]] = 1 - lengths[filled][:-1]
    positions[:1] = 0
    np.cumsum(positions, out=positions)
    return sp.csr_matrix((data, positions, offsets), shape=(len(lengths), width))
