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
from uce_folder import UCE, write_uce

import cfm
from cfm.genes.identifiers import human_genes

GENEFORMER = {
    "geneformer-v1-10m": (6, 256, 512, 4, 2048, 25_426),
    "geneformer-v2-104m": (12, 768, 3072, 12, 4096, 20_275),
    "geneformer-v2-316m": (18, 1152, 4608, 18, 4096, 20_275),
}
SCGPT = {"scgpt-human": (12, 512, 512, 8, 60_697)}
SCBERT = {"scbert-panglao": (6, 200, 10, 64, 16_907)}

SCFOUNDATION = {"scfoundation": (768, 12, 12, 512, 6, 8, 64, 100, 19_264)}


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


def write_scbert(folder: Path, layers: int, dim: int, heads: int, width: int, positions: int):
    """A scBERT folder in the official layout, with projections drawn as the paper has them."""
    random = torch.Generator().manual_seed(0)
    inner, n_features = heads * width, int(width * np.log(width))
    shapes = {"token_emb.weight": (7, dim)}
    linear, norms = {"to_out": (7, dim)}, ["norm"]
    tensors = {"pos_emb.emb.weight": 0.1 * torch.randn((positions, dim), generator=random, dtype=torch.float64)}
    tensors["pos_emb.emb.weight"][-1] = 0
    for i in range(layers):
        start = f"performer.net.layers.{i}."
        shapes |= {f"{start}0.fn.to_{part}.weight": (inner, dim) for part in "qkv"}
        linear |= {f"{start}0.fn.to_out": (dim, inner), f"{start}1.fn.fn.w1": (4 * dim, dim),
                   f"{start}1.fn.fn.w2": (dim, 4 * dim)}  # fmt: skip
        norms += [f"{start}0.norm", f"{start}1.norm"]
        blocks = [
            torch.linalg.qr(torch.randn((width, width), generator=random))[0].T for _ in range(-(-n_features // width))
        ]
        lengths = torch.randn((n_features, width), generator=random).norm(dim=1)
        tensors[f"{start}0.fn.fast_attention.projection_matrix"] = lengths[:, None] * torch.cat(blocks)[:n_features]
    tensors |= random_tensors(shapes, linear, norms, dim)
    tensors["performer.calls_since_last_redraw"] = torch.tensor(0)
    torch.save({"epoch": 1, "model_state_dict": tensors}, folder / "panglao_pretrain.pth")
    (folder / "genes.txt").write_text("\n".join(list(human_genes())[: positions - 1]))


def write_scfoundation(
    folder: Path, dim: int, layers: int, heads: int, decoder_dim: int, decoder_layers: int, decoder_heads: int, width: int,
    bins: int, n_genes: int, *, keys: tuple[str, ...] = ("cell", "gene", "rde"),
) -> None:  # fmt: skip
    """A scFoundation folder: models.ckpt with its three models, and a gene list."""
    positions, n_features, inner = n_genes + 2, int(width * np.log(width)), decoder_heads * width
    encoder = {"hidden_dim": dim, "depth": layers, "heads": heads, "module_type": "transformer"}
    decoder = {"hidden_dim": decoder_dim, "depth": decoder_layers, "heads": decoder_heads, "dim_head": width,
               "module_type": "performer"}  # fmt: skip
    settings = {"seq_len": positions, "encoder": encoder, "decoder": decoder, "bin_num": bins, "bin_alpha": 1.0}
    config = {"model": "mae_autobin", "model_config": {"mae_autobin": settings}, "dataset_config": {"rnaseq": {}}}
    shapes = {"token_emb.emb.weight": (bins, dim), "token_emb.emb_mask.weight": (1, dim),
              "token_emb.emb_pad.weight": (1, dim), "pos_emb.weight": (positions + 1, dim)}  # fmt: skip
    linear = {"token_emb.mlp": (bins, 1), "token_emb.mlp2": (bins, bins)}
    for i in range(layers):
        start = f"encoder.transformer_encoder.{i}."
        shapes |= {f"{start}self_attn.in_proj_weight": (3 * dim, dim), f"{start}self_attn.in_proj_bias": (3 * dim,)}
        linear |= {f"{start}self_attn.out_proj": (dim, dim), f"{start}linear1": (4 * dim, dim),
                   f"{start}linear2": (dim, 4 * dim)}  # fmt: skip
    norms = [f"encoder.transformer_encoder.{i}.{norm}" for i in range(layers) for norm in ("norm1", "norm2")]
    tensors = random_tensors(shapes, linear, [*norms, "encoder.norm"], dim)
    shapes, linear, norms = (
        {},
        {"decoder_embed": (decoder_dim, dim), "to_final": (1, decoder_dim)},
        ["decoder.norm", "norm"],
    )
    for i in range(decoder_layers):
        start = f"decoder.performer.net.layers.{i}."
        shapes[f"{start}0.fn.fast_attention.projection_matrix"] = (n_features, width)
        linear |= {f"{start}0.fn.to_{part}": (inner, decoder_dim) for part in "qkv"}
        linear |= {f"{start}0.fn.to_out": (decoder_dim, inner), f"{start}1.fn.fn.w1": (4 * decoder_dim, decoder_dim),
                   f"{start}1.fn.fn.w2": (decoder_dim, 4 * decoder_dim)}  # fmt: skip
        norms += [f"{start}0.norm", f"{start}1.norm"]
    tensors |= random_tensors(shapes, linear, norms, decoder_dim)
    tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    # Clones, or the three would be stored as one.
    parts = {key: {"config": config, "state_dict": {name: t.clone() for name, t in tensors.items()}} for key in keys}
    torch.save(parts, folder / "models.ckpt")
    lines = [f"{name}\t{i}" for i, name in enumerate(list(human_genes())[:n_genes])]
    (folder / "OS_scRNA_gene_index.tsv").write_text("\n".join(["gene_name\tindex", *lines, ""]))


def save(path: Path, shapes: dict, linear: dict, norms: list[str], dim: int) -> None:
    """Write random tensors."""
    tensors = random_tensors(shapes, linear, norms, dim)
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)


def random_tensors(shapes: dict, linear: dict, norms: list[str], dim: int) -> dict[str, torch.Tensor]:
    """Normal with the deviation of an initialised BERT, norms of weight 1."""
    random = torch.Generator().manual_seed(0)
    tensors = {name: 0.02 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    for name, shape in linear.items():
        tensors[f"{name}.weight"] = 0.02 * torch.randn(shape, generator=random)
        tensors[f"{name}.bias"] = torch.zeros(shape[0])
    for name in norms:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.ones(dim), torch.zeros(dim)
    return tensors


def embed(folder: Path, h5ad: str, n_cells: int) -> None:
    """Embed the first cells of a file, and print peak memory in MiB, seconds, cells and tokens."""
    cfm.settings.progress = False
    adata = ad.read_h5ad(h5ad)[:n_cells].copy()
    start = time.perf_counter()
    cfm.tl.embed(adata, model=folder, device="cpu")
    seconds = time.perf_counter() - start
    peak = peak_memory()
    print(json.dumps([peak, seconds, adata.n_obs, int(adata.obs["cfm_n_genes"].sum())]))


def peak_memory() -> float:
    """MiB that this process held at most."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux counts for a child, in getrusage, what its parent held when it was started.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Write the checkpoint, embed in another process, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[*GENEFORMER, *SCGPT, *SCBERT, *SCFOUNDATION, *UCE])
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
        writers = ((GENEFORMER, write_geneformer), (SCGPT, write_scgpt), (SCBERT, write_scbert),
                   (SCFOUNDATION, write_scfoundation), (UCE, write_uce))  # fmt: skip
        shape, write = next((shapes[options.model], write) for shapes, write in writers if options.model in shapes)
        write(folder, *shape)
        h5ad = options.h5ad or str(Path(temporary) / "cells.h5ad")
        if not options.h5ad:
            cfm.datasets.pbmc68k().write_h5ad(h5ad)
        command = [sys.executable, __file__, options.model, "--embed", folder, "--h5ad", h5ad, "--cells", options.cells]
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
        peak, seconds, cells, tokens = json.loads(done.stdout.splitlines()[-1])
        # What is on the disk: most of UCE's table of proteins is a hole here, since no cell needs it.
        weights = max(path.stat().st_blocks * 512 for path in folder.iterdir()) / 2**20
    print(f"{options.model}: weights {weights:,.0f} MiB, peak {peak:,.0f} MiB ({peak - weights:,.0f} above the weights); "
          f"{cells} cells of {tokens / cells:,.0f} genes in {seconds:.1f} s with loading")  # fmt: skip


if __name__ == "__main__":
    main()
