"""scBERT's published shape beside a plain Performer: attention head by head, features of all positions at once.

    python benchmarks/performer_reference.py [--h5ad FILE] [--cells 4] [--rounds 3] [--threads 2]

The same random weights and cells on both sides. The plain side is what the formula says in torch, one cell at a time as the
official prediction runs; once with all heads in one tensor, and once with a loop over them, which needs less memory. Prints
ratios timed in turns, and the lowest cosine between the two vectors of a cell.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from full_shape import SCBERT, write_scbert
from side_by_side import compare
from torch import Tensor
from torch.nn import functional as F

import cfm
from cfm import models
from cfm.genes import match
from cfm.models import Pack
from cfm.models.scbert.module import dense_bins
from cfm.models.weights import read_saved
from cfm.tokens import TokenBatch

EPS = 1e-4


class PlainPerformer:
    """The encoder as the formula says, for one cell.

    Parameters
    ----------
    tensors
        The official state dict.
    by_head
        Loop over the heads instead of having all in one tensor.
    """

    def __init__(self, tensors: dict[str, Tensor], *, by_head: bool) -> None:
        self.tensors, self.by_head = tensors, by_head
        self.layers = 1 + max(int(name.split(".")[3]) for name in tensors if name.startswith("performer.net.layers."))

    def __call__(self, bins: Tensor) -> Tensor:
        """float[dim]: the mean over positions, for int64[n_positions]."""
        x = F.embedding(bins, self.tensors["token_emb.weight"])
        x += self.tensors["pos_emb.emb.weight"]
        for i in range(self.layers):
            at = f"performer.net.layers.{i}."
            x = x + self._attention(f"{at}0.fn.", self._norm(f"{at}0.norm", x))
            inner = F.gelu(self._linear(f"{at}1.fn.fn.w1", self._norm(f"{at}1.norm", x)))
            x = x + self._linear(f"{at}1.fn.fn.w2", inner)
        return self._norm("norm", x).mean(0)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _attention(self, at: str, x: Tensor) -> Tensor:
        projection = self.tensors[f"{at}fast_attention.projection_matrix"]
        width = projection.shape[1]
        q, k, v = (self._linear(f"{at}to_{part}", x).unflatten(1, (-1, width)).transpose(0, 1) for part in "qkv")
        if self.by_head:
            # The largest logit is one of all heads, and has to be known before the first.
            largest = torch.stack([(_scaled(one) @ projection.T).amax() for one in k]).amax()
            heads = [_attend(*one, projection, largest) for one in zip(q, k, v, strict=True)]
            context = torch.cat(heads, 1)
        else:
            context = _attend(q, k, v, projection, None).transpose(0, 1).flatten(1)
        return self._linear(f"{at}to_out", context)


def _scaled(x: Tensor) -> Tensor:
    return x * x.shape[-1] ** -0.25


def _features(x: Tensor, projection: Tensor, *, keys: bool, largest: Tensor | None) -> Tensor:
    x = _scaled(x)
    logits = x @ projection.T
    half = x.square().sum(-1, keepdim=True) / 2
    top = (logits.amax() if largest is None else largest) if keys else logits.amax(-1, keepdim=True)
    return len(projection) ** -0.5 * (torch.exp(logits - half - top) + EPS)


def _attend(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, largest: Tensor | None) -> Tensor:
    query = _features(q, projection, keys=False, largest=None)
    key = _features(k, projection, keys=True, largest=largest)
    weight = query @ key.sum(-2)[..., None]
    return (query @ (key.mT @ v)) / weight


def main() -> None:
    """Write the checkpoint, tokenise, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--h5ad", help="real cells with raw counts in X; without it those of cfm.datasets.pbmc68k")
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cfm.settings.progress, cfm.settings.verbosity = False, "warning"
    adata = ad.read_h5ad(options.h5ad) if options.h5ad else cfm.datasets.pbmc68k()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_scbert(folder, *SCBERT["scbert-panglao"])
        model = models.load(folder, device="cpu")
        tensors = read_saved(folder / "panglao_pretrain.pth")["model_state_dict"]
        tokens = model.tokenizer(match(adata.var, model.vocabulary))(sp.csr_matrix(adata.X)[: options.cells], 0)
        run(model, tensors, tokens, options.rounds)


def run(model: models.CellModel, tensors: dict[str, Tensor], tokens: TokenBatch, rounds: int) -> None:
    """Both plain ways beside ours."""
    cells = [tokens.take(np.array([i])) for i in range(tokens.n_cells)]
    packs = [Pack.of(cell, model.device) for cell in cells]
    bins = [dense_bins(p.ids, p.values, p.offsets, model.spec.positions["cell"])[0] for p in packs]

    def ours() -> Tensor:
        return torch.cat([model.forward(pack, frozenset({"cell"}))["cell"] for pack in packs])

    for title, by_head in (("all heads in one tensor", False), ("a loop over heads", True)):
        plain = PlainPerformer(tensors, by_head=by_head)

        @torch.inference_mode()
        def theirs(plain: Callable[[Tensor], Tensor] = plain) -> Tensor:
            return torch.stack([plain(cell) for cell in bins])

        cosine = F.cosine_similarity(ours(), theirs()).min()
        ratio = compare(theirs, ours, rounds=rounds)
        print(f"{len(bins)} cells of {len(bins[0]):,} positions, {tokens.lengths.mean():,.0f} genes expressed; beside "
              f"{title}: {ratio}  {len(bins) / ratio.seconds[1]:.3f} cells/s; lowest cosine {cosine:.7f}")  # fmt: skip


if __name__ == "__main__":
    main()
