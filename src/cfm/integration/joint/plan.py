"""How the network is trained: a learning rate that rises and falls once, over a number of steps that is known."""

from __future__ import annotations

from typing import Any

import torch
from scvi.train import TrainingPlan

LEARNING_RATE = 2e-3


class AnnealedPlan(TrainingPlan):
    """A plan of scvi-tools with a one-cycle schedule, which needs no held-out cells to know when to stop."""

    def __init__(self, module: Any, **kwargs: Any) -> None:
        super().__init__(
            module, lr=LEARNING_RATE, weight_decay=kwargs.pop("weight_decay", 1e-3), n_epochs_kl_warmup=None, **kwargs
        )

    def configure_optimizers(self) -> Any:
        """AdamW, and the rate of each step."""
        trained = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay)
        steps = max(2, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
