"""The fixture folder: real cells, small checkpoints, and what the official code gave for them."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray

from cfm import models
from cfm.genes import match
from cfm.models.geneformer import GeneformerModel
from cfm.models.geneformer.tokenizer import GeneformerTokenizer
from cfm.tokens import TokenBatch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks here are so small that threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def official_cells(official: dict[str, NDArray[Any]]) -> Callable[[str], dict[int, list[int]]]:
    """``official_cells("tokens/V2_fold")``: the tokens of each cell by its row; ``"inputs/V1"`` has those with ends."""

    def split(name: str) -> dict[int, list[int]]:
        ids = official[f"{name}_input_ids" if name.startswith("inputs/") else f"{name}_tokens"]
        parts = np.split(ids, official[f"{name}_indptr"][1:-1])
        return {int(row): part.tolist() for row, part in zip(official[f"{name}_cells"], parts, strict=True)}

    return split


@pytest.fixture
def load(fixtures: Path) -> Callable[..., GeneformerModel]:
    """``load("V1_mlm", **options)``: a model of the fixture folder on the CPU."""

    def read(name: str, **options: Any) -> GeneformerModel:
        model = models.load(fixtures / name, device="cpu", **options)
        assert isinstance(model, GeneformerModel)
        return model

    return read


@pytest.fixture
def copied(fixtures: Path, tmp_path: Path) -> Callable[[str], Path]:
    """``copied("V1_mlm")``: a copy of a checkpoint that a test may spoil, with the dictionaries beside it."""

    def copy(name: str) -> Path:
        if not (tmp_path / "dictionaries").exists():
            shutil.copytree(fixtures / "dictionaries", tmp_path / "dictionaries")
        shutil.copytree(fixtures / name, tmp_path / name)
        return tmp_path / name

    return copy


@pytest.fixture
def tokenizer_for() -> Callable[..., GeneformerTokenizer]:
    """``tokenizer_for(model, adata, column="ensembl_id", **columns)``: its tokeniser for the genes of an object."""

    def make(
        model: GeneformerModel, adata: AnnData, *, column: str = "ensembl_id", **columns: NDArray[Any]
    ) -> GeneformerTokenizer:
        return model.tokenizer(match(adata.var, model.vocabulary, gene_column=column), columns)

    return make


@pytest.fixture
def tokens_of() -> Callable[[TokenBatch], list[list[int]]]:
    """``tokens_of(batch)``: a list of tokens for each cell."""
    return lambda batch: [part.tolist() for part in np.split(batch.ids, batch.offsets[1:-1])]


@pytest.fixture
def official_arithmetic() -> Callable[..., list[list[int]]]:
    """The official tokeniser written with numpy and scipy as it stands there, with a stable sort.

    ``official_arithmetic(counts, n_counts, tokens, medians)``: columns without a token (-1) are left out; `counts` may
    be sparse or dense, and keeps its dtype, as does `n_counts`. No ends, no truncation.
    """

    def tokenise(
        counts: Any, n_counts: NDArray[Any], tokens: NDArray[np.int32], medians: NDArray[np.float64]
    ) -> list[list[int]]:
        known = np.flatnonzero(tokens >= 0)
        view = counts[:, known]
        with np.errstate(divide="ignore", invalid="ignore"):
            # Of a sparse matrix scipy makes a product with 1 / n: the rounding is another than of a dense one.
            normalised = view / n_counts[:, None] * 10_000 / medians[known]
        rows = sp.csr_matrix(normalised)
        rows.sort_indices()
        found = []
        for start, stop in zip(rows.indptr[:-1], rows.indptr[1:], strict=True):
            order = np.argsort(-rows.data[start:stop], kind="stable")
            found.append(tokens[known][rows.indices[start:stop][order]].tolist())
        return found

    return tokenise


@pytest.fixture
def spoil() -> Callable[..., None]:
    """``spoil(path, change)``: read a plain pickled dictionary, change it, write it back."""

    def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
        with path.open("rb") as file:
            found = pickle.load(file)
        change(found)
        path.write_bytes(pickle.dumps(found))

    return rewrite
