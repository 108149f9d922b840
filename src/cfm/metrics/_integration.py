"""How well batches are mixed, and how well cell types are kept apart."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core import records
from cfm._core.errors import MissingKeyError, OptionError
from cfm._core.inputs import announce_overwrite, chosen_key, writable
from cfm._core.logging import logger
from cfm.counts import find_counts
from cfm.integration import Batches, Expression, expression, find_batches
from cfm.integration import baselines as plain

Baseline = Literal["pca", "harmony", "scvi", "combat", "random"]

MADE: dict[str, Callable[[Expression, Batches, int], NDArray[np.float32]]] = {
    "pca": plain.pca,
    "harmony": plain.harmony,
    "scvi": plain.scvi,
    "combat": plain.combat,
    "random": plain.random,
}

BASELINES = tuple(MADE)
TOTALS = ("Bio conservation", "Batch correction", "Total")
_UNINTEGRATED = "unintegrated"


def integration(
    adata: AnnData,
    *,
    batch_key: str,
    labels_key: str | None,
    embeddings: Sequence[str] = (records.INTEGRATED,),
    baselines: Sequence[Baseline] = ("pca", "harmony", "scvi", "random"),
    layer: str | None = None,
    seed: int = 0,
    key_added: str | None = None,
) -> pd.DataFrame:
    """Score embeddings with scib-metrics, in one table with what plain methods reach on the same cells.

    Read both halves. The total alone is not safe: a random projection of the counts mixes batches well and can have a
    higher total than principal components. That is why one stands in the table.

    Parameters
    ----------
    adata
        Cells with embeddings in ``obsm``, and raw counts for the baselines. Only ``uns`` is changed.
    batch_key
        Column of ``obs`` with the batch.
    labels_key
        Column of ``obs`` with cell types; cells without one (NaN) are left out of all scores. None scores batches alone, and
        such a score can be won by destroying everything.
    embeddings
        Keys in ``obsm``.
    baselines
        ``"pca"``: 50 principal components of the 2,000 most variable genes. ``"harmony"``: Harmony on these. ``"scvi"``:
        scVI on the counts of these genes, trained to convergence, which takes minutes. ``"combat"``:
        ComBat on the genes, then 50 components. ``"random"``: 50 random directions of the genes.
    layer
        As in `cfm.tl.embed`.
    seed
        For everything that is drawn.
    key_added
        Key in ``uns["cfm"]`` instead of ``"integration"``.

    Returns
    -------
    The table: a row for each embedding and baseline, a column for each score and for the two halves and the total (0.6
    bio conservation, 0.4 batch correction), from 0 to 1, more is better. Also written, with the version of scib-metrics:

    ``uns["cfm"]["integration"]`` : dict
        With the table under ``"scores"``.

    Raises
    ------
    MissingKeyError
        No such column or embedding.
    OptionError
        An unknown baseline, a single batch, or scib-metrics is not installed.

    References
    ----------
    Luecken et al. 2022, "Benchmarking atlas-level data integration in single-cell genomics". Scores of scib-metrics are not
    comparable with those of the older scib package.

    Examples
    --------
    >>> import cfm, scanpy as sc
    >>> adata = sc.read_h5ad("cells.h5ad")  # doctest: +SKIP
    >>> cfm.tl.integrate(adata, batch_key="donor")  # doctest: +SKIP
    >>> cfm.metrics.integration(adata, batch_key="donor", labels_key="cell_type")  # doctest: +SKIP
    """
    adata = writable(adata, False)
    key = chosen_key(key_added, records.INTEGRATION)
    names = _checked(adata, embeddings, baselines)
    cells = _labelled(adata, labels_key)
    batches = find_batches(cells.obs, batch_key)
    genes = expression(find_counts(cells, layer=layer), batches)
    labels = ["all"] * cells.n_obs if labels_key is None else cells.obs[labels_key].astype(str).tolist()
    table = AnnData(
        genes.values, pd.DataFrame({"batch": batches.categories(), "label": pd.Categorical(labels)}, cells.obs_names)
    )
    table.obsm[_UNINTEGRATED] = plain.pca(genes, batches, seed)
    for name in embeddings:
        table.obsm[name] = np.asarray(cells.obsm[name], np.float32)
    for name in baselines:
        logger.info("integration: baseline %s", name)
        table.obsm[name] = MADE[name](genes, batches, seed)
    scores = _scores(table, names, labels_key is not None)

    announce_overwrite(adata, "uns", key)
    facts = {"batch_key": batch_key, "labels_key": labels_key, "scib_metrics": version("scib-metrics"), "seed": seed}
    record = records.make_record("cfm.metrics.integration", **facts) | {"scores": scores}
    records.write_record(adata.uns, key, record)
    return scores


def _labelled(adata: AnnData, labels_key: str | None) -> AnnData:
    """The cells that have a label."""
    if labels_key is None:
        return adata
    if labels_key not in adata.obs:
        raise MissingKeyError(
            f"obs has no {labels_key!r}. It has {[str(c) for c in adata.obs.columns]}: type labels_key=."
        )
    cells = adata.obs[labels_key].notna().to_numpy()
    if cells.all():
        return adata
    logger.info("integration: %d of %d cells have no label and are left out", int((~cells).sum()), len(cells))
    return adata[cells]


def _checked(adata: AnnData, embeddings: Sequence[str], baselines: Sequence[str]) -> list[str]:
    if missing := [name for name in embeddings if name not in adata.obsm]:
        raise MissingKeyError(f"obsm has no {missing}. It has {list(adata.obsm)}: type embeddings=.")
    if unknown := [name for name in baselines if name not in MADE]:
        raise OptionError(f"baselines={unknown}: type some of {list(MADE)}.")
    names = [*embeddings, *baselines]
    if twice := {name for name in names if names.count(name) > 1}:
        raise OptionError(f"{sorted(twice)} would be two rows of one name. Rename the embedding in obsm.")
    try:
        version("scib-metrics")
    except PackageNotFoundError:
        raise OptionError("The scores come from scib-metrics: pip install 'cfm-tools[metrics]'.") from None
    return names


def _scores(table: AnnData, names: list[str], labelled: bool) -> pd.DataFrame:
    """The table of scib-metrics, a row for each embedding."""
    from scib_metrics.benchmark import BatchCorrection, Benchmarker

    bench = Benchmarker(
        table,
        batch_key="batch",
        label_key="label",
        embedding_obsm_keys=names,
        pre_integrated_embedding_obsm_key=_UNINTEGRATED,
        progress_bar=False,
        **({} if labelled else {
            "bio_conservation_metrics": None,
            "batch_correction_metrics": BatchCorrection(bras=False, graph_connectivity=False),
        }),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PCR comparison score is negative")  # the table shows it as 0
        bench.benchmark()
    found = bench.get_results(min_max_scale=False).drop(index="Metric Type").astype(float)
    halves = [name for name in TOTALS if name in found]
    scores: pd.DataFrame = found[[*halves, *(name for name in found if name not in halves)]]
    return scores.rename_axis(None)
