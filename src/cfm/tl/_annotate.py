"""Cell type labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm import infer, models
from cfm._core import records
from cfm._core.errors import CountsError, GeneMatchError, MissingKeyError, OptionError
from cfm._core.inputs import announce_overwrite, chosen_key, writable
from cfm._core.logging import logger
from cfm._core.settings import settings
from cfm.models import CellModel
from cfm.models.reference import UNKNOWN, Reference

from ._embed import embed
from ._head import classify, has_head

_MANY_UNKNOWN = 0.3


def annotate(
    adata: AnnData,
    *,
    reference: AnnData | None = None,
    labels_key: str | None = None,
    n_neighbors: int = 15,
    model: str | Path = "cfm-mini",
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    gene_table: str | Path | Mapping[str, str] | None = None,
    device: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
    **options: Any,
) -> AnnData | None:
    """Label each cell by its nearest labelled cells in the space of a model.

    A model that was fine-tuned for annotation and names its classes (scBERT) labels cells by its own classifier, unless there
    is a reference; what follows is about the others.

    Without a reference, the prototypes that come with the model are used: for cfm-mini, blood and gut cell types and
    a few others, which its model card lists. With a reference, both objects are embedded and its labels are
    transferred. A cell that lies farther from its neighbours than labelled cells do among themselves is
    ``"unknown"``; that finds what is far from everything, and misses close relatives of a label (a T-cell subset
    that the reference lacks gets the name of another). What the packaged prototypes are known to get wrong: CD4+ and
    CD8+ T cells of the naive state are mixed up, and most dendritic cells of blood are called monocytes.

    Parameters
    ----------
    adata
        Cells x genes with raw counts somewhere; X, layers, raw and var are not changed.
    reference
        Labelled cells with raw counts, of any gene list.
    labels_key
        Column of ``reference.obs`` with the labels; cells without one (NaN, ``"unknown"``) are left out. Needed with `reference`.
    n_neighbors
        Labelled cells that vote, with `reference`. Packaged prototypes bring their own number.
    model, layer, gene_column, species, gene_table, device
        As in `cfm.tl.embed`, for `adata`; `reference` is read with the same model, and its counts and genes are found
        on their own, as genes of the model's species or, where that fails, of `species`.
    key_added
        Key of the labels instead of ``"cfm_label"``; the confidence goes to ``key_added + "_confidence"``.
    copy
        Return a copy with the results instead of writing to `adata`.
    **options
        Options of the model's family, as in `cfm.tl.embed`.

    Returns
    -------
    None, or with ``copy=True`` the new object. Written:

    ``obs["cfm_label"]`` : category
        Label, or ``"unknown"``.
    ``obs["cfm_label_confidence"]`` : float32
        Share of the neighbours that agree with the label, 0 to 1; NaN for unknown cells. It is a share of votes, not
        a calibrated probability. By a classifier, the probability that it gives the label.
    ``obsm["X_cfm"]``, ``obs["cfm_n_genes"]``
        The vectors, as `cfm.tl.embed` writes them; not with a classifier.
    ``uns["cfm"]["cfm_label"]`` : dict
        What was used, with two lists of one length, ``labels`` and their ``ontology_ids`` (empty text for none); these
        not with a classifier.

    Raises
    ------
    OptionError
        `reference` without `labels_key`, too few labelled cells, or a model without packaged prototypes.
    MissingKeyError
        ``reference.obs`` has no column `labels_key`, and as in `cfm.tl.embed`.
    CountsError, GeneMatchError, UnknownModelError, CheckpointError, DownloadError
        As in `cfm.tl.embed`.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.pbmc68k()
    >>> cfm.tl.annotate(adata)
    >>> "B cell" in adata.obs["cfm_label"].cat.categories
    True
    """
    adata = writable(adata, copy)
    key = chosen_key(key_added, records.LABEL)
    loaded = models.load(model, device=device, species=species, **options)
    where: dict[str, Any] = {
        "layer": layer, "gene_column": gene_column, "species": species, "gene_table": gene_table
    }  # fmt: skip
    facts: dict[str, Any]
    if reference is None and labels_key is None and has_head(loaded):
        transfer, used = classify(adata, loaded, **where)
        facts = used | {"reference": "classifier"}
        source = "classes of the model's own classifier"
    else:
        known = _reference(reference, labels_key, n_neighbors, loaded, species)
        embed(adata, model=model, device=device, **where, **options)
        transfer = known.transfer(np.asarray(adata.obsm[records.EMBEDDING]))
        facts = _facts(known, reference is None)
        source = f"{len(known.codes)} {'packaged prototypes' if reference is None else 'reference cells'}"

    announce_overwrite(adata, "obs", key)
    adata.obs[key] = pd.Categorical(transfer.labels.astype(str))
    announce_overwrite(adata, "obs", f"{key}{records.CONFIDENCE_SUFFIX}")
    # A share of votes for a label that was not given would read as confidence in "unknown".
    confidence = np.where(transfer.labels == UNKNOWN, np.float32(np.nan), transfer.confidence)
    adata.obs[f"{key}{records.CONFIDENCE_SUFFIX}"] = confidence
    n_unknown = int((transfer.labels == UNKNOWN).sum())
    logger.info(
        "annotate: %d labels from %s; %d of %d cells unknown",
        len(set(transfer.labels) - {UNKNOWN}),
        source,
        n_unknown,
        adata.n_obs,
    )
    if n_unknown > _MANY_UNKNOWN * adata.n_obs:
        logger.warning(
            "%.0f%% of the cells are unknown: the reference may lack their types, or be of another species or assay, or "
            "the object may be subset to few genes. Labelled cells of your own help: reference=, labels_key=",
            100 * n_unknown / adata.n_obs,
        )
    about = {"model": loaded.spec.name, "model_digest": loaded.spec.digest, "labels_key": labels_key}
    record = records.make_record(
        "cfm.tl.annotate", **(facts | about | {"n_unknown": n_unknown, "options": options or None})
    )
    records.write_record(adata.uns, key, record)
    return adata if copy else None


def _facts(known: Reference, packaged: bool) -> dict[str, Any]:
    """What is recorded of the labelled cells."""
    return {
        "reference": "packaged" if packaged else "given",
        "n_reference": len(known.codes),
        "n_neighbors": known.n_neighbors,
        "labels": known.names,
        "ontology_ids": known.ontology_ids,
    }


def _reference(
    reference: AnnData | None, labels_key: str | None, n_neighbors: int, model: CellModel, species: str | None
) -> Reference:
    if reference is None:
        if labels_key is not None:
            raise OptionError("labels_key= names a column of the reference; pass reference= too, or leave it out.")
        packaged = model.reference()
        if packaged is None:
            msg = f"{model.spec.name} comes without labelled prototypes. Pass reference= and labels_key=."
            raise OptionError(msg)
        return packaged
    if not isinstance(reference, AnnData):
        raise OptionError(f"reference= takes an AnnData object, not {type(reference).__name__}. Read the file first.")
    if labels_key is None:
        raise OptionError(
            f"Which column of reference.obs has the labels? Pass labels_key=, one of {_columns(reference)}."
        )
    if labels_key not in reference.obs:
        raise MissingKeyError(f"reference.obs has no {labels_key!r}. It has {_columns(reference)}.")
    try:
        prepared = _prepared(reference, model, species)
        result = infer.run(model, prepared.stream, reference.n_obs, settings.pack_tokens)
    except (CountsError, GeneMatchError, MissingKeyError, OptionError) as error:
        raise type(error)(f"In the reference: {error}") from error
    logger.info("annotate: reference: %s", prepared)
    labels = pd.Series(reference.obs[labels_key])
    names = labels.astype(str).to_numpy(dtype=str)
    unknown = names == UNKNOWN
    if unknown.any():
        logger.info(
            "annotate: %d reference cells labelled %r are left out, as those without a label", unknown.sum(), UNKNOWN
        )
    kept = labels.notna().to_numpy() & ~unknown & (result.lengths > 0)
    return Reference.of(result.vectors[kept], names[kept], n_neighbors=n_neighbors)


def _prepared(reference: AnnData, model: CellModel, species: str | None) -> infer.Prepared:
    """The reference read as the model's species, and where that fails as the species of the query."""
    try:
        return infer.prepare(reference, model, layer=None, gene_column=None, species=None, gene_table=None)
    except GeneMatchError:
        if species is None:
            raise
        return infer.prepare(reference, model, layer=None, gene_column=None, species=species, gene_table=None)


def _columns(adata: AnnData) -> list[str]:
    return [str(column) for column in adata.obs.columns]
