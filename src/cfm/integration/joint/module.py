"""The network: an encoder and a decoder for each modality around one space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, NegativeBinomialMixture
from scvi.module._multivae import DecoderADT
from scvi.module._peakvae import Decoder as DecoderPeakVI
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from scvi.nn import DecoderSCVI, Encoder
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal, kl_divergence

MEASURED = "measured"
_EPS = 1e-6


def inputs_key(kind: str) -> str:
    """Key of what the encoder of a modality reads."""
    return f"{kind}_inputs"


class JointVAE(BaseModuleClass):
    """Experts for each modality, multiplied into one posterior for each cell.

    The posterior of a cell is the product of the prior N(0, 1) and the normal distribution that each measured modality
    gives (Wu & Goodman 2018, equation 4). The bound of the product and that of one modality alone, drawn anew at each step,
    are added, so that a cell in which one modality was measured lies where its other modality would have put it.

    Likelihoods: RNA negative binomial (scVI), protein a mixture of background and foreground negative binomials (totalVI),
    ATAC Bernoulli with factors for depth and region (PeakVI).

    Parameters
    ----------
    n_features, n_inputs
        By modality: features to explain, and numbers that the encoder reads.
    n_batch
        Batches; encoders and decoders know a cell's.
    n_latent, n_hidden, dropout_rate
        Dimensions of the space, width of the hidden layers, share of hidden units left out in training.
    most_open
        Number of open peaks of the deepest cell: what the depth of a cell is relative to.
    """

    def __init__(
        self,
        n_features: Mapping[str, int],
        n_inputs: Mapping[str, int],
        n_batch: int,
        n_latent: int = 20,
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
        most_open: float = 1.0,
    ) -> None:
        super().__init__()
        self.kinds, self.n_latent = list(n_features), n_latent
        self.sizes = list(n_features.values())
        # A modality of thousands of features would drown one of ten.
        self.shares = {kind: (min(self.sizes) / n) ** 0.5 for kind, n in n_features.items()}
        self.most_open = most_open
        layers: dict[str, Any] = {"n_cat_list": [n_batch], "n_layers": 1, "n_hidden": n_hidden}
        norm = {"use_batch_norm": False, "use_layer_norm": True}
        self.encoders = nn.ModuleDict(
            {
                kind: Encoder(n, n_latent, dropout_rate=dropout_rate, return_dist=True, **layers, **norm)
                for kind, n in n_inputs.items()
            }
        )
        make = {
            "rna": lambda n: DecoderSCVI(n_latent, n, **layers, **norm),
            "protein": lambda n: DecoderADT(n_latent, n, dropout_rate=0.0, **layers, **norm),
            "atac": lambda n: DecoderPeakVI(n_latent, n, **layers, **norm),
        }
        self.decoders = nn.ModuleDict({kind: make[kind](n) for kind, n in n_features.items()})
        self.log_dispersion = nn.ParameterDict(
            {kind: nn.Parameter(torch.zeros(n)) for kind, n in n_features.items() if kind != "atac"}
        )
        if "protein" in n_features:
            self.background_pro_alpha = nn.Parameter(torch.zeros(n_features["protein"], n_batch))
            self.background_pro_log_beta = nn.Parameter(torch.zeros(n_features["protein"], n_batch))
        if "atac" in n_features:
            self.region_factors = nn.Parameter(torch.zeros(n_features["atac"]))

    def _get_inference_input(self, tensors: dict[str, Tensor], **_: Any) -> dict[str, Any]:
        inputs = {kind: tensors[inputs_key(kind)] for kind in self.kinds}
        return {"inputs": inputs, "measured": tensors[MEASURED], "batch": tensors[REGISTRY_KEYS.BATCH_KEY]}

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any]) -> dict[str, Any]:
        counts = dict(zip(self.kinds, tensors[REGISTRY_KEYS.X_KEY].split(self.sizes, dim=1), strict=True))
        depth = {kind: self.depth(kind, counts[kind]) for kind in self.kinds}
        return {
            "z": [q.rsample() for q in inference_outputs["views"]],
            "depth": depth,
            "batch": tensors[REGISTRY_KEYS.BATCH_KEY],
        }

    @auto_move_data
    def inference(self, inputs: dict[str, Tensor], measured: Tensor, batch: Tensor) -> dict[str, Any]:
        """Posteriors: the product of all that was measured, and in training that of one modality alone."""
        experts = {kind: self.encoders[kind](inputs[kind], batch)[0] for kind in self.kinds}
        masks = [measured]
        if len(self.kinds) > 1 and self.training:
            alone = torch.zeros(len(self.kinds), device=measured.device)
            alone[torch.randint(len(self.kinds), ())] = 1
            masks.append(measured * alone)
        return {"views": [self.product(experts, mask) for mask in masks], "masks": masks, "experts": experts}

    def product(self, experts: Mapping[str, Normal], measured: Tensor) -> Normal:
        """The posterior of each cell: prior times the experts of what is measured, bool or 0/1 float[n_cells, kinds]."""
        precision, weighted = (
            torch.ones_like(experts[self.kinds[0]].mean),
            torch.zeros_like(experts[self.kinds[0]].mean),
        )
        for kind, mask in zip(self.kinds, measured.unbind(1), strict=True):
            own = mask[:, None] / experts[kind].variance
            precision, weighted = precision + own, weighted + own * experts[kind].mean
        return Normal(weighted / precision, precision.rsqrt())

    def depth(self, kind: str, counts: Tensor) -> Tensor:
        """float[n_cells, 1]: size of a cell in a modality."""
        if kind == "protein":
            return counts.log1p().mean(1, keepdim=True).exp()
        total = (counts > 0).sum(1, keepdim=True) if kind == "atac" else counts.sum(1, keepdim=True)
        return (total / self.most_open).clamp(max=1.0) if kind == "atac" else total.clamp(min=1.0)

    @auto_move_data
    def generative(self, z: list[Tensor], depth: dict[str, Tensor], batch: Tensor) -> dict[str, Any]:
        """What each posterior says of each modality, and the divergence of protein backgrounds from their prior."""
        found = [{kind: self.decoded(kind, one, depth[kind], batch) for kind in self.kinds} for one in z]
        return {
            "views": [{kind: pair[0] for kind, pair in each.items()} for each in found],
            "background": [each["protein"][1] if "protein" in each else None for each in found],
        }

    def decoded(self, kind: str, z: Tensor, depth: Tensor, batch: Tensor) -> tuple[Distribution, Tensor | None]:
        """Distribution of the features of a modality at points of the space, for cells of some depth."""
        if kind == "atac":
            open_ = self.decoders[kind](z, batch) * torch.sigmoid(self.region_factors) * depth
            return Bernoulli(open_.clamp(_EPS, 1 - _EPS), validate_args=False), None
        theta = self.log_dispersion[kind].exp()
        if kind == "rna":
            _, _, rate, _ = self.decoders[kind]("gene", z, depth.log(), batch)
            return NegativeBinomial(mu=rate + _EPS, theta=theta), None
        parts, _ = self.decoders[kind](z, batch)
        own = Normal(parts["back_alpha"], parts["back_beta"])
        back = (own.rsample() if self.training else own.mean).exp() * depth
        each = batch[:, 0]
        prior = Normal(self.background_pro_alpha.T[each], self.background_pro_log_beta.T[each].exp())
        mixture = NegativeBinomialMixture(back, back * parts["fore_scale"], theta, parts["mixing"])
        return mixture, kl_divergence(own, prior).sum(1)

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """The negative bound, summed over posteriors, mean over cells."""
        counts = dict(zip(self.kinds, tensors[REGISTRY_KEYS.X_KEY].split(self.sizes, dim=1), strict=True))
        measured = dict(zip(self.kinds, tensors[MEASURED].unbind(1), strict=True))
        prior = Normal(torch.zeros(1, device=tensors[MEASURED].device), 1.0)
        reconstruction = kl = torch.zeros(len(tensors[MEASURED]), device=tensors[MEASURED].device)
        # The one modality stands for all of them.
        weights = [1.0, float(len(self.kinds))]
        for weight, q, mask, made, background in zip(
            weights, inference_outputs["views"], inference_outputs["masks"], generative_outputs["views"], generative_outputs["background"],
            strict=False,
        ):  # fmt: skip
            seen = weight * mask.amax(1)  # a cell takes part in the views of what it has
            kl = kl + seen * kl_divergence(q, prior).sum(1)
            if background is not None:
                kl = kl + seen * measured["protein"] * background * self.shares["protein"]
            for kind in self.kinds:
                target = (counts[kind] > 0).float() if kind == "atac" else counts[kind]
                own = -made[kind].log_prob(target).sum(1) * self.shares[kind]
                reconstruction = reconstruction + seen * measured[kind] * own
        return LossOutput(
            loss=(reconstruction + kl_weight * kl).mean(), reconstruction_loss=reconstruction, kl_local=kl
        )
