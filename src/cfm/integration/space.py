"""What cells are compared by: principal components of their own counts, and the vectors of a model where they help."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core.logging import logger
from cfm._core.settings import settings
from cfm.counts import CountSource

from .batches import Batches

N_GENES = 2000
N_COMPONENTS = 20
"""Few: in trials on cell lines and on blood, 20 kept cell types and mixed batches better than 50 did."""

MIN_SHARE = 0.7
"""A model takes part if its vectors explain at least this share of what principal components explain."""

_NEIGHBOURS = 15
_MOST_CELLS = 2000
_ENOUGH_CELLS = 50
"""Of a batch, to ask what neighbours explain: among fewer, the 15 nearest are no longer near."""

_LITTLE = 0.02


@dataclass(frozen=True)
class Space:
    """What cells are compared by.

    Parameters
    ----------
    vectors
        float32[n_cells, dim].
    parts
        What they are made of: ``["pca"]``, or ``["pca", "model"]``.
    explained
        Share of the variance of genes that the part did not see, explained by a cell's nearest neighbours in each. Empty
        if no batch has 50 cells to measure it on.
    """

    vectors: NDArray[np.float32]
    parts: list[str]
    explained: dict[str, float]


@dataclass(frozen=True)
class Expression:
    """The genes that vary most within batches.

    Parameters
    ----------
    values
        float32[n_cells, genes], CSR: log1p of counts per 10,000.
    counts
        float32[n_cells, genes], CSR: counts.
    columns
        int64[genes]: which columns of the counts they are.
    """

    values: sp.csr_matrix
    counts: sp.csr_matrix
    columns: NDArray[np.int64]


def expression(source: CountSource, batches: Batches) -> Expression:
    """Read all counts, and keep the genes that vary most within batches.

    Parameters
    ----------
    source
        Where the counts are. They are held in memory, sparse.
    batches
        Genes are ranked within each, and those that vary in many are taken.
    """
    return most_variable(all_counts(source), batches)


def all_counts(source: CountSource) -> sp.csr_matrix:
    """[n_cells, n_genes], CSR, in memory."""
    return sp.vstack([chunk.counts for chunk in source.chunks(settings.chunk_cells)], format="csr")


def most_variable(counts: sp.csr_matrix, batches: Batches, n_genes: int = N_GENES) -> Expression:
    """The genes that vary most within batches.

    Parameters
    ----------
    counts
        [n_cells, n_genes], CSR.
    batches
        Of the cells.
    n_genes
        At most so many.
    """
    import scanpy as sc  # seconds to import, here and below

    adata = AnnData(sp.csr_matrix(counts, dtype=np.float32))
    adata.obs["batch"] = batches.categories()
    adata.var["column"] = np.arange(adata.n_vars)
    sc.pp.filter_genes(adata, min_cells=3)
    kept = sp.csr_matrix(adata.X)
    adata.layers["counts"] = kept
    adata.X = log_normalised(kept, np.asarray(kept.sum(axis=1)).ravel())
    if adata.n_vars > n_genes:
        # A batch of a cell or two, or of empty ones, has no variance to rank genes by; if there are only such, all are one.
        full = np.diff(kept.indptr) > 0
        large = np.flatnonzero(np.bincount(batches.codes[full]) >= 3)
        ranked = adata[full & np.isin(batches.codes, large)] if len(large) else adata[full]
        genes = sc.pp.highly_variable_genes(
            ranked, n_top_genes=n_genes, batch_key="batch" if len(large) else None, inplace=False
        )
        adata = adata[:, genes["highly_variable"].to_numpy()]
    columns = np.asarray(adata.var["column"], np.int64)
    return Expression(sp.csr_matrix(adata.X), sp.csr_matrix(adata.layers["counts"]), columns)


def log_normalised(counts: sp.csr_matrix, totals: NDArray[np.floating]) -> sp.csr_matrix:
    """float32, CSR: log1p of counts per 10,000; the function of scanpy compiles for many seconds at its first call."""
    per_row = np.repeat(1e4 / np.maximum(totals, 1), np.diff(counts.indptr))
    values = np.log1p(counts.data * per_row).astype(np.float32)
    return sp.csr_matrix((values, counts.indices, counts.indptr), counts.shape)


def build_space(values: sp.csr_matrix, embedding: NDArray[np.floating], batches: Batches) -> Space:
    """Put principal components and, if they help, the vectors of a model side by side, with equal weight.

    Whether they help is measured without labels: how much of the variance of half of the genes a cell's nearest neighbours
    explain, once neighbours in the components of the other half, once neighbours in the vectors of the model. Neighbours
    are sought within batches, so that no batch effect is rewarded.

    Parameters
    ----------
    values
        Of an `Expression`.
    embedding
        float[n_cells, dim].
    batches
        Of the cells.
    """
    components = principal_components(values, N_COMPONENTS)
    helps, explained = model_helps(values, embedding, batches)
    parts = {"pca": components} | ({"model": embedding} if helps else {})
    return Space(np.hstack([_scaled(part) for part in parts.values()]), list(parts), explained)


def model_helps(
    values: sp.csr_matrix, embedding: NDArray[np.floating], batches: Batches
) -> tuple[bool, dict[str, float]]:
    """Whether the model knows these cells, and the shares of variance by which `build_space` decides that."""
    explained = _explained(values, embedding, batches)
    if not explained:
        logger.warning(
            "no batch of obs[%r] has %d cells, so that it cannot be measured whether the model helps: it is left out. "
            "method='harmony' takes the model alone",
            batches.key,
            _ENOUGH_CELLS,
        )
        return False, explained
    helps = explained["model"] >= MIN_SHARE * explained["pca"] or explained["pca"] < _LITTLE
    logger.info(
        "of genes not seen, neighbours in principal components explain %.1f %% and neighbours by the model %.1f %%: %s",
        100 * explained["pca"],
        100 * explained["model"],
        "both are used" if helps else "the model is left out",
    )
    return helps, explained


def _scaled(part: NDArray[np.floating]) -> NDArray[np.float32]:
    """Centred, with a mean squared length of 1."""
    centred = part - part.mean(axis=0)
    return np.asarray(centred / max(np.sqrt(np.square(centred).sum(axis=1).mean()), 1e-12), np.float32)


def principal_components(values: sp.csr_matrix, n: int) -> NDArray[np.float32]:
    """float32[n_cells, at most n], centred and not scaled."""
    import scanpy as sc

    found = sc.pp.pca(values, n_comps=min(n, min(values.shape) - 1), random_state=0)
    return np.asarray(found, np.float32)


def _explained(values: sp.csr_matrix, embedding: NDArray[np.floating], batches: Batches) -> dict[str, float]:
    """Explained variance of held-out genes, over batches with enough cells, or nothing if there are none."""
    from sklearn.neighbors import NearestNeighbors

    generator = np.random.default_rng(0)
    genes = generator.permutation(values.shape[1])
    seen, asked = genes[: len(genes) // 2], genes[len(genes) // 2 :]
    sizes = np.bincount(batches.codes, minlength=len(batches.names))
    largest = np.argsort(-sizes, kind="stable")[: _MOST_CELLS // _ENOUGH_CELLS]
    asked_of = largest[sizes[largest] >= _ENOUGH_CELLS]
    if not len(asked_of):
        return {}
    components = principal_components(values[:, seen], N_COMPONENTS)
    lost = {"pca": 0.0, "model": 0.0}
    total = 0.0
    for code in asked_of:
        here = np.flatnonzero(batches.codes == code)
        if len(here) > (most := _MOST_CELLS // len(asked_of)):
            here = np.sort(generator.choice(here, most, replace=False))
        truth = values[here][:, asked].toarray()
        total += float(np.square(truth - truth.mean(axis=0)).sum())
        for name, space in (("pca", components), ("model", embedding)):
            neighbours = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit(space[here]).kneighbors(return_distance=False)
            guess = sp.csr_array(
                (np.full(neighbours.size, 1 / _NEIGHBOURS, np.float32), neighbours.ravel(),
                 np.arange(0, neighbours.size + 1, _NEIGHBOURS)), shape=(len(here), len(here))
            ) @ truth  # fmt: skip
            lost[name] += float(np.square(truth - guess).sum())
    return {name: 1 - gone / total for name, gone in lost.items()} if total else {}
