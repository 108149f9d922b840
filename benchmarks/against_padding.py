"""Published shapes against what people run without cfm: padded batches, and cells tokenised one by one.

    python benchmarks/against_padding.py MODEL [--h5ad FILE] [--cells 32] [--batch 16] [--rounds 3]

MODEL is geneformer-v1-10m (beside BERT of Hugging Face transformers, which has to be installed) or scgpt-human (beside
torch.nn.TransformerEncoder), with the same random weights on the same real cells, 300 to 2,048 expressed genes each, on
two threads. Both sides start from the same tokens; the padded side pads each batch to its longest cell, in file order and,
as a second row, sorted by length. Then precision="int8" beside float32, and the way from counts to tokens beside the loop over cells that the official
packages run. Prints ratios timed in turns, and the cosine between the two vectors of each cell.
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
from full_shape import GENEFORMER, SCGPT, write_geneformer, write_scgpt
from side_by_side import compare
from torch.nn import functional as F

import cfm
from cfm import models
from cfm.genes import match
from cfm.models import CellModel, Pack
from cfm.models.weights import read_tensors
from cfm.tokens import TokenBatch

Padded = Callable[[TokenBatch], torch.Tensor]


def bert(folder: Path, name: str, device: str = "cpu") -> Padded:
    """Mean over the genes of each cell of the last layer but one, by transformers with padding and its default attention."""
    from transformers import BertConfig, BertModel

    layers, dim, hidden, heads, positions, vocabulary = GENEFORMER[name]
    config = BertConfig(vocab_size=vocabulary, hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads,
                        intermediate_size=hidden, hidden_act="relu", max_position_embeddings=positions,
                        layer_norm_eps=1e-12)  # fmt: skip
    network = BertModel(config, add_pooling_layer=False).eval().to(device)
    tensors = read_tensors(folder / "model.safetensors")
    network.load_state_dict({k.removeprefix("bert."): v for k, v in tensors.items() if k.startswith("bert.")})

    def vectors(batch: TokenBatch) -> torch.Tensor:
        ids, mask = (padded(batch, numbers, 0).to(device) for numbers in (batch.ids, np.ones(len(batch.ids), np.int64)))
        states = network(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    return vectors


def transformer(folder: Path, name: str, device: str = "cpu") -> Padded:
    """Vector of ``<cls>``, by torch's own encoder with padding."""
    layers, dim, hidden, heads, _ = SCGPT[name]
    layer = torch.nn.TransformerEncoderLayer(dim, heads, hidden, dropout=0.0, batch_first=True)
    network = torch.nn.TransformerEncoder(layer, layers).eval().to(device)
    tensors = {k: v.to(device) for k, v in read_tensors(folder / "best_model.pt").items()}
    start = "transformer_encoder."
    names = {"Wqkv.weight": "in_proj_weight", "Wqkv.bias": "in_proj_bias"}
    state = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    for flash, plain in names.items():
        state = {k.replace(flash, plain): v for k, v in state.items()}
    network.load_state_dict(state)

    def value_vectors(values: torch.Tensor) -> torch.Tensor:
        part = "value_encoder."
        x = F.relu(
            F.linear(values[..., None].clamp(max=512), tensors[f"{part}linear1.weight"], tensors[f"{part}linear1.bias"])
        )
        x = F.linear(x, tensors[f"{part}linear2.weight"], tensors[f"{part}linear2.bias"])
        return F.layer_norm(x, (dim,), tensors[f"{part}norm.weight"], tensors[f"{part}norm.bias"])

    def vectors(batch: TokenBatch) -> torch.Tensor:
        ids, values = padded(batch, batch.ids, 0).to(device), padded(batch, batch.values, -2).to(device)
        empty = padded(batch, np.zeros(len(batch.ids), bool), True).to(device)
        genes = F.embedding(ids, tensors["encoder.embedding.weight"])
        genes = F.layer_norm(genes, (dim,), tensors["encoder.enc_norm.weight"], tensors["encoder.enc_norm.bias"])
        return F.normalize(network(genes + value_vectors(values), src_key_padding_mask=empty)[:, 0], dim=-1)

    return vectors


def padded(batch: TokenBatch, numbers: np.ndarray, fill: float) -> torch.Tensor:
    """One row a cell, filled up to the longest."""
    out = np.full(
        (batch.n_cells, int(batch.lengths.max())), fill, numbers.dtype if numbers.dtype != np.int32 else np.int64
    )
    for row, (a, b) in enumerate(zip(batch.offsets, batch.offsets[1:], strict=False)):
        out[row, : b - a] = numbers[a:b]
    return torch.from_numpy(out)


