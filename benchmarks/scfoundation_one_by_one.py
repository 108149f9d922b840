"""scFoundation's encoder against the official route, which takes one cell at a time.

    python benchmarks/scfoundation_one_by_one.py --h5ad FILE [--cells 8] [--least 500] [--most 5000] [--rounds 3]

The published shape with random weights, on real cells with so many expressed genes, evenly spread, from their counts to
their vectors, on two threads. The official route is written out with torch: a dense row of all 19,266 numbers for each cell, its positive
values gathered by a top-k, torch's own encoder layers with a mask of padding, and the four pooled vectors. Prints the ratio
of the two, timed in turns, and the cosine between the two vectors of each cell; then where the time goes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from full_shape import SCFOUNDATION, write_scfoundation
from side_by_side import compare
from torch import Tensor, nn
from torch.nn import functional as F

import cfm
from cfm import infer, models
from cfm.genes import match
from cfm.models.weights import read_saved

PAD = 103.0


class Official(nn.Module):
    """The cell route of the official script.

    Parameters
    ----------
    part
        Settings and tensors of one of the three models.
    """

    def __init__(self, part: dict) -> None:
        super().__init__()
        self.tensors = {name.removeprefix("model."): tensor for name, tensor in part["state_dict"].items()}
        sizes = part["config"]["model_config"]["mae_autobin"]["encoder"]
        dim = sizes["hidden_dim"]
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, sizes["heads"], 4 * dim, batch_first=True) for _ in range(sizes["depth"])
        )
        start = "encoder.transformer_encoder."
        self.layers.load_state_dict(
            {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}
        )
        self.seconds = {"gather": 0.0, "embed": 0.0, "layers": 0.0}
        self.eval()

    @torch.no_grad()
    def vector(self, counts: np.ndarray) -> Tensor:
        """The vector of a cell, from its counts over the genes of the list."""
        start = time.perf_counter()
        total = counts.sum()
        row = np.log1p(counts / total * 1e4).tolist() + [4.0, np.log10(total)]
        values = torch.tensor(row)[None]
        positive = values > 0
        values, pad = gathered(values, positive), None
        pad = values == PAD
        places = gathered(torch.arange(positive.shape[1])[None].float(), positive).long()
        gather = time.perf_counter()
        x = self.embedded(values.float()) + F.embedding(places, self.tensors["pos_emb.weight"])
        embed = time.perf_counter()
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=pad)
        x = F.layer_norm(x, x.shape[-1:], self.tensors["encoder.norm.weight"], self.tensors["encoder.norm.bias"])
        found = torch.cat([x[:, -1], x[:, -2], x[:, :-2].amax(1), x[:, :-2].mean(1)], dim=1)[0]
        for name, seconds in (("gather", gather - start), ("embed", embed - gather),
                              ("layers", time.perf_counter() - embed)):  # fmt: skip
            self.seconds[name] += seconds
        return found

    def embedded(self, values: Tensor) -> Tensor:
        """Vectors of values."""
        part = {name: self.tensors[f"token_emb.{name}"] for name in
                ("mlp.weight", "mlp.bias", "mlp2.weight", "mlp2.bias", "emb.weight")}  # fmt: skip
        inner = F.leaky_relu(F.linear(values[..., None], part["mlp.weight"], part["mlp.bias"]), 0.1)
        return (inner + F.linear(inner, part["mlp2.weight"], part["mlp2.bias"])).softmax(-1) @ part["emb.weight"]


def gathered(data: Tensor, positive: Tensor) -> Tensor:
    """The chosen numbers of each row in their order, filled up to the longest."""
    n = positive.sum(1)
    most, width = int(n.max()), data.shape[1]
    rank = torch.where(positive, torch.arange(width, 0, -1), 0)
    places = rank.topk(most).indices
    return torch.where(torch.arange(most) < n[:, None], data.gather(1, places), PAD)


def ours(folder: Path, cells: ad.AnnData) -> Callable[[], infer.Result]:
    """The way of `cfm.tl.embed`, without what it writes."""
    model = models.load(folder, device="cpu")

    def run() -> infer.Result:
        prepared = infer.prepare(cells, model, layer=None, gene_column=None, species=None, gene_table=None)
        return infer.run(model, prepared.stream, cells.n_obs, cfm.settings.pack_tokens)

    return run


def theirs(folder: Path, cells: ad.AnnData) -> tuple[Official, Callable[[], np.ndarray]]:
    """The official route, from the same genes."""
    network = Official(read_saved(folder / "models.ckpt")["cell"])
    model = models.load(folder, device="cpu")
    found = match(cells.var, model.vocabulary)
    known = np.flatnonzero(found.tokens >= 0)
    into = sp.csr_array(
        (np.ones(len(known)), (known, found.tokens[known])), shape=(cells.n_vars, len(model.vocabulary))
    )
    counts = (sp.csr_array(cells.X, dtype=np.float64) @ into).tocsr()

    def run() -> np.ndarray:
        return torch.stack([network.vector(counts[[i]].toarray()[0]) for i in range(counts.shape[0])]).numpy()

    return network, run


def main() -> None:
    """Print the ratio, the cosines and the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--h5ad", required=True, help="real cells with raw counts in X")
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--least", type=int, default=500, help="expressed genes")
    parser.add_argument("--most", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, help="of the encoder, for a quick look; the published model has 12")
    options = parser.parse_args()
    torch.set_num_threads(2)
    cfm.settings.progress, cfm.settings.verbosity = False, "error"
    adata = ad.read_h5ad(options.h5ad)
    n_genes = np.diff(sp.csr_matrix(adata.X).indptr)
    # The nearest cell to each of evenly spread sizes: what attention costs grows with their square.
    wanted = np.linspace(options.least, options.most, options.cells)
    chosen = np.unique(np.abs(n_genes[:, None] - wanted).argmin(0))
    cells = adata[chosen].copy()
    with tempfile.TemporaryDirectory() as temporary:
        shape = SCFOUNDATION["scfoundation"]
        write_scfoundation(Path(temporary), *shape[:1], options.layers or shape[1], *shape[2:], keys=("cell", "gene"))
        run = ours(Path(temporary), cells)
        network, official = theirs(Path(temporary), cells)
        result = run()
        a, b = torch.from_numpy(result.vectors), torch.from_numpy(official())
        cosine = F.cosine_similarity(a, b).min()
        network.seconds = dict.fromkeys(network.seconds, 0.0)
        ratio = compare(official, run, rounds=options.rounds)
    print(f"{cells.n_obs} cells of {result.lengths.min():,} to {result.lengths.max():,} genes that the model reads: {ratio}  "
          f"{cells.n_obs / ratio.seconds[0]:.2f} and {cells.n_obs / ratio.seconds[1]:.2f} cells/s; "
          f"lowest cosine {cosine:.7f}, largest difference {(a - b).abs().max():.1e}")  # fmt: skip
    whole = sum(network.seconds.values())
    print("the official route spends", ", ".join(f"{s / whole:.1%} on {name}" for name, s in network.seconds.items()))


if __name__ == "__main__":
    main()
