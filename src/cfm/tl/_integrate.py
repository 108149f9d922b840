"""Cells of several batches, or of several modalities, in one space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cfm._core import records
from cfm._core.errors import OptionError
from cfm._core.inputs import announce_overwrite, chosen_key, writable
from cfm._core.logging import logger
from cfm.counts import find_counts
from cfm.integration import (
    Kind,
    align,
    build_space,
    expression,
    find_batches,
    shift,
    warn_of_conditions,
)

from ._joint import Embedding, Training
from ._modalities import integrate_modalities, is_mudata
from ._rna import integrate_rna
from ._scgpt import fine_tuned
from ._species import on_genes_of_all, species_rows
from ._vectors import kept

Method = Literal["auto", "harmony", "scgpt", "scvi", "zero_shot"]
METHODS: tuple[Method, ...] = ("auto", "harmony", "scgpt", "scvi", "zero_shot")


def integrate(
    data: Any,
    *,
    batch_key: str | None = None,
    condition_key: str | None = None,
    model: str | Path = "cfm-mini",
    method: Method = "auto",
    use_rep: str | None = None,
    modalities: Mapping[str, str] | None = None,
    layers: Mapping[str, str] | None = None,
    impute: Kind | Sequence[Kind] = (),
    epochs: int | None = None,
    save: str | Path | None = None,
    reference: str | Path | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    species_key: str | None = None,
    gene_table: str | Path | Mapping[str, str] | None = None,
    device: str | None = None,
    devices: int = 1,
    seed: int = 0,
    key_added: str | None = None,
    copy: bool = False,
    **options: Any,
) -> Any:
    """Put cells of several batches, or of several modalities, into one space, in which like cells lie together.

    Labels are never looked at. What is special about a batch is taken out, be it chemistry or biology: if batches
    also differ in something that you study (a treatment, a disease), name it with `condition_key`.

    Parameters
    ----------
    data
        An AnnData object, cells x genes with raw counts somewhere, or a MuData object with RNA, proteins, ATAC peaks, or some
        of them; cells in which only some were measured are welcome. X, layers, raw and var are not changed.
    batch_key
        Column of ``obs`` with the batch: names, categories or whole numbers. Of a MuData object it may stand in the modalities
        and may be left out.
    condition_key
        Column of ``obs`` whose differences are to stay. Batches are then aligned within each of its values only; where a
        value has a single batch, nothing is taken out, and a warning says so.
    model
        A name in `cfm.models.list`, or a folder that holds a checkpoint.
    method
        ``"auto"``: Harmony on 20 principal components of the counts, beside the vectors of the model if these help, after each
        batch was moved as a whole (see below for both); of a MuData object, ``"scvi"``. ``"harmony"``: Harmony on the vectors
        of the model alone. ``"scvi"``: a variational autoencoder in scvi-tools, trained on the cells at hand, whose encoder
        reads principal components and, if they help, the vectors of the model. ``"scgpt"``: a checkpoint of scGPT, fine-tuned on the cells at hand by its own
        objective; of a MuData object on RNA and proteins. ``"zero_shot"``: the vectors as they are, for comparison; only what the
        model does not see is taken out.
    use_rep
        Key in ``obsm`` with vectors to take in the place of the model's, such as ``"X_cfm"`` from an earlier call. For
        ``"auto"``, ``"harmony"`` and ``"zero_shot"``.
    modalities
        Key in ``mdata.mod`` of ``"rna"``, ``"protein"`` and ``"atac"``, where names do not tell.
    layers
        Layer with the counts of a modality, by the same names.
    impute
        Modalities to predict, with ``"scvi"`` and of a MuData object: see what is written. With `reference`, any that its space
        was trained on.
    epochs
        With ``"scvi"`` and ``"scgpt"``: times through all cells. None is, for the former, about 100 steps of 128 cells, with several
        batches 450, and at least 30 times through; for the latter 15, or 25 with proteins, as in the official recipes.
    save
        With ``"scvi"`` and ``"scgpt"``: a folder for the trained model. A run that is stopped goes on from there with the same call.
    reference
        Such a folder, of ``"scvi"``: the cells are put into its space, and the model in it stays as it is. Batches that it does not know get
        weights of their own, which are trained.
    layer, gene_column, species, gene_table, device
        As in `cfm.tl.embed`, for RNA.
    species_key
        Column of ``obs`` with ``"human"`` and ``"mouse"``, if an AnnData object holds cells of both: they are compared by genes with a
        one-to-one ortholog, and the model reads each by its own genes. In var, each species has its own names (GAPDH, Gapdh), as an
        outer join leaves them. Name the species' batches with `batch_key`.
    devices
        With ``"scvi"``: processes on the CPU or GPUs to train on. More than one wants a script, not a notebook.
    seed
        For all that is drawn.
    key_added
        Key of the result and of the record instead of ``"X_cfm_integrated"``, or ``"X_cfm_joint"`` of a MuData object.
    copy
        Return a copy with the result instead of writing to `data`.
    **options
        Options of the model's family, as in `cfm.tl.embed`.

    Returns
    -------
    None, or with ``copy=True`` the new object. Written:

    ``obsm["X_cfm_integrated"]`` : float32, n_obs x dim
        The vectors. Those of cells without counts mean nothing, and a warning counts such cells.
    ``uns["cfm"]["X_cfm_integrated"]`` : dict
        What was used, and for ``"auto"`` what it chose and by which numbers.
    ``layers["cfm_imputed"]``, ``layers["cfm_imputed_sd"]`` : float32, with ``impute=["rna"]``
        Expected log1p of counts per 10,000 in an average batch, and its standard deviation; NaN for genes not in use.

    Of a MuData object:

    ``mdata.obsm["X_cfm_joint"]`` : float32, n_obs x 20
        The vectors. A cell in which nothing was measured gets zeros, and a warning counts these.
    ``mdata.obsm["cfm_modality_weights"]`` : data frame, n_obs x modalities
        What each modality contributes to a cell's vector, summing to 1.
    ``mdata.mod[...].obsm["X_cfm_joint"]`` : float32
        Where the modality alone would put each cell.
    ``mdata.mod[...].layers["cfm_imputed"]``, ``layers["cfm_imputed_sd"]`` : float32, with `impute`
        What the other modalities of a cell predict, and its standard deviation: RNA log1p of counts per 10,000, proteins log1p
        of counts over the geometric mean of the cell, peaks the probability of being open if the cell were as deep as the
        deepest one. NaN for features not in use. Training saw what was measured: only cells without the modality test it.
    ``mdata.obsm["cfm_imputed_protein"]``, ``obsm["cfm_imputed_protein_sd"]`` : data frames, n_obs x features in use, with `impute`
        The same for all cells, if some have no row in the modality. Of an AnnData object too, of modalities that the space of
        `reference` was trained on.
    ``mdata.uns["cfm"]["X_cfm_joint"]`` : dict
        What was used.

    Raises
    ------
    MissingKeyError
        No such column of ``obs``, key in ``obsm`` or layer, or cells without a batch.
    OptionError
        A single batch, batches of a cell or two only, a batch column with fractions, no such method, an option that does
        nothing here, or modalities that cannot be told or paired.
    CountsError, GeneMatchError, UnknownModelError, CheckpointError, DownloadError, UnsupportedOutput
        As in `cfm.tl.embed`.

    Notes
    -----
    ``"auto"`` decides without labels. Half of the 2,000 most variable genes is put aside; the question is how much of
    their variance the 15 nearest neighbours of a cell explain, once neighbours in the principal components of the other
    half, once neighbours by the model, both within batches. The model takes part if it explains at least 0.7 of what the
    components do, or if these explain less than 2 %. So a model that does not know these cells, such as cfm-mini on cell
    lines, is left out; it also is where no batch has 50 cells to measure this on. ``"scvi"`` goes by the same rule.

    Before Harmony, ``"auto"`` adds one vector to each batch, by which cells that are mutual nearest neighbours between batches
    come to lie together (Haghverdi et al. 2018, with one vector per batch instead of one per cell): where batches lie far
    apart, Harmony sees a cluster for each and takes nothing out. Batches without a kind of cell in common come closer too.

    RNA and proteins are predicted in two steps: the decoder says what a cell like this has on average over batches, and a
    Gaussian process regression, on the place of the cell in the space and on what its encoders read, says what the decoder
    leaves. The standard deviation is that of the measured value. Where fewer than 20 cells have both modalities, for
    peaks, and for cells that are predicted from their own measurement (as RNA of an AnnData object is), the decoder speaks
    alone, and the standard deviation is that of its mean over the posterior of the cell.

    References
    ----------
    Korsunsky et al. 2019, "Fast, sensitive and accurate integration of single-cell data with Harmony". Haghverdi et al.
    2018, "Batch effects in single-cell RNA-sequencing data are corrected by matching mutual nearest neighbors". Lopez et al. 2018,
    "Deep generative modeling for single-cell transcriptomics" (scVI). Gayoso et al. 2021 (totalVI) and Ashuach et al. 2022
    (PeakVI) for the likelihoods of proteins and peaks; Wu & Goodman 2018, "Multimodal generative models for scalable
    weakly-supervised learning", for the product of experts; Rasmussen & Williams 2006, chapter 2, for the regression; Lotfollahi et al. 2022 (scArches) for new batches. Cui et al. 2024 (scGPT).

    Examples
    --------
    >>> import cfm, numpy as np
    >>> adata = cfm.datasets.pbmc68k()
    >>> adata.obs["half"] = np.where(np.arange(adata.n_obs) % 2, "odd", "even")
    >>> cfm.tl.integrate(adata, batch_key="half")
    >>> adata.obsm["X_cfm_integrated"].shape[0]
    700
    """
    if method not in METHODS:
        raise OptionError(f"method={method!r}: type one of {', '.join(map(repr, METHODS))}.")
    if reference is not None and method in ("harmony", "zero_shot"):
        raise OptionError(
            f"reference= takes a space of method='scvi', and method={method!r} makes none. Leave one of them out."
        )
    impute = (impute,) if isinstance(impute, str) else tuple(impute)
    where = {"gene_column": gene_column, "species": species, "gene_table": gene_table}
    training = Training(
        epochs, seed, None if save is None else Path(save), None if reference is None else Path(reference), devices
    ).checked()
    if is_mudata(data):
        if method not in ("auto", "scvi", "scgpt"):
            raise OptionError(f"method={method!r} takes one modality: cfm.tl.integrate(mdata['rna'], ...).")
        _refuse("an AnnData object", use_rep=use_rep, layer=layer, species_key=species_key)
        embedding = Embedding(model, device, options, where)
        return integrate_modalities(
            data, method, batch_key, condition_key, modalities, layers, impute, embedding, training, key_added, copy
        )
    _refuse("a MuData object", modalities=modalities, layers=layers)
    adata = writable(data, copy)
    key = chosen_key(key_added, records.INTEGRATED)
    if batch_key is None:
        raise OptionError(f"batch_key= is needed. obs has {[str(c) for c in adata.obs.columns]}.")
    batches = find_batches(adata.obs, batch_key, condition_key, alone=reference is not None)
    if condition_key is None and method != "zero_shot":
        warn_of_conditions(adata.obs, batches)
    compared, its_layer, rows, counts_of = adata, layer, None, None
    if species_key is not None:
        _refuse("cells of one species", species=species, gene_table=gene_table, impute=impute)
        if method == "scgpt":
            raise OptionError("scGPT reads human genes only: leave out species_key=, or type another method=.")
        if use_rep is not None and method != "auto":
            raise OptionError(
                f"species_key= says how genes are read, and method={method!r} with use_rep= reads none. Leave one of them out."
            )
        rows = species_rows(adata, species_key)
        if method in ("auto", "scvi"):
            compared, counts_of = on_genes_of_all(adata, rows, layer, gene_column)
            its_layer = None
    embedding = Embedding(model, device, options, where | {"layer": layer}, rows)
    if method == "scvi" or (reference is not None and method != "scgpt"):
        _refuse("'auto', 'harmony' and 'zero_shot'", use_rep=use_rep)
        method = "scvi"
        facts = integrate_rna(adata, compared, batches, embedding, training, key, impute, its_layer)
    elif method == "scgpt":
        _refuse("'auto', 'harmony' and 'zero_shot'", use_rep=use_rep)
        _refuse("method='scvi'", impute=impute, devices=devices if devices != 1 else None)
        if condition_key is not None:
            raise OptionError(
                "scGPT's objective cannot keep a condition: leave out condition_key=, or type another method=."
            )
        vectors, facts = fine_tuned(adata, batches, embedding, training)
        announce_overwrite(adata, "obsm", key)
        adata.obsm[key] = vectors
    else:
        _refuse("method='scvi'", impute=impute, devices=devices if devices != 1 else None)
        _refuse("'scvi' and 'scgpt'", epochs=epochs, save=save)
        if use_rep is not None and model != "cfm-mini":
            raise OptionError(
                f"use_rep={use_rep!r} takes vectors that are there, so model= does nothing: leave one out."
            )
        vectors, facts = (
            embedding.made(adata) if use_rep is None else (kept(adata, use_rep, options), {"use_rep": use_rep})
        )
        if method == "auto":
            source = find_counts(compared, layer=its_layer)
            space = build_space(expression(source, batches).values, vectors, batches)
            facts = facts | {"parts": space.parts, "explained": space.explained, "counts": source.where}
            vectors = shift(space.vectors, batches, seed=seed)
        if method != "zero_shot":
            vectors = align(vectors, batches, seed=seed)
        announce_overwrite(adata, "obsm", key)
        adata.obsm[key] = np.asarray(vectors, np.float32)
    logger.info("integrate: %s over %d batches in obs[%r]", method, len(batches.names), batch_key)
    facts = facts | {"method": method, "batch_key": batch_key, "condition_key": condition_key, "seed": seed}
    if species_key is not None:
        facts |= {"species_key": species_key} | ({} if counts_of is None else {"counts": counts_of})
    records.write_record(adata.uns, key, records.make_record("cfm.tl.integrate", **facts))
    return adata if copy else None


def _refuse(who: str, **given: Any) -> None:
    """Name options that only something else takes."""
    if names := [f"{name}=" for name, value in given.items() if value is not None and value != ()]:
        raise OptionError(f"{', '.join(names)} goes with {who} only. Leave it out.")
