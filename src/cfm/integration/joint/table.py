"""What the network trains on: cells of all modalities in one AnnData, with what the encoders read in obsm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cfm.integration.features import Kind

from .inputs import Projection
from .module import MEASURED, inputs_key

BATCH = "batch"


@dataclass(frozen=True)
class Measured:
    """A modality as it goes into a table: features in use, of the cells in which it was measured.

    Parameters
    ----------
    counts
        float32[n_measured, n_features], CSR.
    totals
        float64[n_measured]: sum over all features of the modality.
    rows
        int64[n_measured]: which cells these are.
    names
        Of the features.
    extra
        float32[n_measured, dim]: vectors of a model that the encoder reads too, or None.
    """

    counts: sp.csr_matrix
    totals: NDArray[np.float64]
    rows: NDArray[np.int64]
    names: NDArray[np.str_]
    extra: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Reading:
    """How the encoder's inputs of a modality are made.

    Parameters
    ----------
    projection
        Of the counts.
    extra_mean, extra_scale
        float32[dim] and factor by which vectors of a model are put on the scale of the projection; None without a model.
    """

    projection: Projection
    extra_mean: NDArray[np.float32] | None = None
    extra_scale: float = 1.0

    @property
    def dim(self) -> int:
        """How many numbers the encoder reads."""
        return self.projection.components.shape[1] + (0 if self.extra_mean is None else len(self.extra_mean))

    def blocks(self, inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Inputs apart: the projection, and vectors of a model if there is one."""
        n = self.projection.components.shape[1]
        return [inputs[:, :n]] if self.extra_mean is None else [inputs[:, :n], inputs[:, n:]]

    @classmethod
    def fit(cls, kind: Kind, part: Measured) -> Reading:
        """Fit to the cells at hand."""
        reading = cls(Projection.fit(kind, part.counts, part.totals))
        if part.extra is None:
            return reading
        mean = part.extra.mean(axis=0)
        spread = float(np.square(part.extra - mean).mean())
        return replace(reading, extra_mean=mean.astype(np.float32), extra_scale=1 / np.sqrt(max(spread, 1e-12)))

    def read(self, part: Measured) -> NDArray[np.float32]:
        """float32[n_measured, dim]."""
        own = self.projection.project(part.counts, part.totals)
        if self.extra_mean is None or part.extra is None:
            return own
        return np.hstack([own, ((part.extra - self.extra_mean) * self.extra_scale).astype(np.float32)])


def make_table(
    parts: Mapping[Kind, Measured], readings: Mapping[Kind, Reading], batch: NDArray[Any], n_cells: int
) -> AnnData:
    """One row for each cell; what was not measured is 0 in X and in obsm, and marked in ``obsm["measured"]``."""
    blocks = [spread(part.counts, part.rows, n_cells) for part in parts.values()]
    names = [f"{kind}:{name}" for kind, part in parts.items() for name in part.names]
    table = AnnData(
        sp.hstack(blocks, format="csr", dtype=np.float32),
        pd.DataFrame({BATCH: pd.Categorical(batch)}, [str(i) for i in range(n_cells)]),
        pd.DataFrame(index=names),
    )
    measured = np.zeros((n_cells, len(parts)), np.float32)
    for i, (kind, part) in enumerate(parts.items()):
        measured[part.rows, i] = 1
        inputs = np.zeros((n_cells, readings[kind].dim), np.float32)
        if len(part.rows):
            inputs[part.rows] = readings[kind].read(part)
        table.obsm[inputs_key(kind)] = inputs
    table.obsm[MEASURED] = measured
    return table


def spread(counts: sp.csr_matrix, rows: NDArray[np.int64], n_cells: int) -> sp.csr_matrix:
    """Rows at the places of their cells, and empty rows elsewhere."""
    place = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), (n_cells, len(rows)))
    return sp.csr_matrix(place @ counts)
