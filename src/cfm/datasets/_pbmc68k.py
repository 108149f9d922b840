"""The 700 blood cells that scanpy packages, as raw counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from cfm._core.errors import CountsError

_COMMON_NAMES = {
    "CD14+ Monocyte": "monocyte",
    "CD19+ B": "B cell",
    "CD34+": "progenitor",
    "CD4+/CD25 T Reg": "CD4+ T cell",
    "CD4+/CD45RA+/CD25- Naive T": "CD4+ T cell",
    "CD4+/CD45RO+ Memory": "CD4+ T cell",
    "CD56+ NK": "NK cell",
    "CD8+ Cytotoxic T": "CD8+ T cell",
    "CD8+/CD45RA+ Naive Cytotoxic": "CD8+ T cell",
    "Dendritic": "dendritic cell",
}


def pbmc68k() -> AnnData:
    """Blood cells with known labels, 700 cells x 765 genes, raw counts; no download.

    This is scanpy's ``pbmc68k_reduced`` with the counts restored: scanpy packages log(1 + 10,000 x / t), and the
    smallest count of every cell is 1, so the counts are that matrix without the logarithm, divided by its smallest
    value in each cell. The 765 genes hold a fifth of a cell's counts; ``obs["n_counts"]`` is the library size over
    all genes.

    The labels were made by comparing each cell with sorted blood populations. `cfm-mini` was trained on those sorted
    populations, so its agreement with these labels is a demonstration, not a test.

    Returns
    -------
    X: CSR float32 of counts. ``obs["bulk_labels"]``: the published labels; ``obs["cell_type"]``: the same under the
    names that `cfm.tl.annotate` uses; ``obs["n_counts"]``.

    References
    ----------
    Zheng et al. 2017, Nature Communications 8:14049.

    Examples
    --------
    >>> import cfm
    >>> cfm.datasets.pbmc68k().shape
    (700, 765)
    """
    import scanpy as sc

    packaged = sc.datasets.pbmc68k_reduced()
    normalised = sp.csr_matrix(packaged.raw.X, copy=True)
    normalised.data = np.expm1(normalised.data.astype(np.float64))
    smallest = np.array([normalised.data[a:b].min() for a, b in zip(normalised.indptr, normalised.indptr[1:])])  # noqa: B905
    counts = normalised.data / np.repeat(smallest, np.diff(normalised.indptr))
    if np.abs(counts - np.rint(counts)).max() > 0.2:
        raise CountsError("scanpy's pbmc68k_reduced is not the matrix that its counts can be restored from.")
    normalised.data = np.rint(counts).astype(np.float32)
    obs = packaged.obs[["bulk_labels", "n_counts"]].copy()
    obs["cell_type"] = obs["bulk_labels"].map(_COMMON_NAMES).astype(str).astype("category")
    return AnnData(normalised, obs=obs, var=pd.DataFrame(index=packaged.raw.var_names))
