"""A trained space with all that new cells need, and what it predicts of a modality."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm.integration.features import Kind

from .inputs import normalised
from .model import JointVI
from .module import MEASURED, inputs_key
from .regression import Regression
from .table import BATCH, Reading

FEWEST_CELLS, MAX_CELLS = 20, 20_000
"""With fewer cells there is no regression; of more, so many are drawn."""
Source = tuple[Kind, tuple[Kind, ...]]
"""A modality, and those that it is predicted from."""


@dataclass(frozen=True)
class Joint:
    """A trained model with all that new cells need.

    Parameters
    ----------
    model
        Trained, around the table of the cells it was asked for.
    readings
        By modality: how inputs of the encoder are made.
    names
        By modality: the features.
    options
        Of the network.
    measured_in
        By modality: batches of the training cells in which it was measured. In others its decoder was never trained.
    regressions
        Of what the decoders leave unexplained.
    """

    model: JointVI
    readings: dict[Kind, Reading]
    names: dict[Kind, NDArray[np.str_]]
    options: dict[str, Any]
    measured_in: dict[Kind, list[str]]
    regressions: dict[Source, Regression] = field(default_factory=dict)

    @property
    def kinds(self) -> list[Kind]:
        """The modalities, in the order of the columns of ``measured``."""
        return list(self.names)

    @property
    def batches(self) -> list[str]:
        """The batches that the model knows, in its order."""
        return list(map(str, self.model.adata_manager.get_state_registry(BATCH).categorical_mapping))

    def imputed(self, kind: Kind, measured: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What a modality is expected to be in the cells of the table, and its standard deviation.

        RNA: log1p of counts per 10,000 of the genes in use. Protein: log1p of counts over the geometric mean of the cell.
        ATAC: probability that a peak is open, in the deepest cell.

        Parameters
        ----------
        kind
            Modality.
        measured
            bool[n_cells, kinds]: what of each cell it is made from.
        """
        used, found = measured.copy(), []
        for pattern in np.unique(measured, axis=0):
            if source := self._best(kind, pattern):
                rows = np.flatnonzero((measured == pattern).all(axis=1))
                # What the regression was not fitted with would only move the decoder.
                used[rows] = self._mask(source[1])
                found.append((source, rows))
        means, deviations = self._decoded(kind, used)
        for source, rows in found:
            left, deviations[rows] = self.regressions[source].predict(self._blocks(source[1], rows))
            means[rows] = (means[rows] + left).clip(min=0)
        return means, deviations

    def with_regressions(self, kinds: Sequence[Kind]) -> Joint:
        """With regressions of some modalities, from each set of others that enough cells have; peaks have none."""
        return replace(self, regressions=dict(self._fitted(kinds)))

    def _best(self, kind: Kind, pattern: NDArray[np.bool_]) -> Source | None:
        """The regression from most of the modalities that a cell has."""
        fitting = [source for source in self.regressions if source[0] == kind and pattern[self._mask(source[1])].all()]
        return max(fitting, key=lambda source: len(source[1]), default=None)

    def _fitted(self, kinds: Sequence[Kind]) -> Iterator[tuple[Source, Regression]]:
        has = np.asarray(self.model.adata.obsm[MEASURED]) > 0
        for kind in kinds:
            others = [other for other in self.kinds if other != kind]
            if kind == "atac":
                continue
            for sources in [each for n in range(len(others)) for each in combinations(others, n + 1)]:
                rows = np.flatnonzero(has[:, self._mask((kind, *sources))].all(axis=1))
                if len(rows) >= FEWEST_CELLS:
                    rows = np.random.default_rng(0).permutation(rows)[:MAX_CELLS]
                    expected, _ = self._decoded(kind, np.tile(self._mask(sources), (len(rows), 1)), rows)
                    blocks = self._blocks(sources, rows)
                    yield (kind, sources), Regression.fit(blocks, self._observed(kind, rows) - expected)

    def _decoded(
        self, kind: Kind, measured: NDArray[np.bool_], rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        codes = [self.batches.index(name) for name in self.measured_in[kind]]
        return self.model.decoded(kind, measured, codes, rows)

    def _observed(self, kind: Kind, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Measured values on the scale of the decoded ones."""
        start = sum(len(self.names[other]) for other in self.kinds[: self.kinds.index(kind)])
        n = len(self.names[kind])
        counts = sp.csr_matrix(self.model.adata.X[rows][:, start : start + n])
        totals = np.asarray(counts.sum(axis=1)).ravel()
        values: Any = normalised(kind, counts, totals, np.ones(n, np.float32))
        return np.asarray(values.toarray() if sp.issparse(values) else values, np.float32)

    def _blocks(self, sources: Sequence[Kind], rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Where the sources put each cell, and what their encoders read."""
        blocks = [self.model.posterior(np.tile(self._mask(sources), (len(rows), 1)), rows)[0]]
        for kind in sources:
            blocks += self.readings[kind].blocks(np.asarray(self.model.adata.obsm[inputs_key(kind)])[rows])
        return blocks

    def _mask(self, kinds: Sequence[Kind]) -> NDArray[np.bool_]:
        return np.isin(self.kinds, kinds)