def forward(model: CellModel, plain: Padded, tokens: TokenBatch, batch: int, rounds: int) -> None:
    """The network alone, on the same batches."""
    orders = {"file order": np.arange(tokens.n_cells), "by length": np.argsort(-tokens.lengths, kind="stable")}
    for title, order in orders.items():
        groups = [tokens.take(order[i : i + batch]) for i in range(0, len(order), batch)]

        def ours(groups: list[TokenBatch] = groups) -> torch.Tensor:
            found = [model.forward(Pack.of(g, model.device), frozenset({"cell"}))["cell"] for g in groups]
            return torch.cat(found)

        @torch.inference_mode()
        def theirs(groups: list[TokenBatch] = groups) -> torch.Tensor:
            return torch.cat([plain(group) for group in groups])

        cosine = F.cosine_similarity(ours(), theirs()).min()
        ratio = compare(theirs, ours, rounds=rounds)
        print(f"{tokens.n_cells} cells of {tokens.lengths.mean():,.0f} tokens, batches of {batch} in {title}: {ratio}  "
              f"{tokens.n_cells / ratio.seconds[1]:.2f} cells/s; lowest cosine {cosine:.7f}")  # fmt: skip


def eight_bits(model: CellModel, folder: Path, tokens: TokenBatch, batch: int, rounds: int) -> None:
    """The same network with precision='int8' beside itself in float32."""
    small = models.load(folder, device="cpu", precision="int8")
    order = np.argsort(-tokens.lengths, kind="stable")
    packs = [Pack.of(tokens.take(order[i : i + batch]), model.device) for i in range(0, len(order), batch)]

    def vectors(network: CellModel) -> torch.Tensor:
        return torch.cat([network.forward(pack, frozenset({"cell"}))["cell"] for pack in packs])

    cosine = F.cosine_similarity(vectors(model), vectors(small))
    ratio = compare(lambda: vectors(model), lambda: vectors(small), rounds=rounds)
    print(f"int8 beside float32: {ratio}  cosine {cosine.min():.5f} to {cosine.max():.5f}")


def loop_of_ranks(counts: sp.csr_matrix, tokens: np.ndarray, medians: np.ndarray) -> list[np.ndarray]:
    """Geneformer's way: normalise a chunk of 512 cells with scipy, then sort row by row."""
    known = np.flatnonzero(tokens >= 0)
    of_column = tokens[known]
    out = []
    for start in range(0, counts.shape[0], 512):
        chunk = counts[start : start + 512]
        totals = np.asarray(chunk.sum(axis=1, dtype=np.float64))
        scaled = sp.csr_matrix(chunk[:, known] / totals * 10_000 / medians[known])
        for i in range(chunk.shape[0]):
            row = scaled[i]
            order = np.argsort(-row.data, kind="stable")
            out.append(of_column[row.indices][order])
    return out


def loop_of_bins(counts: sp.csr_matrix, tokens: np.ndarray) -> list[np.ndarray]:
    """scGPT's way: dense rows, quantiles and digits cell by cell."""
    known = np.flatnonzero(tokens >= 0)
    dense = counts[:, known].toarray()
    out = []
    for row in dense:
        values = row[row > 0]
        out.append(np.digitize(values, np.quantile(values, np.linspace(0, 1, 50))))
    return out


def tokenising(model: CellModel, adata: ad.AnnData, rounds: int) -> None:
    """From CSR counts to tokens, all threads, beside the loop."""
    found = match(adata.var, model.vocabulary)
    tokenizer = model.tokenizer(found)
    counts = sp.csr_matrix(adata.X)
    counts = counts[np.diff(counts.indptr) > 0]
    # A few dozen cells would time the start of threads; the same cells again are as good as others.
    counts = sp.vstack([counts] * -(-2_000 // counts.shape[0]), format="csr")
    if model.spec.family == "geneformer":
        medians = np.ones(len(found.tokens))
        medians[found.tokens >= 0] = model.dictionaries.medians[found.tokens[found.tokens >= 0]]
        loop = lambda: loop_of_ranks(counts, found.tokens, medians)
    else:
        loop = lambda: loop_of_bins(counts, found.tokens)
    ratio = compare(loop, lambda: tokenizer(counts, 0), rounds=max(rounds, 5))
    print(f"counts to tokens, {counts.shape[0]:,} cells of {counts.nnz / counts.shape[0]:,.0f} genes: {ratio}  "
          f"{counts.shape[0] / ratio.seconds[1]:,.0f} cells/s")  # fmt: skip


def main() -> None:
    """Print all ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["geneformer-v1-10m", *SCGPT])
    parser.add_argument("--h5ad", required=True, help="real cells with raw counts in X")
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    cfm.settings.progress, cfm.settings.verbosity = False, "warning"
    adata = ad.read_h5ad(options.h5ad)
    counts = sp.csr_matrix(adata.X)
    genes = np.diff(counts.indptr)
    chosen = np.flatnonzero((genes >= 300) & (genes <= 2048))[: options.cells]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / options.model
        folder.mkdir()
        if options.model in GENEFORMER:
            write_geneformer(folder, *GENEFORMER[options.model])
        else:
            write_scgpt(folder, *SCGPT[options.model])
        model = models.load(folder, device="cpu")
        plain = (bert if options.model in GENEFORMER else transformer)(folder, options.model)
        tokens = model.tokenizer(match(adata.var, model.vocabulary))(counts[chosen], 0)
        forward(model, plain, tokens, options.batch, options.rounds)
        eight_bits(model, folder, tokens, options.batch, options.rounds)
        tokenising(model, adata, options.rounds)


if __name__ == "__main__":
    main()
