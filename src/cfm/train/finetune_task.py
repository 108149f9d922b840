"""The training task of fine-tuning scGPT, and the official recipes as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from cfm._core.errors import OptionError
from cfm.models.scgpt.module import ScgptNetwork
from cfm.models.scgpt.objective import Weights, loss_parts

from .finetune_cells import MiniBatch


@dataclass(frozen=True)
class FineTuning:
    """How to fine-tune; the defaults are those of the official recipe for integration.

    That recipe reads 1,200 highly variable genes: pass their columns.

    Parameters
    ----------
    seed
        Decides on everything random.
    epochs
        Times that all cells are seen. The weights of the best one are kept, by the error of hidden values of
        validation cells.
    batch_cells
        Most cells of a mini-batch.
    learning_rate, decay
        Of Adam, and its factor from epoch to epoch.
    masked
        Share of a cell's values that is hidden.
    dropout
        Share of what goes on in the network that is set to 0.
    clip
        Longest gradient.
    validation_share
        Of the cells of each batch.
    max_length
        Most tokens of a cell, ``<cls>`` included; of longer cells random genes are read.
    zeros
        Whether genes with a count of 0 are read, and heads predict which values are 0.
    domains
        Whether each batch has a norm of its own (DSBN); mini-batches are then of one batch each.
    weights
        Of the parts of the loss.
    """

    seed: int = 42
    epochs: int = 15
    batch_cells: int = 64
    learning_rate: float = 1e-4
    decay: float = 0.9
    masked: float = 0.4
    dropout: float = 0.2
    clip: float = 1.0
    validation_share: float = 0.1
    max_length: int = 1201
    zeros: bool = True
    domains: bool = True
    weights: Weights = Weights()

    def __post_init__(self) -> None:
        for name, low in (("seed", 0), ("epochs", 1), ("batch_cells", 1), ("max_length", 2)):
            if not isinstance(value := getattr(self, name), int) or value < low:
                raise OptionError(f"{name}={value!r}: type a whole number from {low} on.")
        for name, high in (("masked", 1), ("dropout", 1), ("validation_share", 0.5), ("decay", 1)):
            if not 0 <= (value := getattr(self, name)) <= high:
                raise OptionError(f"{name}={value!r}: type a number from 0 to {high}.")
        for name in ("learning_rate", "clip"):
            if not (value := getattr(self, name)) > 0:
                raise OptionError(f"{name}={value!r}: type a number above 0.")


INTEGRATION = FineTuning()
"""Of several batches of one modality."""
MULTIOMIC = FineTuning(
    epochs=25,
    batch_cells=16,
    learning_rate=1e-3,
    decay=0.95,
    max_length=4001,
    zeros=False,
    domains=False,
    weights=Weights(similarity=0.0),
)
"""Of genes and proteins in the same cells. The official recipe starts almost from scratch, since its loader takes little of
a pretrained file; this one starts from all that fits."""


class HiddenValues(pl.LightningModule):
    """The objective in Lightning's loop.

    Parameters
    ----------
    network
        The network.
    recipe
        All numbers.
    n_steps
        Steps of an epoch.
    half
        Whether products are taken in half precision.
    """

    def __init__(self, network: ScgptNetwork, recipe: FineTuning, n_steps: int, *, half: bool) -> None:
        super().__init__()
        self.network, self.recipe, self.n_steps, self.half_precision = network, recipe, n_steps, half

    def _parts(self, step: MiniBatch) -> dict[str, Tensor]:
        found = self.network(step.inputs)
        return loss_parts(found, step.target, step.mask, step.inputs.batches, self.recipe.weights)

    def training_step(self, step: MiniBatch, _number: int) -> Tensor:
        """One step of Lightning's loop."""
        # Dropout takes torch's own generator, whose state a checkpoint does not hold.
        torch.manual_seed(step.seed)  # noqa: TID251 -- within the fork of `fine_tune`
        if self.network.dsbn is not None:
            self.network.dsbn.begin_with_the_first()
        parts = self._parts(step)
        named = {f"train_{name}": value.detach() for name, value in parts.items()}
        self.log_dict(named, batch_size=step.n_cells, on_epoch=True, on_step=False)
        return parts["loss"]

    def validation_step(self, step: MiniBatch, _number: int) -> None:
        """Losses on validation cells, each normed by the running numbers of its batch."""
        named = {f"val_{name}": value for name, value in self._parts(step).items()}
        self.log_dict(named, batch_size=step.n_cells, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Adam, whose rate falls from epoch to epoch."""
        recipe = self.recipe
        # As in the official recipe: in half precision a smaller number would vanish beside small gradients.
        optimizer = torch.optim.Adam(
            self.parameters(), lr=recipe.learning_rate, eps=1e-4 if self.half_precision else 1e-8
        )
        # By steps and not by epochs: a checkpoint is written before the epoch ends.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.decay ** (step // self.n_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
