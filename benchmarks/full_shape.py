"""Published models in their full size with random weights: peak memory and cells per second on the CPU.

    python benchmarks/full_shape.py MODEL [--h5ad FILE] [--cells 12]

MODEL is one of the names below. A checkpoint of that shape is written to a temporary folder in the official layout, and
the cells are embedded in a process of their own. Prints the weights, the peak, and what the peak holds above the weights.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from safetensors.torch import save_file

import cfm
from cfm.genes.identifiers import human_genes

GENEFORMER = {
    "geneformer-v1-10m": (6, 256, 512, 4, 2048, 25_426),
    "geneformer-v2-104m": (12, 768, 3072, 12, 4096, 20_275),
    "geneformer-v2-316m": (18, 1152, 4608, 18, 4096, 20_275),
}
SCGPT = {"scgpt-human": (12, 512, 512, 8, 60_697)}


def write_geneformer(folder: Path, layers: int, dim: int, hidden: int, heads: int, positions: int, vocabulary: int):
    """A Geneformer folder with its dictionaries."""
    shapes = {
        "bert.embeddings.word_embeddings.weight": (vocabulary, dim),
        "bert.embeddings.position_embeddings.weight": (positions, dim),
        "bert.embeddings.token_type_embeddings.weight": (2, dim),
        "cls.predictions.bias": (vocabulary,),
    }
    linear = {"cls.predictions.transform.dense": (dim, dim)}
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for i in range(layers):
        start = f"bert.encoder.layer.{i}."
        linear |= {f"{start}attention.self.{part}": (dim, dim) for part in ("query", "key", "value")}
        linear |= {f"{start}attention.output.dense": (dim, dim), f"{start}intermediate.dense": (hidden, dim),
                   f"{start}output.dense": (dim, hidden)}  # fmt: skip
        norms += [f"{start}attention.output.LayerNorm", f"{start}output.LayerNorm"]
    save(folder / "model.safetensors", shapes, linear, norms, dim)
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_act": "relu", "hidden_size": dim,
              "intermediate_size": hidden, "num_attention_heads": heads, "num_hidden_layers": layers,
              "max_position_embeddings": positions, "vocab_size": vocabulary, "layer_norm_eps": 1e-12}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    specials = ["<pad>", "<mask>"] if positions == 2048 else ["<pad>", "<mask>", "<cls>", "<eos>"]
    genes = sorted(set(human_genes().values()))[: vocabulary - len(specials)]
    medians = dict(zip(genes, np.random.default_rng(0).lognormal(0.5, 1, len(genes)).tolist(), strict=True))
    for stem, content in {
        "token_dictionary": {name: i for i, name in enumerate(specials + genes)},
        "gene_median_dictionary": medians,
    }.items():
        (folder / f"{stem}_gc.pkl").write_bytes(pickle.dumps(content))


def write_scgpt(folder: Path, layers: int, dim: int, hidden: int, heads: int, vocabulary: int):
    """A scGPT folder."""
    shapes = {"encoder.embedding.weight": (vocabulary, dim), "flag_encoder.weight": (2, dim)}
    linear = {"value_encoder.linear1": (dim, 1), "value_encoder.linear2": (dim, dim), "decoder.fc.0": (dim, dim),
              "decoder.fc.2": (dim, dim), "decoder.fc.4": (1, dim), "mvc_decoder.gene2query": (dim, dim)}  # fmt: skip
    norms = ["encoder.enc_norm", "value_encoder.norm"]
    shapes["mvc_decoder.W.weight"] = (dim, dim)
    for i in range(layers):
        start = f"transformer_encoder.layers.{i}."
        linear |= {f"{start}self_attn.Wqkv": (3 * dim, dim), f"{start}self_attn.out_proj": (dim, dim),
                   f"{start}linear1": (hidden, dim), f"{start}linear2": (dim, hidden)}  # fmt: skip
        norms += [f"{start}norm1", f"{start}norm2"]
    save(folder / "best_model.pt", shapes, linear, norms, dim)
    args = {"embsize": dim, "nheads": heads, "d_hid": hidden, "nlayers": layers, "n_layers_cls": 3, "dropout": 0.2,
            "n_bins": 51, "max_seq_len": 1200, "pad_token": "<pad>", "pad_value": -2, "mask_value": -1,
            "input_emb_style": "continuous"}  # fmt: skip
    (folder / "args.json").write_text(json.dumps(args))
    genes = list(human_genes())[: vocabulary - 3]
    genes += [f"GENE{i}" for i in range(vocabulary - 3 - len(genes))] + ["<pad>", "<cls>", "<eoc>"]
    (folder / "vocab.json").write_text(json.dumps({gene: i for i, gene in enumerate(genes)}))


def save(path: Path, shapes: dict, linear: dict, norms: list[str], dim: int) -> None:
    """Random tensors: normal with the deviation of an initialised BERT, norms of weight 1."""
    random = torch.Generator().manual_seed(0)
    tensors = {name: 0.02 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    for name, shape in linear.items():
        tensors[f"{name}.weight"] = 0.02 * torch.randn(shape, generator=random)
        tensors[f"{name}.bias"] = torch.zeros(shape[0])
    for name in norms:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.ones(dim), torch.zeros(dim)
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)


def embed(folder: Path, h5ad: str, n_cells: int) -> None:
    """Embed the first cells of a file, and print peak memory in MiB, seconds, cells and tokens."""
    cfm.settings.progress = False
    adata = ad.read_h5ad(h5ad)[:n_cells].copy()
    start = time.perf_counter()
    cfm.tl.embed(adata, model=folder, device="cpu")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([peak, seconds, adata.n_obs, int(adata.obs["cfm_n_genes"].sum())]))


def main() -> None:
    """Write the checkpoint, embed in another process, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[*GENEFORMER, *SCGPT])
    parser.add_argument("--h5ad", help="real cells with raw counts in X; without it those of cfm.datasets.pbmc68k")
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--embed", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.embed:
        embed(options.embed, options.h5ad, options.cells)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / options.model
        folder.mkdir()
        write = write_geneformer if options.model in GENEFORMER else write_scgpt
        write(folder, *(GENEFORMER | SCGPT)[options.model])
        h5ad = options.h5ad or str(Path(temporary) / "cells.h5ad")
        if not options.h5ad:
            cfm.datasets.pbmc68k().write_h5ad(h5ad)
        command = [sys.executable, __file__, options.model, "--embed", folder, "--h5ad", h5ad, "--cells", options.cells]
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
        peak, seconds, cells, tokens = json.loads(done.stdout.splitlines()[-1])
        weights = max(path.stat().st_size for path in folder.iterdir()) / 2**20
    print(f"{options.model}: weights {weights:,.0f} MiB, peak {peak:,.0f} MiB ({peak - weights:,.0f} above the weights); "
          f"{cells} cells of {tokens / cells:,.0f} genes in {seconds:.1f} s with loading")  # fmt: skip


if __name__ == "__main__":
    main()
