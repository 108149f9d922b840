"""The model of scvi-tools around the network, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField, ObsmField
from scvi.model.base import ArchesMixin, BaseModelClass, UnsupervisedTrainingMixin
from torch import Tensor

from .module import MEASURED, JointVAE, inputs_key
from .plan import AnnealedPlan
from .table import BATCH


class JointVI(ArchesMixin, UnsupervisedTrainingMixin, BaseModelClass):
    """One space for all modalities of a table that `cfm.integration.joint.make_table` made.

    Parameters
    ----------
    adata
        The table.
    n_features
        By modality, in the order of the columns of X.
    options
        Of `JointVAE`.
    """

    _module_cls = JointVAE
    _training_plan_cls = AnnealedPlan

    def __init__(self, adata: AnnData, n_features: Mapping[Any, int], **options: Any) -> None:
        super().__init__(adata)
        self.kinds = list(n_features)
        n_inputs = {kind: adata.obsm[inputs_key(kind)].shape[1] for kind in self.kinds}
        self.module = JointVAE(n_features, n_inputs, self.summary_stats.n_batch, **options)
        self._model_summary_string = f"joint space of {', '.join(self.kinds)}"
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(cls, adata: AnnData, kinds: Sequence[str], **kwargs: Any) -> None:
        """Register the fields of a table."""
        setup = cls._get_setup_method_args(**locals())
        manager = AnnDataManager(
            fields=[
                LayerField(REGISTRY_KEYS.X_KEY, None, is_count_data=False),
                CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, BATCH),
                ObsmField(MEASURED, MEASURED),
                *(ObsmField(inputs_key(kind), inputs_key(kind)) for kind in kinds),
            ],
            setup_method_args=setup,
        )
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @torch.inference_mode()
    def posterior(
        self, measured: NDArray[np.bool_] | None = None, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation of each cell, float32[n_rows, n_latent] each.

        Parameters
        ----------
        measured
            bool[n_rows, kinds]: what of each cell is used, in the place of all that was measured.
        rows
            Which cells; None is all.
        """
        found = [self._product(tensors, place, measured) for tensors, place in self._steps(rows)]
        return _joined([q.mean for q in found]), _joined([q.stddev for q in found])

    @torch.inference_mode()
    def weights(self) -> NDArray[np.float32]:
        """float32[n_cells, kinds]: share of each modality in the precision of a cell's posterior, the prior left out."""
        shares = []
        for tensors, _ in self._steps():
            found = self.module.inference(**self.module._get_inference_input(tensors))
            precision = (
                torch.stack([(1 / q.variance).mean(1) for q in found["experts"].values()], 1) * tensors[MEASURED]
            )
            shares.append(precision / precision.sum(1, keepdim=True).clamp(min=1e-12))
        return _joined(shares)

    @torch.inference_mode()
    def decoded(
        self,
        kind: str,
        measured: NDArray[np.bool_],
        batches: Sequence[int],
        rows: NDArray[np.int64] | None = None,
        *,
        n_samples: int = 10,
        seed: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the decoder of a modality expects, and the standard deviation of this over the posterior of a cell.

        RNA: log1p of counts per 10,000 of the genes in use. Protein: log1p of counts over the geometric mean of the cell.
        ATAC: probability that a peak is open, in the deepest cell. Each is the mean over batches, so that it does not differ
        by batch.

        Parameters
        ----------
        kind
            Modality.
        measured
            bool[n_rows, kinds]: what of each cell it is made from.
        batches
            Codes of the batches.
        rows
            Which cells; None is all.
        n_samples, seed
            Points drawn from the posterior of each cell; the same for a cell whatever cells come with it.
        """
        means, deviations = [], []
        noise = torch.randn(n_samples, self.n_latent, generator=torch.Generator().manual_seed(seed))
        noise = noise.to(self.module.device)
        for tensors, place in self._steps(rows):
            q = self._product(tensors, place, measured)
            drawn = torch.stack([self._expected(kind, q.mean + q.stddev * one, batches) for one in noise])
            means.append(drawn.mean(0))
            deviations.append(drawn.std(0))
        return _joined(means), _joined(deviations)

    @property
    def n_latent(self) -> int:
        """Dimensions of the space."""
        return int(self.module.n_latent)

    def _expected(self, kind: str, z: Tensor, batches: Sequence[int]) -> Tensor:
        """float[n_cells, n_features]."""
        depth = torch.full((len(z), 1), 1e4 if kind == "rna" else 1.0, device=z.device)
        found = torch.zeros((), device=z.device)
        for code in batches:
            batch = torch.full((len(z), 1), code, device=z.device)
            mean = self.module.decoded(kind, z, depth, batch)[0].mean
            found = found + (mean if kind == "atac" else mean.log1p()) / len(batches)
        return found

    def _product(self, tensors: dict[str, Tensor], place: slice, measured: NDArray[np.bool_] | None) -> Any:
        found = self.module.inference(**self.module._get_inference_input(tensors))
        if measured is None:
            return found["views"][0]
        mask = torch.from_numpy(measured[place].astype(np.float32)).to(tensors[MEASURED].device)
        return self.module.product(found["experts"], mask * tensors[MEASURED])

    def _steps(self, rows: NDArray[np.int64] | None = None) -> Any:
        """Tensors of some cells, and their places among all that were asked for, in order."""
        self.module.eval()
        start = 0
        device = self.module.device
        # Encoders of scvi-tools draw even where only their mean is asked for.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for tensors in self._make_data_loader(self.adata, indices=rows, batch_size=512):
                stop = start + len(tensors[MEASURED])
                yield {name: tensor.to(device) for name, tensor in tensors.items()}, slice(start, stop)
                start = stop


def _joined(parts: Sequence[Tensor]) -> NDArray[np.float32]:
    return torch.cat(list(parts)).float().cpu().numpy()
