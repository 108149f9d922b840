"""What plain methods make of the same genes: no result is shown without them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from .batches import Batches
from .harmony import align
from .space import Expression, principal_components

N_COMPONENTS = 50


def pca(genes: Expression, batches: Batches, seed: int) -> NDArray[np.float32]:
    """Principal components; nothing is integrated."""
    del batches, seed  # all baselines are called alike
    return principal_components(genes.values, N_COMPONENTS)


def harmony(genes: Expression, batches: Batches, seed: int) -> NDArray[np.float32]:
    """Harmony on principal components."""
    return align(pca(genes, batches, seed), batches, seed=seed)


def combat(genes: Expression, batches: Batches, seed: int) -> NDArray[np.float32]:
    """ComBat (Johnson et al. 2007) on the genes, then principal components."""
    import scanpy as sc

    del seed
    adata = AnnData(genes.values.toarray(), _obs(batches))
    # Genes that a batch does not vary in divide by 0 inside, and stay as they are.
    with np.errstate(divide="ignore", invalid="ignore"):
        sc.pp.combat(adata, key="batch")
    return principal_components(sp.csr_matrix(adata.X), N_COMPONENTS)


def random(genes: Expression, batches: Batches, seed: int) -> NDArray[np.float32]:
    """Random directions of the genes: the floor that every score has to be read against."""
    del batches
    directions = np.random.default_rng(seed).normal(size=(genes.values.shape[1], N_COMPONENTS)) / np.sqrt(N_COMPONENTS)
    return np.asarray(genes.values @ directions, np.float32)


def _obs(batches: Batches) -> pd.DataFrame:
    return pd.DataFrame({"batch": batches.categories()}, [str(i) for i in range(len(batches.codes))])
