"""Models that were fine-tuned with the official script to annotate cells, and their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._core.errors import CheckpointError
from cfm.models.weights import check_family, fill, read_tensors
from cfm.nn.rows import by_rows

from .module import Encoder, Shape, pooled
from .names import from_official, official_name

_ADVICE = (
    "head= takes the state dict of the official LinearProbingClassifier, or of its last part (fc1), beside the models.ckpt "
    "from which it was fine-tuned."
)
_PARTS = {"norm.": "norm.", "fc1.0.": "linear1.", "fc1.2.": "linear2.", "0.": "linear1.", "2.": "linear2."}
_OWN = ("norm.", "linear1.", "linear2.")


class Classifier(nn.Module):
    """Encoder, maximum over the tokens, norm by the statistics of training, and two linear layers with a ReLU between.

    The depths are no tokens here: so the official script fine-tunes.

    Parameters
    ----------
    encoder
        Which reads the genes.
    dim
        Length of its vectors.
    hidden
        Length of the layer between.
    n_classes
        Number of classes.
    """

    def __init__(self, encoder: Encoder | nn.Identity, dim: int, hidden: int, n_classes: int) -> None:
        super().__init__()
        self.encoder: Encoder | nn.Identity = encoder
        self.norm = nn.BatchNorm1d(dim, eps=1e-6, affine=False)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, n_classes)

    def forward(self, ids: Tensor, values: Tensor, offsets: list[int]) -> Tensor:
        """float[n_cells, n_classes]; arguments as in `cfm.models.Pack`."""
        return self.logits(pooled(self.encoder(ids, values, offsets), offsets, "max"))

    def logits(self, cells: Tensor) -> Tensor:
        """float[n_cells, n_classes] from the maximum over the tokens of each cell."""
        return by_rows(lambda rows: self.linear2(F.relu(self.linear1(self.norm(rows)))), cells)


def read_classifier(path: Path, shape: Shape, encoder: Encoder) -> Classifier:
    """A fine-tuned model, in evaluation.

    Parameters
    ----------
    path
        Its file, in the format of torch or of safetensors.
    shape
        Sizes of the network from which it was fine-tuned: its own file does not tell them.
    encoder
        The encoder of that network, for files without one.

    Raises
    ------
    CheckpointError
        Tensors are missing, left over or misshapen.
    """
    tensors = read_tensors(path)
    ours = _renamed(tensors)
    whole = any(name.startswith("encoder.") for name in ours)
    if whole:
        check_family(path, tensors, "scfoundation")
    for name in ("linear1.weight", "linear2.weight"):
        if name not in ours or ours[name].ndim != 2:
            raise CheckpointError(
                f"{path} is no head: it lacks {_official(name)}. It holds {sorted(tensors)[:8]}. {_ADVICE}"
            )
    if not any(name.startswith("norm.") for name in ours):  # without statistics, those before training
        ours |= {"norm.running_mean": torch.zeros(shape.dim), "norm.running_var": torch.ones(shape.dim)}
    ours.setdefault("norm.num_batches_tracked", torch.tensor(0))
    with torch.device("meta"):
        own = Encoder(shape) if whole else nn.Identity()
        classifier = Classifier(own, shape.dim, len(ours["linear1.weight"]), len(ours["linear2.weight"]))
    fill(classifier, ours, where=path, advice=_ADVICE, called=_official)
    if not whole:
        classifier.encoder = encoder
    return classifier.eval().requires_grad_(False)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        start = next((start for start in _PARTS if name.startswith(start)), None)
        if start is None:
            others[name] = tensor
        else:
            own[_PARTS[start] + name.removeprefix(start)] = tensor
    return own | from_official(others)


def _official(ours: str) -> str:
    if ours.startswith(_OWN):
        return ours.replace("linear1.", "fc1.0.").replace("linear2.", "fc1.2.")
    return official_name(ours)
