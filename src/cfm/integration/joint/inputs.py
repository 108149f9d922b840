"""Counts of a modality to what its encoder reads: a fixed projection, fitted once and kept with the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm._core.errors import OptionError
from cfm.integration.features import Kind
from cfm.integration.space import log_normalised

N_COMPONENTS: dict[Kind, int] = {"rna": 20, "protein": 50, "atac": 50}
"""At most so many; few of RNA for the reason given in `cfm.integration.space`."""


@dataclass(frozen=True)
class Projection:
    """Principal components of the normalised counts of a modality.

    Parameters
    ----------
    kind
        Modality.
    feature_weights
        float32[n_features]: factor of each feature before the logarithm; the inverse document frequency of peaks, else 1.
    mean
        float32[n_features]: of the normalised values.
    components
        float32[n_features, dim].
    scale
        Factor that gives the projections of the cells it was fitted on a mean square of 1.
    """

    kind: Kind
    feature_weights: NDArray[np.float32]
    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    scale: float

    @classmethod
    def fit(cls, kind: Kind, counts: sp.csr_matrix, totals: NDArray[np.floating]) -> Projection:
        """Fit to cells.

        Parameters
        ----------
        kind
            Modality.
        counts
            [n_cells, n_features], CSR.
        totals
            float[n_cells]: sum over all features of the modality, those that were left out of `counts` too.
        """
        from sklearn.decomposition import PCA, TruncatedSVD

        weights = np.ones(counts.shape[1], np.float32)
        if kind == "atac":
            weights = (counts.shape[0] / np.maximum(counts.getnnz(axis=0), 1)).astype(np.float32)
        values = normalised(kind, counts, totals, weights)
        n_cells, n_features = counts.shape
        # One of peaks is left out; a single protein is one.
        n_features = {"rna": n_features - 1, "protein": max(1, n_features - 1), "atac": n_features - 2}[kind]
        n = min(N_COMPONENTS[kind], n_cells - (2 if kind == "atac" else 1), n_features)
        if n < 1:
            raise OptionError(
                f"{kind} has {counts.shape[0]} cells and {counts.shape[1]} features in use, which are too few to train on. "
                "Leave it out with modalities=."
            )
        if kind == "atac":
            # Not centred, as latent semantic indexing does it; the first direction is the depth of the cells.
            components = TruncatedSVD(n + 1, algorithm="arpack", random_state=0).fit(values).components_[1:].T
            mean = np.asarray(values.mean(axis=0)).ravel()
        else:
            found = PCA(n, svd_solver="arpack" if sp.issparse(values) else "full", random_state=0).fit(values)
            components, mean = found.components_.T, found.mean_
        spread = float(np.square(values @ components - mean @ components).mean())
        scale = 1 / np.sqrt(max(spread, 1e-12))
        return cls(kind, weights, mean.astype(np.float32), components.astype(np.float32), scale)

    def project(self, counts: sp.csr_matrix, totals: NDArray[np.floating]) -> NDArray[np.float32]:
        """float32[n_cells, dim]: the same for a cell whatever the other cells are."""
        values = normalised(self.kind, counts, totals, self.feature_weights)
        return np.asarray((values @ self.components - self.mean @ self.components) * self.scale, np.float32)


def normalised(
    kind: Kind, counts: sp.csr_matrix, totals: NDArray[np.floating], weights: NDArray[np.float32]
) -> sp.csr_matrix | NDArray[np.float32]:
    """Counts on a scale on which cells can be compared.

    RNA: log1p of counts per 10,000, sparse. Protein: log1p of counts over the geometric mean of the cell (centred log
    ratio), dense. ATAC: log1p of 10,000 times term frequency times inverse document frequency of open peaks, sparse.
    """
    if kind == "protein":
        dense = counts.toarray()
        return np.log1p(dense / geometric_means(dense)[:, None])
    if kind == "atac":
        counts = sp.csr_matrix((weights[counts.indices], counts.indices, counts.indptr), counts.shape)
    return log_normalised(counts, totals)


def geometric_means(counts: NDArray[np.floating]) -> NDArray[np.float32]:
    """float32[n_cells]: exp of the mean of log1p, the size of a cell in proteins."""
    return np.exp(np.log1p(counts).mean(axis=1)).astype(np.float32)
