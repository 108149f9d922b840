"""A UCE folder of the published shape with random weights, most of whose table of proteins is a hole in the file."""

from __future__ import annotations

import csv
import json
import math
import mmap
import pickle
from pathlib import Path

import torch
from torch import Tensor

from cfm.genes.identifiers import human_genes

UCE = {"uce-4l": (4, 1280, 5120, 5120, 145_469), "uce-33l": (33, 1280, 5120, 5120, 145_469)}
"""Layers, lengths of token vectors, of the layer between and of protein vectors, and tokens."""

N_HUMAN, N_CHROMOSOMES, HUMAN_CHROMOSOMES, POSITIONS = 19_790, 1_895, 25, 1536
FIRST_GENE = 4
WEIGHTS = "4layer_model.torch"


def write_uce(folder: Path, layers: int, dim: int, hidden: int, width: int, rows: int) -> None:
    """Weights, the genes of man in some order, and chromosomes of man and of another species that has all the rest."""
    symbols = list(human_genes())[:N_HUMAN]
    first_chromosome, first_other = rows - N_CHROMOSOMES, FIRST_GENE + len(symbols)
    (folder / "human_genes.txt").write_text("\n".join(symbols))
    (folder / "species_offsets.pkl").write_bytes(pickle.dumps({"human": FIRST_GENE, "mouse": first_other}))
    (folder / "config.json").write_text(json.dumps({"nhead": dim // 64}))
    with (folder / "species_chrom.csv").open("w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["gene_symbol", "chromosome", "start", "species"])
        out.writerows((symbol, i % HUMAN_CHROMOSOMES, 1000 * i, "human") for i, symbol in enumerate(symbols))
        out.writerows((f"M{i}", f"scaffold{i}", 1, "mouse") for i in range(N_CHROMOSOMES - HUMAN_CHROMOSOMES))
    shapes = shapes_of(layers, dim, hidden, width, rows)
    with torch.serialization.skip_data():
        # Nothing is written of these, and what is never written takes no memory and no disk.
        torch.save({name: torch.empty(shape) for name, shape in shapes.items()}, folder / WEIGHTS)
    fill(folder / WEIGHTS, [*range(FIRST_GENE), *range(FIRST_GENE, first_other),
                            *range(first_chromosome, first_chromosome + HUMAN_CHROMOSOMES)])  # fmt: skip


def shapes_of(layers: int, dim: int, hidden: int, width: int, rows: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict."""
    linear = {
        "encoder.0": (dim, width), "gene_embedding_layer.0": (dim, width),
        "decoder.0.0": (1024, dim), "decoder.1.0": (dim, 1024), "decoder.2.0": (dim, dim), "decoder.3": (dim, dim),
        "binary_decoder.0.0": (2048, 2 * dim), "binary_decoder.1.0": (512, 2048), "binary_decoder.2.0": (128, 512),
        "binary_decoder.3": (1, 128),
    }  # fmt: skip
    norms = {"encoder.2": dim, "gene_embedding_layer.2": dim}
    norms |= {f"{part[:-1]}1": shape[0] for part, shape in linear.items() if part.count(".") == 2}
    shapes: dict[str, tuple[int, ...]] = {"pos_encoder.pe": (POSITIONS, 1, dim), "pe_embedding.weight": (rows, width)}
    for i in range(layers):
        start = f"transformer_encoder.layers.{i}."
        shapes |= {f"{start}self_attn.in_proj_weight": (3 * dim, dim), f"{start}self_attn.in_proj_bias": (3 * dim,)}
        linear |= {f"{start}self_attn.out_proj": (dim, dim), f"{start}linear1": (hidden, dim),
                   f"{start}linear2": (dim, hidden)}  # fmt: skip
        norms |= {f"{start}norm1": dim, f"{start}norm2": dim}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, n in norms.items():
        shapes |= {f"{name}.weight": (n,), f"{name}.bias": (n,)}
    return shapes


def fill(path: Path, used: list[int]) -> None:
    """Random numbers for all tensors of a file, in place; of the table for the rows in use."""
    before = torch.serialization.get_default_mmap_options()
    torch.serialization.set_default_mmap_options(mmap.MAP_SHARED)
    random = torch.Generator().manual_seed(0)
    try:
        for name, tensor in torch.load(path, mmap=True, weights_only=True).items():
            if name == "pe_embedding.weight":
                for rows in torch.tensor(used).split(1024):
                    tensor[rows] = torch.randn(len(rows), tensor.shape[1], generator=random)
                tensor[0] = 0
            elif name == "pos_encoder.pe":
                tensor[:, 0] = sinusoids(*tensor.shape[::2])
            elif tensor.ndim == 2:
                torch.randn(tensor.shape, generator=random, out=tensor).mul_(tensor.shape[1] ** -0.5)
            else:
                tensor.fill_(float(name.endswith("weight")))
    finally:
        torch.serialization.set_default_mmap_options(before)


def sinusoids(n: int, dim: int) -> Tensor:
    """Positions as the paper of the transformer has them."""
    angles = torch.arange(n)[:, None] * torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
