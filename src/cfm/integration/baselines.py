"""What plain methods make of the same genes: no result is shown without them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core.settings import settings

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


def scvi(genes: Expression, batches: Batches, seed: int) -> NDArray[np.float32]:
    """ScVI (Lopez et al. 2018) with its defaults, until the bound of held-out cells stops to rise, at most 200 epochs."""
    import torch
    from scvi.model import SCVI

    from .joint.quiet import quiet

    adata = AnnData(genes.counts.copy(), _obs(batches))
    # Split here: scvi-tools draws the held-out cells without a seed. A last step of a cell or two has no variance to norm by.
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    n_train = round(0.9 * len(order))
    n_train -= n_train % 128 if n_train % 128 < 3 <= n_train else 0
    gpus = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=gpus), quiet():
        torch.manual_seed(seed)  # noqa: TID251 -- within the fork only
        SCVI.setup_anndata(adata, batch_key="batch")
        model = SCVI(adata)
        model.train(
            max_epochs=200,
            early_stopping=True,
            enable_progress_bar=settings.progress,
            logger=False,
            datasplitter_kwargs={"external_indexing": [order[:n_train], order[n_train:], order[:0]]},
        )
        return np.asarray(model.get_latent_representation(), np.float32)


def random(genes: Expression, batches: Batches, seed: int) -> NDArray[np.float32]:
    """Random directions of the genes: the floor that every score has to be read against."""
    del batches
    directions = np.random.default_rng(seed).normal(size=(genes.values.shape[1], N_COMPONENTS)) / np.sqrt(N_COMPONENTS)
    return np.asarray(genes.values @ directions, np.float32)


def _obs(batches: Batches) -> pd.DataFrame:
    return pd.DataFrame({"batch": batches.categories()}, [str(i) for i in range(len(batches.codes))])
