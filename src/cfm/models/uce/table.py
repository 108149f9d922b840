"""Protein vectors, read row by row where they lie, and the token vectors that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cfm.nn.rows import ROWS

from .species import FIRST_GENE


class ProteinRows(Protocol):
    """A table of which single rows can be had."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, rows: Tensor) -> Tensor:
        """float[n, width] for the rows int64[n]."""
        ...


@dataclass(frozen=True)
class TrainedRows:
    """The table of a checkpoint, mapped from its file: rows that nobody asks for are never read.

    Parameters
    ----------
    weight
        float[rows, width].
    """

    weight: Tensor

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.weight[rows].float()


@dataclass(frozen=True)
class NewRows:
    """A table for a species that the model was not trained on: special tokens, its proteins, its chromosomes.

    Parameters
    ----------
    special
        float[4, width], those of the checkpoint.
    proteins
        float[width] of each gene, mapped from the file of the user.
    chromosomes
        float[chromosomes, width].
    """

    special: Tensor
    proteins: list[Tensor]
    chromosomes: Tensor

    def __len__(self) -> int:
        return FIRST_GENE + len(self.proteins) + len(self.chromosomes)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.stack([self._row(row) for row in rows.tolist()])

    def _row(self, row: int) -> Tensor:
        if row < FIRST_GENE:
            return self.special[row].float()
        gene = row - FIRST_GENE
        return (
            self.proteins[gene] if gene < len(self.proteins) else self.chromosomes[gene - len(self.proteins)]
        ).float()


class TokenVectors:
    """The projected vector of each token; each is computed when it is first seen, and kept.

    Official code gathers the wide protein vectors of all tokens of a batch and projects each of them again.

    Parameters
    ----------
    table
        Protein vectors.
    project
        From float[n, width of the table] to float[n, dim].
    dim
        Length of a projected vector.
    device
        Where the projected ones are kept.
    """

    def __init__(self, table: ProteinRows, project: Callable[[Tensor], Tensor], dim: int, device: torch.device) -> None:
        self._table, self._project, self._device = table, project, device
        self._slots = torch.full((len(table),), -1, dtype=torch.int64, device=device)
        self._vectors = torch.empty(0, dim, device=device)
        self.n_read = 0
        """Rows of the table that were read so far."""

    def __call__(self, ids: Tensor) -> Tensor:
        """float[n, dim] for the tokens int64[n]."""
        slots = self._slots[ids]
        if (slots < 0).any():
            for some in ids[slots < 0].unique().split(ROWS):  # wide rows: few of them are in memory at a time
                self._add(some)
            slots = self._slots[ids]
        return self._vectors[slots]

    # What is kept outlives the call: a tensor of inference mode could not be written to outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _add(self, ids: Tensor) -> None:
        made = self._project(self._table[ids.cpu()].to(self._device))
        first, last = self.n_read, self.n_read + len(ids)
        if last > len(self._vectors):
            # Room for twice as many: packs bring a few new genes each, long after most are known.
            room = min(max(last, 2 * len(self._vectors)), len(self._slots))
            larger = self._vectors.new_empty(room, self._vectors.shape[1])
            larger[:first] = self._vectors[:first]
            self._vectors = larger
        self._vectors[first:last] = made
        self._slots[ids] = torch.arange(first, last, device=self._device)
        self.n_read = last
