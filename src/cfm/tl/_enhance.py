"""Expression as deeper sequencing would have shown it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from cfm import infer, models
from cfm._core import records
from cfm._core.errors import GeneMatchError, OptionError, UnsupportedOutput
from cfm._core.inputs import announce_overwrite, chosen_key, writable
from cfm._core.logging import logger
from cfm._core.settings import settings
from cfm.models import CellModel
from cfm.models.registry import families_with

from ._embed import genes_of_var

_OUTPUT = "gene_expression"


def enhance(
    adata: AnnData,
    *,
    model: str | Path,
    depth: str | float = "f5",
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    gene_table: str | Path | Mapping[str, str] | None = None,
    device: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
    **options: Any,
) -> AnnData | None:
    """Predict what each cell would express if it were sequenced deeper.

    The model is told how many counts a cell has, and how many it should have, and predicts every gene. Values are
    logarithms of counts per ten thousand, as ``sc.pp.log1p`` gives them after ``sc.pp.normalize_total(target_sum=1e4)``;
    a few may lie below 0. They are predictions of a model and no measurements: differential expression or correlations
    between genes that are computed from them find what the model believes.

    A cell's values depend on that cell alone. Every gene of every cell gets a number, so the result is dense, whatever the
    storage of the counts: an object with 100,000 cells and 20,000 genes takes 8 GB. With all genes in ``raw`` and the
    object cut to variable genes, ``layer="raw"`` reads all and writes those that are left.

    Parameters
    ----------
    adata
        Cells x genes with raw counts somewhere; X, raw and var's own columns are not changed.
    model
        A name in `cfm.models.list`, or a folder that holds a checkpoint: one that predicts expression (scFoundation).
    depth
        Counts that the model is told to reach. ``"f5"``: five times those of the cell; ``"a1"``: 10^1 times; ``"t4"``: 10^4 in
        every cell, which for deeper cells is less than they have.
    layer, gene_column, species, gene_table, device
        As in `cfm.tl.embed`.
    key_added
        Key of the layer, of the column of ``var`` and of the record instead of ``"cfm_enhanced"``.
    copy
        Return a copy with the results instead of writing to `adata`.
    **options
        Options of the model's family, as in `cfm.tl.embed`.

    Returns
    -------
    None, or with ``copy=True`` the new object. Written:

    ``layers["cfm_enhanced"]`` : float32, n_obs x n_vars
        Predicted expression. NaN in the columns of genes that the model does not know; zeros for cells in which it finds
        nothing to read, which a warning counts.
    ``var["cfm_enhanced"]`` : bool
        Which genes the model knows: ``adata[:, adata.var["cfm_enhanced"]]`` has no NaN.
    ``uns["cfm"]["cfm_enhanced"]`` : dict
        What was used.

    Raises
    ------
    UnsupportedOutput
        The model predicts no expression; the message names those that do.
    CountsError, GeneMatchError, MissingKeyError, OptionError, UnknownModelError, CheckpointError, DownloadError
        As in `cfm.tl.embed`.

    Examples
    --------
    The weights do not ship with the package, so this example is not run:

    >>> import cfm
    >>> adata = cfm.datasets.pbmc68k()
    >>> cfm.tl.enhance(adata, model="scfoundation", depth="f5")  # doctest: +SKIP
    >>> adata.layers["cfm_enhanced"].shape  # doctest: +SKIP
    (700, 14672)
    """
    adata = writable(adata, copy)
    key = chosen_key(key_added, records.ENHANCED)
    loaded = _loaded(model, device, species, {"depth": depth} | options)
    prepared = infer.prepare(
        adata, loaded, layer=layer, gene_column=gene_column, species=species, gene_table=gene_table
    )
    genes = genes_of_var(adata, loaded, gene_column, species, gene_table)
    columns = np.flatnonzero(genes >= 0)
    if not len(columns):
        raise GeneMatchError(f"var has no gene that {loaded.spec.name} knows, so there is nothing to write.")
    values = np.zeros((adata.n_obs, adata.n_vars), np.float32)
    values[:, genes < 0] = np.nan
    read = np.zeros(adata.n_obs, bool)
    for pack, found in infer.passes(loaded, prepared.stream, adata.n_obs, settings.pack_tokens, frozenset({_OUTPUT})):
        values[np.ix_(pack.rows, columns)] = found[_OUTPUT][:, genes[columns]]
        read[pack.rows] = True
    logger.info("enhance: %s", prepared)

    announce_overwrite(adata, "layers", key)
    adata.layers[key] = values
    announce_overwrite(adata, "var", key)
    adata.var[key] = genes >= 0
    if n_empty := int((~read).sum()):
        logger.warning(
            "%d of %d cells have no gene that the model reads; their rows of layers[%r] are zero",
            n_empty,
            adata.n_obs,
            key,
        )
    facts = prepared.facts() | {"depth": str(depth), "options": options or None}
    records.write_record(adata.uns, key, records.make_record("cfm.tl.enhance", **facts))
    return adata if copy else None


def _loaded(model: str | Path, device: str | None, species: str | None, options: dict[str, Any]) -> CellModel:
    """The model, if it predicts expression."""
    try:
        loaded = models.load(model, device=device, species=species, **options)
    except OptionError:
        # That a model has no such option says less than that it predicts nothing.
        _check_output(models.load(model, device=device, species=species))
        raise
    _check_output(loaded)
    return loaded


def _check_output(model: CellModel) -> None:
    if _OUTPUT not in model.spec.outputs:
        able = ", ".join(families_with(_OUTPUT))
        raise UnsupportedOutput(
            f"{model.spec.name} predicts no expression of genes: it gives {sorted(model.spec.outputs)}. Models of these "
            f"families do: {able}."
        )
