"""Labelled cell vectors, and the transfer of their labels to other cells by nearest neighbours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.neighbors import NearestNeighbors

from cfm._core.errors import CheckpointError, OptionError
from cfm._core.resources import atomic_path

UNKNOWN = "unknown"

_REACH_QUANTILE = 0.99
_REACH_SLACK = 1.25

_FACTS = "reference"
_BLOCK_CELLS = 8192


@dataclass(frozen=True)
class Transfer:
    """Labels for cells.

    Parameters
    ----------
    labels
        The label of most neighbours, or ``"unknown"``.
    confidence
        float32: share of the neighbours that carry the label, 0 to 1; for an unknown cell that of the label it
        would have got.
    """

    labels: NDArray[np.object_]
    confidence: NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """Vectors with labels.

    Parameters
    ----------
    vectors
        float32[n, dim].
    codes
        int32[n]: label of each vector, as a position in `names`.
    names
        The labels.
    ontology_ids
        Cell Ontology id of each label, or an empty text.
    reach
        float32[labels]: mean neighbour distance beyond which a cell is none of this label.
    n_neighbors
        Neighbours that vote.
    """

    vectors: NDArray[np.float32]
    codes: NDArray[np.int32]
    names: tuple[str, ...]
    ontology_ids: tuple[str, ...]
    reach: NDArray[np.float32]
    n_neighbors: int

    @classmethod
    def of(
        cls,
        vectors: NDArray[np.float32],
        labels: Sequence[str] | NDArray[np.str_],
        *,
        ontology_ids: dict[str, str] | None = None,
        n_neighbors: int = 15,
        probes: tuple[NDArray[np.float32], NDArray[np.str_]] | None = None,
    ) -> Reference:
        """Make a reference, and learn from labelled cells how far each label reaches.

        The reach of a label is 1.25 times the 99th percentile of the mean distance from its cells to their nearest
        reference vectors. The slack is for other laboratories, whose cells lie a little further.

        Parameters
        ----------
        vectors, labels
            The reference.
        ontology_ids
            Cell Ontology id of labels, where known.
        n_neighbors
            Neighbours that vote.
        probes
            Vectors and labels of the cells that set the reach, where `vectors` are means of cells. None takes the
            reference itself, each vector left out in its turn.

        Raises
        ------
        OptionError
            Fewer labelled vectors than neighbours.
        """
        if n_neighbors < 1:
            raise OptionError(f"n_neighbors={n_neighbors}: at least one labelled cell has to vote.")
        names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
        if len(vectors) <= n_neighbors:
            msg = f"The reference has {len(vectors)} labelled cells; {n_neighbors} neighbours need more than that. Pass a smaller n_neighbors=, or more cells."
            raise OptionError(msg)
        index = NearestNeighbors(n_neighbors=n_neighbors).fit(vectors)
        probe_vectors, probe_labels = probes if probes is not None else (None, names[codes])
        distance = index.kneighbors(probe_vectors)[0].mean(axis=1)
        reach = [_REACH_SLACK * np.quantile(distance[probe_labels == name], _REACH_QUANTILE) for name in names]
        ids = ontology_ids or {}
        return cls(
            vectors=np.asarray(vectors, np.float32),
            codes=codes.astype(np.int32),
            names=tuple(map(str, names)),
            ontology_ids=tuple(ids.get(str(name), "") for name in names),
            reach=np.asarray(reach, np.float32),
            n_neighbors=n_neighbors,
        )

    def transfer(self, vectors: NDArray[np.float32]) -> Transfer:
        """Label cells by the votes of their nearest reference vectors.

        A draw goes to the label whose voters are nearer. A cell whose neighbours lie beyond the reach of the winning
        label is ``"unknown"``, and so is a cell whose vector is zero: nothing of it could be read.
        """
        index = NearestNeighbors(n_neighbors=self.n_neighbors).fit(self.vectors)
        # In blocks: the votes are a table of cells times labels.
        starts = range(0, len(vectors), _BLOCK_CELLS)
        parts = [self._transfer(index, vectors[start : start + _BLOCK_CELLS]) for start in starts]
        if not parts:
            return Transfer(np.empty(0, object), np.empty(0, np.float32))
        return Transfer(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _transfer(
        self, index: NearestNeighbors, vectors: NDArray[np.float32]
    ) -> tuple[NDArray[np.object_], NDArray[np.float32]]:
        """The columns of `Transfer` for some cells."""
        distances, neighbors = index.kneighbors(vectors)
        rows = np.arange(len(vectors))[:, None]
        votes = np.zeros((len(vectors), len(self.names)))
        np.add.at(votes, (rows, self.codes[neighbors]), 1.0)
        closeness = np.zeros_like(votes)
        np.add.at(closeness, (rows, self.codes[neighbors]), 1 / (1 + distances))
        # Closeness is below 1 a vote, so divided like this it decides draws and nothing else.
        winner = (votes + closeness / (self.n_neighbors + 1)).argmax(axis=1)
        mean_distance = distances.mean(axis=1).astype(np.float32)
        labels = np.asarray(self.names, dtype=object)[winner]
        labels[(mean_distance > self.reach[winner]) | ~vectors.any(axis=1)] = UNKNOWN
        confidence = (votes[rows[:, 0], winner] / self.n_neighbors).astype(np.float32)
        return labels, confidence

    def write(self, path: Path, weights_digest: str) -> None:
        """Write a safetensors file; vectors in float16, and the digest of the weights that made them."""
        tensors: dict[str, NDArray[Any]] = {
            "vectors": self.vectors.astype(np.float16),
            "codes": self.codes,
            "reach": self.reach,
        }
        facts = {
            "names": self.names,
            "ontology_ids": self.ontology_ids,
            "n_neighbors": self.n_neighbors,
            "weights": weights_digest,
        }
        with atomic_path(path) as temporary:
            # One key: the format writes several in random order, and the same run is to give the same bytes.
            save_file(tensors, temporary, metadata={_FACTS: json.dumps(facts)})

    @classmethod
    def read(cls, path: Path, weights_digest: str) -> Reference:
        """Read what `write` wrote; vectors of other weights than these are refused."""
        try:
            with safe_open(path, framework="numpy") as handle:
                facts = json.loads((handle.metadata() or {})[_FACTS])
                found = cls(
                    vectors=handle.get_tensor("vectors").astype(np.float32),
                    codes=handle.get_tensor("codes"),
                    names=tuple(facts["names"]),
                    ontology_ids=tuple(facts["ontology_ids"]),
                    reach=handle.get_tensor("reach"),
                    n_neighbors=int(facts["n_neighbors"]),
                )
                made_with = facts["weights"]
            found._check()
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"{path} is no reference for annotation: {error}. Copy the file again.") from error
        if made_with != weights_digest:
            msg = (
                f"{path} was made with other weights ({made_with}) than those beside it ({weights_digest}). The files "
                "of one folder belong together: copy all from one source."
            )
            raise CheckpointError(msg)
        return found

    def _check(self) -> None:
        """ValueError where parts contradict each other: a file can be whole and wrong."""
        if self.vectors.ndim != 2 or not np.isfinite(self.vectors).all():
            raise ValueError(f"vectors of shape {self.vectors.shape} have to be a table of finite numbers")
        n, labels = len(self.vectors), len(self.names)
        if (
            self.codes.shape != (n,)
            or self.codes.dtype.kind != "i"
            or self.codes.min() < 0
            or self.codes.max() >= labels
        ):
            raise ValueError(f"codes do not name one of {labels} labels for each of {n} vectors")
        if self.reach.shape != (labels,) or len(self.ontology_ids) != labels:
            raise ValueError(f"reach and ontology ids do not belong to {labels} labels")
        if not 1 <= self.n_neighbors <= n:
            raise ValueError(f"{self.n_neighbors} neighbours of {n} vectors")
