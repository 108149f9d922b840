"""Fixtures that several rooms share: real cells, what the logger said, and the forms in which a matrix can be stored."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import cfm
from cfm._core.logging import logger

FORMS = (
    "dense",
    "dense_fortran",
    "csr_matrix",
    "csc_matrix",
    "csr_array",
    "csc_array",
    "unsorted",
    "stored_zeros",
    "float64",
    "int32",
    "int64",
    "uint16",
    "view",
    "backed_csr",
    "backed_csc",
    "backed_dense",
    "zarr",
    "lazy_h5ad",
    "lazy_zarr",
    "dask_dense",
    "dask_csr",
)
"""Names that `stored_as` takes."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `form` runs once for each way to store a matrix."""
    if "form" in metafunc.fixturenames:
        metafunc.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def _no_progress_bars() -> Iterator[None]:
    with cfm.settings.override(progress=False):
        yield


@pytest.fixture(scope="session")
def _pbmc() -> AnnData:
    return cfm.datasets.pbmc68k()


@pytest.fixture
def pbmc(_pbmc: AnnData) -> AnnData:
    """700 real blood cells with raw counts in X (CSR float32): a copy of one's own."""
    return _pbmc.copy()


@pytest.fixture
def few(_pbmc: AnnData) -> AnnData:
    """60 of the real cells, of all labels."""
    return _pbmc[::11][:60].copy()


@pytest.fixture
def emptied() -> Callable[[AnnData, list[int]], AnnData]:
    """``emptied(adata, cells)``: a copy in which some cells have no counts."""

    def make(adata: AnnData, cells: list[int]) -> AnnData:
        kept = np.ones(adata.n_obs)
        kept[cells] = 0
        other = adata.copy()
        other.X = sp.csr_matrix(sp.diags(kept) @ other.X).astype(np.float32)
        other.X.eliminate_zeros()
        return other

    return make


@pytest.fixture
def log_normalise() -> Callable[[AnnData], None]:
    """``log_normalise(adata)``: log(1 + 10,000 x / sum) in place; scanpy's takes seconds to compile."""

    def normalise(adata: AnnData) -> None:
        sums = np.asarray(adata.X.sum(axis=1)).ravel()
        adata.X = sp.csr_matrix(sp.diags(1e4 / sums) @ adata.X).log1p().astype(np.float32)

    return normalise


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the ``cfm`` logger says during the test, as ``"LEVEL message"``; it does not propagate to caplog."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(f"{record.levelname} {record.getMessage()}")

    handler = Keep()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def stored_as(tmp_path: Path) -> Callable[[AnnData, str], AnnData]:
    """``stored_as(adata, form)``: the same cells with X in another form, one of `FORMS`."""

    def make(adata: AnnData, form: str) -> AnnData:
        import dask.array as da

        counts = sp.csr_matrix(adata.X)
        path = tmp_path / form

        def holding(x: Any) -> AnnData:
            return AnnData(x, obs=adata.obs.copy(), var=adata.var.copy())

        def file(x: Any) -> Path:
            holding(x).write_h5ad(path.with_suffix(".h5ad"))
            return path.with_suffix(".h5ad")

        def store(x: Any) -> Path:
            holding(x).write_zarr(path.with_suffix(".zarr"))
            return path.with_suffix(".zarr")

        match form:
            case "dense":
                return holding(counts.toarray())
            case "dense_fortran":
                return holding(np.asfortranarray(counts.toarray()))
            case "csr_matrix":
                return holding(counts)
            case "csc_matrix":
                return holding(counts.tocsc())
            case "csr_array":
                return holding(sp.csr_array(counts))
            case "csc_array":
                return holding(sp.csc_array(counts))
            case "unsorted":
                # Within each row from the last column to the first.
                order = np.lexsort((-counts.indices, np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))))
                mixed = (counts.data[order], counts.indices[order], counts.indptr)
                return holding(sp.csr_matrix(mixed, shape=counts.shape))
            case "stored_zeros":
                full = counts.toarray()
                columns = np.tile(np.arange(full.shape[1], dtype=np.int32), len(full))
                ends = np.arange(len(full) + 1) * full.shape[1]
                return holding(sp.csr_matrix((full.ravel(), columns, ends), shape=full.shape))
            case "float64" | "int32" | "int64" | "uint16":
                return holding(counts.astype(form))
            case "view":
                # A view that leaves out other cells and other genes.
                padded = ad.concat([holding(counts), holding(counts)], keys=["a", "b"], index_unique="-")
                return padded[adata.n_obs :]
            case "backed_csr":
                return ad.read_h5ad(file(counts), backed="r")
            case "backed_csc":
                return ad.read_h5ad(file(counts.tocsc()), backed="r")
            case "backed_dense":
                return ad.read_h5ad(file(counts.toarray()), backed="r")
            case "zarr":
                return ad.read_zarr(store(counts))
            case "lazy_h5ad":
                return ad.experimental.read_lazy(file(counts))
            case "lazy_zarr":
                return ad.experimental.read_lazy(store(counts))
            case "dask_dense":
                return holding(da.from_array(counts.toarray(), chunks=(17, 300)))
            case "dask_csr":
                return holding(da.from_array(counts, chunks=(17, counts.shape[1])))
        raise AssertionError(form)

    return make


