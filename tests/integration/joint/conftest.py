"""Three modalities of the same real cells, some of which lack one, and a model trained on them for a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

import cfm
from cfm.integration.features import Kind
from cfm.integration.joint import fitting
from cfm.integration.joint.table import Measured, Reading, make_table

N_CELLS = 90
MISSING: dict[Kind, slice] = {"rna": slice(70, 90), "protein": slice(40, 60), "atac": slice(20, 50)}
"""Cells that lack a modality; 40 to 49 have RNA alone."""


def part_of(counts: sp.csr_matrix, names: list[str], rows: NDArray[np.int64]) -> Measured:
    own = sp.csr_matrix(counts[rows], dtype=np.float32)
    return Measured(own, np.asarray(own.sum(axis=1), np.float64).ravel(), rows, np.array(names))


@pytest.fixture(scope="session")
def parts(_pbmc: AnnData) -> dict[Kind, Measured]:
    """RNA, proteins and peaks, each made of other genes of the same cells."""
    counts = sp.csr_matrix(_pbmc.X)[::7][:N_CELLS]
    order = np.argsort(-counts.getnnz(axis=0), kind="stable")
    columns: dict[Kind, NDArray[np.int64]] = {"protein": order[:10], "rna": order[10:130], "atac": order[130:200]}
    found: dict[Kind, Measured] = {}
    for kind in ("rna", "protein", "atac"):
        own = counts[:, columns[kind]]
        rows = np.delete(np.arange(N_CELLS), MISSING[kind])
        found[kind] = part_of(own, [f"{kind[0]}{i}" for i in range(own.shape[1])], rows)
    return found


@pytest.fixture(scope="session")
def batch() -> NDArray[np.str_]:
    return np.array(["a", "b"] * (N_CELLS // 2))


@pytest.fixture(scope="session")
def fit(parts: Mapping[Kind, Measured], batch: NDArray[np.str_]) -> Callable[..., fitting.Joint]:
    """``fit(seed=0, epochs=2, folder=None)``: a model on the CPU."""

    def make(**given: Any) -> fitting.Joint:
        options = {"seed": 0, "epochs": 2, "folder": None, "device": "cpu"} | given
        with cfm.settings.override(progress=False):
            return fitting.fit(options.pop("parts", parts), options.pop("batch", batch), N_CELLS, **options)

    return make


@pytest.fixture(scope="session")
def joint(fit: Callable[..., fitting.Joint]) -> fitting.Joint:
    """Not to be changed."""
    return fit(epochs=5)


@pytest.fixture(scope="session")
def table(parts: Mapping[Kind, Measured], batch: NDArray[np.str_]) -> AnnData:
    """What the network trains on."""
    return make_table(parts, {kind: Reading.fit(kind, part) for kind, part in parts.items()}, batch, N_CELLS)


@pytest.fixture
def weights() -> Callable[[fitting.Joint], dict[str, bytes]]:
    """``weights(joint)``: all weights of the network, bit by bit."""

    def read(joint: fitting.Joint) -> dict[str, bytes]:
        return {name: tensor.numpy().tobytes() for name, tensor in joint.model.module.state_dict().items()}

    return read
