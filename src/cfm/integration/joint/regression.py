"""What a decoder leaves unexplained of a modality, predicted from cells that are alike: kernel regression with its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

WIDTH = 0.75
"""Inverse width of the kernel, in units of the mean square distance of cells from their mean."""
NOISE = 0.3
"""Variance of the noise, in units of the variance that the kernel can explain."""
MAX_ANCHORS = 1_000
_AT_ONCE = 4_096


@dataclass(frozen=True)
class Regression:
    """Gaussian process regression with one kernel for all features.

    The prior of each feature is a process with the kernel exp(-`WIDTH` x squared distance), and noise of `NOISE` times its
    variance. Up to `MAX_ANCHORS` cells carry the kernel; more cells are projected onto these (Rasmussen & Williams 2006,
    section 8.3.4). The scale of each feature is that which gives errors of leaving out one cell (section 5.4.2) a variance of 1.

    Parameters
    ----------
    mean, scale
        float32[n_inputs]: put each block of inputs on the same scale.
    anchors
        float32[n_anchors, n_inputs]: cells, scaled.
    weights
        float32[n_anchors, n_features].
    reach
        float32[n_anchors, n_anchors]: by how much the anchors narrow the prediction.
    spread
        float32[n_features]: standard deviation of the process.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    anchors: NDArray[np.float32]
    weights: NDArray[np.float32]
    reach: NDArray[np.float32]
    spread: NDArray[np.float32]

    @classmethod
    def fit(cls, blocks: Sequence[NDArray[np.float32]], values: NDArray[np.floating]) -> Regression:
        """Fit to cells.

        Parameters
        ----------
        blocks
            float32[n_cells, any] each: inputs that count equally.
        values
            float[n_cells, n_features]: what is to be predicted; far from all cells, the prediction is 0.
        """
        x = np.hstack(blocks)
        mean = x.mean(axis=0)
        sizes = [np.square(block - block.mean(axis=0)).sum(axis=1).mean() for block in blocks]
        scale = [np.full(block.shape[1], (max(size, 1e-12) * len(blocks)) ** -0.5) for block, size in zip(blocks, sizes, strict=True)]  # fmt: skip
        factor = np.concatenate(scale).astype(np.float32)
        x = (x - mean) * factor
        anchors = x[:MAX_ANCHORS]
        # In whitened directions of the anchors nothing needs the inverse of a kernel that is all but singular.
        root = scipy.linalg.cholesky(_kernel(anchors, anchors) + 1e-6 * np.eye(len(anchors)), lower=True)
        features = scipy.linalg.solve_triangular(root, _kernel(anchors, x), lower=True).T
        inner = scipy.linalg.inv(features.T @ features + NOISE * np.eye(len(anchors)))
        directions = inner @ (features.T @ values)
        kept = 1 - np.einsum("ij,ij->i", features @ inner, features)
        left_out = (values - features @ directions) / kept[:, None]
        unseen = (1 - np.square(features).sum(axis=1)).clip(0)  # what the anchors cannot say of a cell
        spread = np.sqrt((np.square(left_out) / (unseen + NOISE / kept)[:, None]).mean(axis=0))
        back = scipy.linalg.solve_triangular(root, np.eye(len(anchors)), lower=True)
        reach = back.T @ (np.eye(len(anchors)) - NOISE * inner) @ back
        found = (mean, factor, anchors, back.T @ directions, reach, spread)
        return cls(*(np.ascontiguousarray(a, np.float32) for a in found))

    def predict(self, blocks: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Values and the standard deviation of what would be measured, float32[n_cells, n_features] each."""
        x = (np.hstack(blocks) - self.mean) * self.scale
        weights, reach = self.weights.astype(np.float64), self.reach.astype(np.float64)
        values, deviations = [], []
        for start in range(0, len(x), _AT_ONCE):
            near = _kernel(x[start : start + _AT_ONCE], self.anchors)
            open_ = 1 - np.einsum("ij,ij->i", near @ reach, near)
            values.append((near @ weights).astype(np.float32))
            deviations.append(np.sqrt(open_.clip(0) + NOISE)[:, None].astype(np.float32) * self.spread)
        return np.concatenate(values), np.concatenate(deviations)


def _kernel(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    from sklearn.metrics.pairwise import rbf_kernel

    return np.asarray(rbf_kernel(a.astype(np.float64), b.astype(np.float64), gamma=WIDTH))