@pytest.fixture
def digests() -> Callable[[AnnData], dict[str, str]]:
    """``digests(adata)``: a SHA-256 of every array, frame and entry of an object in memory, by its place."""
    return _digests


def _digests(adata: AnnData) -> dict[str, str]:
    found = {"X": _digest(adata.X), "obs_names": _digest(adata.obs_names), "var_names": _digest(adata.var_names)}
    for slot in ("layers", "obsm", "varm", "obsp", "varp"):
        for key, value in getattr(adata, slot).items():
            if key is not None:  # anndata >= 0.13 lists X among the layers
                found[f"{slot}[{key}]"] = _digest(value)
    for slot in ("obs", "var"):
        frame = getattr(adata, slot)
        for column in frame.columns:
            found[f"{slot}[{column}]"] = _digest(frame[column])
    if adata.raw is not None:
        found |= {"raw.X": _digest(adata.raw.X), "raw.var": _digest(adata.raw.var)}
    for key, value in adata.uns.items():
        found[f"uns[{key}]"] = _digest(value)
    return found


def _digest(value: Any) -> str:
    if sp.issparse(value):
        parts = [value.format, *map(_digest, (value.data, value.indices, value.indptr))]
    elif isinstance(value, np.ndarray) and value.dtype != object:
        parts = [str(value.dtype), str(value.shape), np.ascontiguousarray(value).tobytes().hex()]
    elif isinstance(value, pd.DataFrame | pd.Series | pd.Index):
        parts = [str(getattr(value, "dtype", "")), str(pd.util.hash_pandas_object(value).tolist())]
    else:
        parts = [repr(value)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@pytest.fixture
def write_model(_pbmc: AnnData) -> Callable[..., None]:
    """``write_model(folder, seed=0)``: a complete model folder over 400 genes of the real cells, with random weights."""
    # Here and not on top: tests that need no model shall not wait for torch.
    import torch

    from cfm.genes import Vocabulary, match
    from cfm.models.mini.checkpoint import digest, write_module
    from cfm.models.mini.module import GeneBag
    from cfm.models.reference import Reference

    genes = cfm.models.load("cfm-mini", device="cpu").vocabulary
    tokens = np.unique(match(_pbmc.var, genes).tokens)[1:401]
    vocabulary = Vocabulary(tuple(genes.ensembl_ids[t] for t in tokens), tuple(genes.symbols[t] for t in tokens))

    def write(folder: Path, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = GeneBag(400, width=16, dim=8)
            torch.nn.init.normal_(module.output.weight, std=0.1)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"version": "9.9.9", "licence": "CC0-1.0", "species": "human", "width": 16, "dim": 8}
        write_module(folder, module, vocabulary, config)
        vectors = np.random.default_rng(seed).normal(size=(40, 8)).astype(np.float32)
        Reference.of(vectors, ["a", "b"] * 20).write(folder / "reference.safetensors", digest(folder))

    return write


@pytest.fixture
def folder(tmp_path: Path, write_model: Callable[..., None]) -> Path:
    """A small model folder of one's own, called ``my-model``."""
    write_model(tmp_path / "my-model")
    return tmp_path / "my-model"
