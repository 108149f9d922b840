"""UCE against the way of its official code: padded batches, protein vectors gathered for each token, every token decoded.

    python benchmarks/against_padding_uce.py --h5ad FILE [--model uce-4l] [--cells 16] [--batch 8] [--rounds 3] [--threads 2]

Random weights of the published shape, the same for both, on sentences of the same real human cells. The padded side is
torch.nn.TransformerEncoder with a proper mask (the official one adds 1 to pads, and gives other numbers). Ours projects
the proteins anew in each round, as for the first cells of a run. Then counts to sentences beside a loop over cells with
numpy, as the official code runs it. Prints ratios timed in turns, and the cosine between the two vectors of each cell.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from against_padding import padded
from side_by_side import compare
from torch import Tensor, nn
from torch.nn import functional as F
from uce_folder import UCE, WEIGHTS, write_uce

import cfm
from cfm import models
from cfm.genes import match
from cfm.models import Pack
from cfm.models.uce import UceModel
from cfm.models.uce.table import TokenVectors
from cfm.models.uce.tokenizer import UceTokenizer
from cfm.models.weights import read_tensors
from cfm.tokens import TokenBatch

CELL = frozenset({"cell"})


class PaddedUce(nn.Module):
    """The network as the official code runs it: [length, cells, numbers], everything for every token."""

    def __init__(self, path: Path, layers: int, dim: int, hidden: int, width: int, rows: int) -> None:
        super().__init__()
        self.dim = dim
        self.encoder = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.LayerNorm(dim))
        layer = nn.TransformerEncoderLayer(dim, dim // 64, hidden, dropout=0.05)
        self.transformer_encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        sizes = (dim, 1024, dim, dim)
        blocks = [
            nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.GELU()) for a, b in zip(sizes, sizes[1:], strict=False)
        ]
        self.decoder = nn.Sequential(*blocks, nn.Linear(dim, dim))
        tensors = read_tensors(path)
        self.table, self.positions = tensors["pe_embedding.weight"], tensors["pos_encoder.pe"]
        own = {name: t for name, t in tensors.items() if name in self.state_dict()}
        self.load_state_dict(own, assign=True)
        self.eval().requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        """float[cells, dim] for int64[cells, length], padded with 0."""
        proteins = F.normalize(F.embedding(ids.T, self.table), dim=2)
        x = self.encoder(proteins) * math.sqrt(self.dim) + self.positions[: ids.shape[1]]
        mask = torch.zeros(ids.shape).masked_fill(ids == 0, -math.inf)
        return F.normalize(self.decoder(self.transformer_encoder(x, src_key_padding_mask=mask))[0], dim=1)


def forward(model: UceModel, plain: Callable[[Tensor], Tensor], tokens: TokenBatch, batch: int, rounds: int) -> None:
    """The network alone, on the same batches, in the order of the file."""
    groups = [tokens.take(np.arange(i, min(i + batch, tokens.n_cells))) for i in range(0, tokens.n_cells, batch)]

    def ours() -> Tensor:
        model.vectors = TokenVectors(model.table, model.module.projection, model.module.shape.dim, model.device)
        return torch.cat([model.forward(Pack.of(group, model.device), CELL)["cell"] for group in groups])

    @torch.inference_mode()
    def theirs() -> Tensor:
        return torch.cat([plain(padded(group, group.ids, 0)) for group in groups])

    cosine = F.cosine_similarity(ours(), theirs()).min()
    ratio = compare(theirs, ours, rounds=rounds)
    print(f"{tokens.n_cells} cells of {tokens.lengths.mean():,.0f} tokens, batches of {batch}: {ratio}  "
          f"{tokens.n_cells / ratio.seconds[1]:.2f} cells/s; lowest cosine {cosine:.7f}")  # fmt: skip


def loop_of_cells(counts: sp.csr_matrix, tokenizer: UceTokenizer) -> Iterator[list[int]]:
    """Sentences of one cell after another, with numpy's choice and a sort for each chromosome."""
    known = np.flatnonzero(tokenizer.columns >= 0)
    places = tokenizer.columns[known]
    rows, codes = tokenizer.atlas.rows[places], tokenizer.atlas.chromosomes[places]
    state = np.random.RandomState(0)
    for cell in counts[:, known].toarray():
        weights = np.log1p(cell)
        drawn = state.choice(len(weights), size=tokenizer.sample_size, p=weights / weights.sum(), replace=True)
        drawn = drawn[np.argsort(codes[drawn])]
        order = np.unique(codes[drawn])
        state.shuffle(order)
        sentence = [3]
        for code in order:
            here = drawn[codes[drawn] == code]
            sentence += [int(tokenizer.atlas.names[code]), *rows[here[np.argsort(places[here])]].tolist(), 2]
        yield sentence


def tokenising(tokenizer: UceTokenizer, counts: sp.csr_matrix, rounds: int) -> None:
    """From CSR counts to sentences, all threads, beside the loop."""
    counts = sp.vstack([counts] * -(-1_000 // counts.shape[0]), format="csr")
    ratio = compare(lambda: list(loop_of_cells(counts, tokenizer)), lambda: tokenizer(counts, 0), rounds=rounds)
    print(f"counts to sentences, {counts.shape[0]:,} cells of {counts.nnz / counts.shape[0]:,.0f} genes: {ratio}  "
          f"{counts.shape[0] / ratio.seconds[1]:,.0f} cells/s")  # fmt: skip


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--h5ad", required=True, help="real human cells with raw counts in X")
    parser.add_argument("--model", choices=UCE, default="uce-4l")
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cfm.settings.progress, cfm.settings.verbosity, cfm.settings.threads = False, "warning", options.threads
    adata = ad.read_h5ad(options.h5ad)
    counts = sp.csr_matrix(adata.X)
    counts = counts[np.flatnonzero(counts.getnnz(axis=1) >= 300)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / options.model
        folder.mkdir()
        write_uce(folder, *UCE[options.model])
        model = models.load(folder, device="cpu")
        assert isinstance(model, UceModel)
        tokenizer = model.tokenizer(match(adata.var, model.vocabulary))
        assert isinstance(tokenizer, UceTokenizer)
        tokenising(tokenizer, counts, max(options.rounds, 3))
        plain = PaddedUce(folder / WEIGHTS, *UCE[options.model])
        forward(model, plain, tokenizer(counts[: options.cells], 0), options.batch, options.rounds)


if __name__ == "__main__":
    main()
