"""Cells to fine-tune on, and the mini-batches that they come in. All that is random depends on (seed, epoch, step)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cfm._core.errors import CountsError, OptionError
from cfm.genes import GeneMatch
from cfm.models import CellModel, Tokenizer
from cfm.models.scgpt.module import Inputs
from cfm.models.scgpt.objective import MASKED, hidden

VALIDATION = -1
"""In the place of an epoch."""
_SPLIT, _ORDER, _HIDDEN, _DROPOUT = range(4)


@dataclass(frozen=True)
class Cells:
    """Counts with the batch of each cell.

    Parameters
    ----------
    counts
        CSR, n_cells x columns: raw counts, of all modalities beside each other.
    names
        For each column its name in the vocabulary of the model, or None for a column that is not read. Names that
        begin with ``p_`` are proteins, and need not be in the vocabulary.
    batches
        int64[n_cells]: number of each cell's batch.
    batch_names
        Their names in the order of numbers, which is alphabetical where no other is wanted.

    Raises
    ------
    OptionError
        The parts do not go together, or a batch has no cells.
    CountsError
        Values below 0, infinite or missing.
    """

    counts: sp.csr_array
    names: tuple[str | None, ...]
    batches: NDArray[np.int64]
    batch_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.counts.shape != (len(self.batches), len(self.names)):
            msg = f"Counts of {self.counts.shape[0]:,} cells in {self.counts.shape[1]:,} columns do not go with the batches of "
            raise OptionError(f"{msg}{len(self.batches):,} cells and {len(self.names):,} names. Pass one of each.")
        n = len(self.batch_names)
        if len(self.batches) == 0 or self.batches.min() < 0 or self.batches.max() >= n:
            told = f"from {self.batches.min()} to {self.batches.max()}" if len(self.batches) else "of no cells"
            raise OptionError(f"Batches are numbers from 0 to {n - 1}, in the order of {n} names; these are {told}.")
        if empty := [name for name, size in zip(self.batch_names, self._sizes(), strict=True) if not size]:
            raise OptionError(f"{len(empty)} of {n} batches have no cells: {empty[:5]}. Leave their names out.")
        if not (self.counts.data >= 0).all() or not np.isfinite(self.counts.data).all():
            raise CountsError("These counts hold values below 0, infinite or missing. Pass raw counts.")

    @classmethod
    def matched(
        cls,
        counts: sp.csr_array,
        match: GeneMatch,
        model: CellModel,
        batches: NDArray[np.int64],
        batch_names: tuple[str, ...],
    ) -> Cells:
        """Cells of one modality; `match` tells which gene of the model each column of `counts` is."""
        symbols = model.vocabulary.symbols
        names = tuple(symbols[token] if token >= 0 else None for token in match.tokens.tolist())
        return cls(counts, names, batches, batch_names)

    def _sizes(self) -> NDArray[np.int64]:
        return np.bincount(self.batches, minlength=len(self.batch_names))

    def read(self) -> list[str]:
        """The names of the columns that are read."""
        return [name for name in self.names if name is not None]

    def tokens(self, ids: dict[str, int]) -> NDArray[np.int32]:
        """int32[columns]: the token of each, -1 for none."""
        return np.array([-1 if name is None else ids[name] for name in self.names], np.int32)

    def digest(self) -> str:
        """A hash of all of it."""
        found = hashlib.sha256(repr((self.counts.shape, self.names, self.batch_names)).encode())
        for part in (self.counts.data, self.counts.indices, self.counts.indptr, self.batches):
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()[:16]

    def split(self, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows to train on and rows to validate on, drawn from each batch: a batch has to be seen to be learnt.

        Cells without a count in any column that is read are in neither.
        """
        columns = np.array([name is not None for name in self.names])
        seen = np.asarray((self.counts[:, columns] > 0).sum(axis=1)).ravel() > 0
        train, held_out = [], []
        for batch, size in enumerate(self._sizes()):
            rows = _draws(seed, _SPLIT, batch).permutation(np.flatnonzero(seen & (self.batches == batch)))
            # One batch of three cells must not lose any, but some cell has to tell which epoch is best.
            cut = int(share * len(rows)) or int(size == self._sizes().max() and len(rows) > 1)
            train.append(rows[cut:])
            held_out.append(rows[:cut])
        rows = np.concatenate(train)
        if not len(rows):
            raise OptionError("No cell has a count in a gene of the model. Pass raw counts, and names of its genes.")
        left = np.concatenate(held_out)
        return rows, left if len(left) else rows


