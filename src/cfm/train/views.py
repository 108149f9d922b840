"""Training views: thinned cells with some genes hidden. A step's views depend on (seed, step) and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cfm.models import Pack
from cfm.models.mini.tokenizer import log_normalise
from cfm.tokens import TokenBatch
from cfm.tokens.rows import GeneRows

from .corpus import UNLABELLED, Corpus, LabelledFile
from .recipe import Training, Views

_MIN_VISIBLE_COUNTS = 20
"""A view with fewer counts says nothing about its cell and is left out of the step."""


@dataclass(frozen=True)
class View:
    """Cells of one file in one step.

    Parameters
    ----------
    file
        Number of the file.
    pack
        The visible genes.
    hidden_genes
        int64[h]: genes that are hidden in this view and measured in the file.
    hidden_counts
        float32[n_cells, h].
    visible_counts
        float32[n_cells]: sum of the visible counts.
    labels
        int64[n_cells], -1 for none; all -1 where the file does not tell labels apart.
    """

    file: int
    pack: Pack
    hidden_genes: torch.Tensor
    hidden_counts: torch.Tensor
    visible_counts: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device, **_: object) -> View:
        """The view on another device; Lightning calls it."""
        return View(
            self.file,
            self.pack.to(device),
            *(t.to(device) for t in (self.hidden_genes, self.hidden_counts, self.visible_counts, self.labels)),
        )


class TrainingViews(Dataset[list[View]]):
    """The steps of one epoch.

    Parameters
    ----------
    corpus
        Cells to draw from.
    views, training
        From the recipe.
    epoch
        Number of the epoch; -1 gives the fixed views of validation.
    """

    def __init__(self, corpus: Corpus, views: Views, training: Training, epoch: int) -> None:
        self.corpus, self.views, self.training, self.epoch = corpus, views, training, epoch
        cells = np.array([file.counts.shape[0] for file in corpus.files])
        weight = np.minimum(cells, training.file_cap) ** training.file_power
        self._probability = weight / weight.sum()

    def __len__(self) -> int:
        return self.training.steps_per_epoch

    def __getitem__(self, step: int) -> list[View]:
        if not 0 <= step < len(self):
            raise IndexError(step)
        rng = np.random.default_rng([self.training.seed, self.epoch + 1, step])
        drawable = int((self._probability > 0).sum())
        files = rng.choice(
            len(self.corpus.files), min(self.training.files_per_step, drawable), replace=False, p=self._probability
        )
        made = [self._view(int(number), rng) for number in files]
        return [view for view in made if view is not None]

    def _view(self, number: int, rng: np.random.Generator) -> View | None:
        file = self.corpus.files[number]
        n_cells = file.counts.shape[0]
        rows = rng.choice(n_cells, min(self.training.cells_per_file, n_cells), replace=False)
        return make_view(file, number, rows, self.views, rng)


def make_view(
    file: LabelledFile, number: int, rows: NDArray[np.int64], views: Views, rng: np.random.Generator
) -> View | None:
    """Thin the counts of some cells, then hide a random share of the genes from all of them."""
    counts = thin(file.counts[rows], views, rng)
    hidden = rng.random(counts.shape[1]) < rng.uniform(*views.masked)
    visible = keep_genes(counts, ~hidden)
    sums = np.asarray(visible.sum(axis=1)).ravel()
    good = np.flatnonzero(sums >= _MIN_VISIBLE_COUNTS)
    if len(good) == 0:
        return None
    genes = np.flatnonzero(hidden & file.measured)
    return View(
        file=number,
        pack=pack_of(sp.csr_array(visible[good])),
        hidden_genes=torch.from_numpy(genes),
        hidden_counts=torch.from_numpy(counts[good][:, genes].toarray()),
        visible_counts=torch.from_numpy(sums[good].astype(np.float32)),
        labels=torch.from_numpy(file.labels[rows[good]] if file.tells_labels_apart else np.full(len(good), UNLABELLED)),
    )


def thin(counts: sp.csr_array, views: Views, rng: np.random.Generator) -> sp.csr_array:
    """Keep each molecule with a probability drawn for its cell; cells above `max_counts` keep fewer."""
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    share = rng.uniform(views.min_depth, 1, len(totals))
    deep = share * totals > views.max_counts
    share[deep] = views.max_counts / totals[deep] * rng.uniform(views.min_depth, 1, int(deep.sum()))
    kept = rng.binomial(counts.data.astype(np.int64), np.repeat(share, np.diff(counts.indptr)))
    thinned = sp.csr_array((kept.astype(np.float32), counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
    thinned.eliminate_zeros()
    return thinned


def keep_genes(counts: sp.csr_array, keep: NDArray[np.bool_]) -> sp.csr_array:
    """The counts of some genes, the others set to zero and not stored."""
    kept = keep[counts.indices]
    offsets = np.concatenate(([0], np.cumsum(kept)))[counts.indptr]
    return sp.csr_array((counts.data[kept], counts.indices[kept], offsets), shape=counts.shape)


def pack_of(counts: sp.csr_array) -> Pack:
    """The tokens of CSR rows over the vocabulary, as cfm-mini sees them."""
    offsets = counts.indptr.astype(np.int64)
    rows = GeneRows(counts.indices.astype(np.int32), counts.data.astype(np.float64), offsets, np.empty(0))
    batch = TokenBatch(rows.ids, log_normalise(rows), offsets, np.arange(counts.shape[0]))
    return Pack.of(batch, torch.device("cpu"))
