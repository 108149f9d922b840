"""The training task of cfm-mini: predict hidden genes, and bring cells of one label together."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.models.mini.module import GeneBag

from .corpus import UNLABELLED
from .recipe import Objective, Training
from .views import View


class MaskedGenes(pl.LightningModule):
    """Loss = minus the mean log-probability of hidden counts given the visible ones, plus a contrast of labels.

    The hidden count of gene g in cell c of file f is Poisson with rate (visible counts / 1000) x
    exp(log rate of g given the cell's vector + b_fg). The offset b_fg takes up what is peculiar to a file
    (chemistry, ambient RNA), so that the vector need not; it exists in training only and is not shipped.

    The contrast is the supervised one of Khosla et al. 2020 (eq. 2) over the labelled cells of a step, with one
    change: a cell is pulled to cells of its label in every file, and pushed only from cells of its own file. Most
    files hold a few labels, some a single one, so telling files apart would pass for telling labels apart.

    Parameters
    ----------
    module
        The network.
    n_files
        Files of the corpus.
    compatible
        bool[labels, labels]: pairs that are never told apart though their names differ (a wide label and its parts).
    objective, training
        From the recipe.
    """

    compatible: Tensor

    def __init__(
        self, module: GeneBag, n_files: int, compatible: Tensor, objective: Objective, training: Training
    ) -> None:
        super().__init__()
        self.module, self.objective, self.training_recipe = module, objective, training
        n_genes, dim = module.output.out_features, module.output.in_features
        self.file_offset = nn.Embedding(n_files, n_genes)
        nn.init.zeros_(self.file_offset.weight)
        # Contrast through a head of its own: what it throws away stays in the vector.
        self.head = nn.Linear(dim, dim)
        self.register_buffer("compatible", compatible, persistent=False)

    def losses(self, views: list[View]) -> dict[str, Tensor]:
        """The parts of the loss for one step."""
        vectors = [self.module(view.pack.ids, view.pack.values, view.pack.offsets) for view in views]
        genes = [self._hidden_loss(view, z) for view, z in zip(views, vectors, strict=True)]
        labels = torch.cat([view.labels for view in views])
        files = torch.cat([torch.full_like(view.labels, view.file) for view in views])
        unit = F.normalize(self.head(torch.cat(vectors)), dim=-1)
        contrast = label_contrast(unit, labels, files, self.compatible, self.objective.temperature)
        masked = torch.stack(genes).mean()
        return {"masked": masked, "contrast": contrast, "loss": masked + self.objective.label_weight * contrast}

    def _hidden_loss(self, view: View, vectors: Tensor) -> Tensor:
        log_rate = self.module.log_rates(vectors, view.hidden_genes)
        log_rate = log_rate + self.file_offset.weight[view.file, view.hidden_genes]
        log_rate = log_rate + torch.log(view.visible_counts / 1000)[:, None]
        return poisson_loss(log_rate, view.hidden_counts)

    def training_step(self, views: list[View], _batch: int) -> Tensor:
        """One step of Lightning's loop."""
        parts = self.losses(views)
        self.log_dict(
            {f"train_{name}": value for name, value in parts.items()}, batch_size=1, on_epoch=True, on_step=False
        )
        return parts["loss"]

    def validation_step(self, views: list[View], _batch: int) -> None:
        """Losses on the fixed views of the validation cells."""
        parts = self.losses(views)
        self.log_dict({f"val_{name}": value for name, value in parts.items()}, batch_size=1, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW; the rate rises over 100 steps and falls as a cosine to a fiftieth of its height."""
        recipe = self.training_recipe
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        total, warmup = recipe.max_epochs * recipe.steps_per_epoch, min(100, recipe.steps_per_epoch)
        rise = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=max(total - warmup, 1), eta_min=recipe.learning_rate / 50
        )
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[warmup])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def poisson_loss(log_rate: Tensor, counts: Tensor) -> Tensor:
    """Minus the log-probability of `counts`, up to the term log(counts!), for each hidden count.

    Divided by the number of counts rather than of genes: a file with more silent genes is no easier.
    """
    return (log_rate.exp() - counts * log_rate).sum() / counts.sum().clamp_min(1)


def label_contrast(vectors: Tensor, labels: Tensor, files: Tensor, compatible: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss over unit vectors, others of the same file only; unlabelled cells take no part.

    Parameters
    ----------
    vectors
        float32[n, dim], unit length.
    labels
        int64[n], -1 for none.
    files
        int64[n]: file of each cell.
    compatible
        bool[labels, labels]: different labels whose cells are neither drawn together nor pushed apart.
    temperature
        Similarities are divided by this.
    """
    kept = labels != UNLABELLED
    vectors, labels, files = vectors[kept], labels[kept], files[kept]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same_label = labels[:, None] == labels
    positive = same_label & ~itself
    if not positive.any():
        return vectors.sum() * 0.0
    elsewhere = (files[:, None] != files) & ~same_label
    ignored = itself | compatible[labels[:, None], labels] | elsewhere
    matched = positive.any(dim=1)  # a row without a partner would be all -inf, and its gradient NaN
    similarity = (vectors @ vectors.T / temperature).masked_fill(ignored, -torch.inf)[matched]
    log_share = similarity - similarity.logsumexp(dim=1, keepdim=True)
    positive = positive[matched]
    return -(log_share.masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1)).mean()