@dataclass(frozen=True)
class MiniBatch:
    """Some cells with hidden values.

    Parameters
    ----------
    inputs
        What the network sees.
    target
        float[n_tokens]: all values.
    mask
        bool[n_tokens]: those that are hidden.
    seed
        For dropout.
    """

    inputs: Inputs
    target: Tensor
    mask: Tensor
    seed: int

    def to(self, device: torch.device, **_: object) -> MiniBatch:
        """The mini-batch on another device; Lightning calls it."""
        parts = {field.name: getattr(self.inputs, field.name) for field in fields(Inputs)}
        moved: dict[str, Any] = {name: None if part is None else part.to(device) for name, part in parts.items()}
        return MiniBatch(Inputs(**moved), self.target.to(device), self.mask.to(device), self.seed)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.inputs.offsets) - 1


class MiniBatches(Dataset[MiniBatch]):
    """The mini-batches of an epoch.

    Parameters
    ----------
    cells
        All cells.
    rows
        Those that are meant.
    tokenizer
        From counts to tokens.
    modalities
        int64[tokens of the vocabulary], for networks with modalities.
    labelled
        Whether the network knows batches.
    apart
        Whether a mini-batch is of cells of one batch, as norms of batches are trained; they come in random order.
    size
        Most cells of a mini-batch.
    share
        Of a cell's values, how many are hidden.
    seed, epoch
        Decide on everything that is random. The epoch `VALIDATION` has the cells in their order, and always hides the
        same values: losses of two epochs are of the same things.
    """

    def __init__(
        self,
        cells: Cells,
        rows: NDArray[np.int64],
        tokenizer: Tokenizer,
        *,
        modalities: NDArray[np.int64] | None,
        labelled: bool,
        apart: bool,
        size: int,
        share: float,
        seed: int,
        epoch: int,
    ) -> None:
        self.cells, self.tokenizer, self.modalities, self.labelled = cells, tokenizer, modalities, labelled
        self.share, self.seed, self.epoch = share, seed, epoch
        draws = None if epoch == VALIDATION else _draws(seed, _ORDER, epoch)
        self.rows = _cut(rows, cells.batches[rows] if apart else np.zeros(len(rows), np.int64), size, draws)
        """The cells of each mini-batch."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, step: int) -> MiniBatch:
        if not 0 <= step < len(self):
            raise IndexError(step)
        rows = self.rows[step]
        batch = self.tokenizer(sp.csr_array(self.cells.counts[rows]), 0)
        assert batch.values is not None
        mask = hidden(batch.offsets, self.share, _draws(self.seed, _HIDDEN, self.epoch + 1, step))
        ids = torch.from_numpy(batch.ids.astype(np.int64))
        inputs = Inputs(
            ids=ids,
            values=torch.from_numpy(np.where(mask, np.float32(MASKED), batch.values)),
            offsets=torch.from_numpy(batch.offsets),
            batches=torch.from_numpy(self.cells.batches[rows].astype(np.int64)) if self.labelled else None,
            modalities=None if self.modalities is None else torch.from_numpy(self.modalities[batch.ids]),
        )
        dropout = int(_draws(self.seed, _DROPOUT, self.epoch + 1, step).integers(2**63))
        return MiniBatch(inputs, torch.from_numpy(batch.values), torch.from_numpy(mask), dropout)


def _cut(
    rows: NDArray[np.int64], groups: NDArray[np.int64], size: int, draws: np.random.Generator | None
) -> list[NDArray[np.int64]]:
    """Rows in pieces of one group each, shuffled within groups, and the pieces shuffled."""
    pieces = []
    for group in np.unique(groups):
        its_own = rows[groups == group]
        if draws is not None:
            its_own = draws.permutation(its_own)
        pieces += [its_own[i : i + size] for i in range(0, len(its_own), size)]
    return pieces if draws is None else [pieces[i] for i in draws.permutation(len(pieces))]


def _draws(seed: int, purpose: int, first: int, second: int = 0) -> np.random.Generator:
    """Random numbers for one purpose; all keys are of one length, as a shorter one is that with a 0 at its end."""
    return np.random.default_rng([seed, purpose, first, second])
