"""What every model family gives, and nothing about AnnData.

A family is a folder beside this file with a class that keeps `CellModel`, and an entry in ``registry.toml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from cfm.genes import GeneMatch, Vocabulary
from cfm.tokens import TokenBatch

NO_COLUMNS: Mapping[str, NDArray[Any]] = MappingProxyType({})
"""What a model gets that reads no column of ``obs``."""


@dataclass(frozen=True)
class ObsColumn:
    """A column of ``obs`` that a model reads, as numbers.

    Parameters
    ----------
    name
        Name of the column.
    categories
        The column may hold text or categories, if there are exactly so many: they are numbered from 0 in alphabetical
        order. None takes numbers only.
    names
        The categories in the order of their numbers, where the model knows them: the column may then hold some of them.
    """

    name: str
    categories: int | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """What a model is.

    Parameters
    ----------
    name
        Registry name, or the name of the folder it came from.
    family
        Family that reads it.
    version
        Version of the weights.
    digest
        First 12 hexadecimal digits of the SHA-256 of the weights file.
    licence
        Licence of the weights.
    species
        Species of its genes.
    dim
        Length of a cell vector.
    max_tokens
        Most tokens that a cell can have.
    outputs
        What `CellModel.forward` can give.
    special_tokens
        Tokens of a cell that are no genes, such as ``<cls>``; None where cells have any number of them, or repeat
        genes: the genes of a cell are then counted as the distinct ones of `CellModel.gene_tokens` among its tokens.
    positions
        Of outputs for which the network sees all genes of a cell, expressed or not: how many positions that are.
    min_genes
        Cells with fewer genes were left out of its training; they get a vector all the same, and a message counts them.
    counts
        Whether it reads raw counts. Otherwise it was told that the values are normalised.
    min_cells
        Genes that fewer cells of the object express are left out before anything else. It makes the tokens of a cell
        depend on the others, and is there for comparing with official code.
    """

    name: str
    family: str
    version: str
    digest: str
    licence: str
    species: str
    dim: int
    max_tokens: int
    outputs: frozenset[str]
    special_tokens: int | None = 0
    positions: Mapping[str, int] = field(default_factory=dict)
    min_genes: int = 0
    counts: bool = True
    min_cells: int = 0


@dataclass(frozen=True)
class Pack:
    """Some tokenised cells as tensors on a device, ragged as in `TokenBatch`.

    Parameters
    ----------
    ids
        int64[n_tokens].
    values
        float32[n_tokens], or None.
    offsets
        int64[n_cells + 1].
    cell_scalars
        float32[n_cells] by name.
    """

    ids: torch.Tensor
    values: torch.Tensor | None
    offsets: torch.Tensor
    cell_scalars: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: TokenBatch, device: torch.device) -> Self:
        """Copy a batch to a device."""
        values = None if batch.values is None else torch.from_numpy(batch.values).to(device)
        # Embedding look-ups take int64 everywhere; the host copy stays int32, half the memory.
        ids = torch.from_numpy(batch.ids).to(device).long()
        scalars = {name: torch.from_numpy(numbers).to(device) for name, numbers in batch.cell_scalars.items()}
        return cls(ids, values, torch.from_numpy(batch.offsets).to(device), scalars)

    def to(self, device: torch.device) -> Pack:
        """The pack on another device."""
        values = None if self.values is None else self.values.to(device)
        scalars = {name: numbers.to(device) for name, numbers in self.cell_scalars.items()}
        return Pack(self.ids.to(device), values, self.offsets.to(device), scalars)


class Tokenizer(Protocol):
    """Turns CSR rows over the genes of one file into tokens. Picklable, and free of torch."""

    def __call__(self, counts: sp.csr_matrix | sp.csr_array, start: int) -> TokenBatch:
        """Tokenise cells; `start` is the position in the file of the first."""
        ...


class CellModel(Protocol):
    """Weights on a device."""

    spec: ModelSpec
    vocabulary: Vocabulary
    device: torch.device
    obs_columns: Mapping[str, ObsColumn]
    """Columns of ``obs`` that the model reads, by the name under which it gets them; empty for most models."""
    token_options: frozenset[str]
    """Options of `load` that decide what the tokens are; stored tokens carry them along."""

    @staticmethod
    def recognises(folder: Path) -> bool:
        """Whether a folder has the layout of this family."""
        ...

    @classmethod
    def load(cls, folder: Path, *, name: str, device: torch.device, **options: Any) -> Self:
        """Read a folder; strict: missing, left-over or misshapen weights are an error.

        Options of the family stand in the signature by name: the registry refuses others, and lists these.
        """
        ...

    def tokenizer(self, match: GeneMatch, columns: Mapping[str, NDArray[Any]] = NO_COLUMNS) -> Tokenizer:
        """The tokeniser for a file whose genes match like this; `columns` has what `obs_columns` names."""
        ...

    def forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, torch.Tensor]:
        """The outputs asked for, by name.

        ``"cell"`` is float32[n_cells, dim], ``"token"`` float32[n_tokens, any]: a vector for each token in its cell.
        ``"gene"`` is float32[n_cells, genes of the vocabulary, any]: a vector for every gene in the cell, expressed or
        not; ``"gene_expression"`` float32[n_cells, genes of the vocabulary], what the model predicts for each.
        """
        ...

    def gene_tokens(self) -> NDArray[np.int64]:
        """int64[genes of the vocabulary]: token id of each gene."""
        ...

    def gene_vectors(self) -> NDArray[np.float32]:
        """float32[genes of the vocabulary, any]: one vector per gene, outside the context of a cell."""
        ...

    def reference(self) -> Any:
        """The packaged reference for annotation (`cfm.models.reference.Reference`), or None."""
        ...
