"""The full list of genes, with weights by a recipe; run through parity.py."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from numpy.typing import NDArray
from parity import Report
from torch import Tensor

import cfm
from cfm import infer, models
from cfm.models import Pack
from cfm.models.scfoundation.module import ScfoundationNetwork, Shape
from cfm.models.scfoundation.names import PREFIX, to_official

N_GENES = 19_264
# Of the README: no array tells them.
LAYERS, HEADS, WIDTH, FEATURES, BINS = 2, 2, 8, 16, 100
TOLERANCE, SUM = 1e-5, 0.02
TABLES = ("pos_emb", "token_emb.emb", "token_emb.emb_mask", "token_emb.emb_pad", "gene_emb", "pert_emb", "emb_pos")


def compare(report: Report, cells: ad.AnnData) -> None:
    """All arrays of full19264.npz, from a folder in the official layout."""
    at = "full19264/"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_folder(folder, report, cells)
        adata = cells[report.input(at + "rows").astype(int)].copy()
        model = models.load(folder, device="cpu", compat="official")
        prepared = infer.prepare(adata, model, layer=None, gene_column=None, species=None, gene_table=None)
        batch = next(iter(prepared.stream))
        report.check(at + "values", batch.values)
        report.check(at + "positions", batch.ids)
        report.check(at + "offsets", batch.offsets)
        ends = batch.offsets[1:]
        depths = np.stack([batch.values[ends - 2], batch.values[ends - 1]], axis=1)
        report.check(at + "TS", depths, 1e-6)  # ours are float32 here; tokens/TS are compared in float64
        cfm.tl.embed(adata, model=folder, device="cpu", compat="official")
        report.check(at + "cell_all_t4", adata.obsm["X_cfm"], TOLERANCE)
        genes(report, folder, cells[report.input(at + "expr_f1_rows").astype(int)].copy())


def genes(report: Report, folder: Path, adata: ad.AnnData) -> None:
    """Vectors and expression of all genes."""
    at = "full19264/"
    model = models.load(folder, device="cpu", depth="f1", compat="official")
    prepared = infer.prepare(adata, model, layer=None, gene_column=None, species=None, gene_table=None)
    batch = next(iter(prepared.stream))
    packs = [Pack.of(batch.take(np.array([i])), model.device) for i in range(batch.n_cells)]
    found = [model.forward(pack, frozenset({"gene", "gene_expression"})) for pack in packs]
    vectors, expression = (torch.cat([f[name] for f in found]).numpy() for name in ("gene", "gene_expression"))
    report.check(at + "expr_f1_every19th", expression[:, ::19], TOLERANCE)
    report.check(at + "expr_f1_sum", expression.astype(np.float64).sum(1), SUM)
    report.check(at + "gene_f1_every191th", vectors[:, ::191], TOLERANCE)
    report.check(at + "gene_f1_mean_over_genes", vectors.astype(np.float64).mean(1), TOLERANCE)


def write_folder(folder: Path, report: Report, cells: ad.AnnData) -> None:
    """models.ckpt and a gene list of full length; genes that no cell can have bear names of their own."""
    index = report.input("tokens/var_to_official_index_19264").astype(int)
    symbols = [f"other_{i}" for i in range(N_GENES)]
    for name, place in zip(cells.var_names, index, strict=True):
        if place >= 0:
            symbols[place] = str(name)
    lines = [f"{name}\t{i}\n" for i, name in enumerate(symbols)]
    (folder / "OS_scRNA_gene_index.full.tsv").write_text("gene_name\tindex\n" + "".join(lines))
    dim = report.all["full19264/cell_all_t4"].shape[1] // 4
    decoder_dim = report.all["full19264/gene_f1_every191th"].shape[2]
    shape = Shape(N_GENES + 2, dim, LAYERS, HEADS, BINS, 1.0, decoder_dim, LAYERS, HEADS, WIDTH, FEATURES)
    torch.save({key: model_of(shape, f"scf-full-{key}/") for key in ("cell", "gene")}, folder / "models.ckpt")


def model_of(shape: Shape, salt: str) -> dict[str, dict]:
    """Settings and weights of one of the models, as the official file has them."""
    encoder = {"hidden_dim": shape.dim, "depth": shape.layers, "heads": shape.heads, "module_type": "transformer"}
    decoder = {"hidden_dim": shape.decoder_dim, "depth": shape.decoder_layers, "heads": shape.decoder_heads,
               "dim_head": shape.decoder_width, "module_type": "performer"}  # fmt: skip
    settings = {"seq_len": shape.positions, "encoder": encoder, "decoder": decoder, "bin_num": shape.n_bins,
                "bin_alpha": shape.alpha, "pad_token_id": 103, "mask_token_id": 102}  # fmt: skip
    config = {"model": "mae_autobin", "model_config": {"mae_autobin": settings}, "dataset_config": {"rnaseq": {}}}
    with torch.device("meta"):
        shapes = to_official(ScfoundationNetwork(shape).state_dict())
    tensors = {PREFIX + name: recipe(salt, name, tensor.shape) for name, tensor in shapes.items()}
    return {"config": config, "state_dict": tensors}


def recipe(salt: str, name: str, shape: torch.Size) -> Tensor:
    """A weight by the recipe of the README: a hash of its name and of the place of each number."""
    scale, offset = scale_of(name, shape)
    u = uniform(salt + name, int(np.prod(shape)))
    return torch.from_numpy(((2 * u - 1) * scale + offset).astype(np.float32).reshape(shape))


def scale_of(name: str, shape: torch.Size) -> tuple[float, float]:
    """The first rule that fits."""
    if name.endswith("running_mean"):
        return 0.1, 0.0
    if name.endswith("running_var"):
        return 0.3, 1.0
    if len(shape) == 1:
        return (0.4, 1.0) if name.endswith("weight") else (0.3, 0.0)
    if "projection_matrix" in name:
        return 1.5, 0.0
    if name.startswith("indv"):
        return 0.6, 0.0
    if name == "token_emb.mlp.weight":
        return 2.0, 0.0
    if name.removesuffix(".weight") in TABLES:
        return 1.0, 0.0
    if name.endswith((".to_q.weight", ".to_k.weight")):
        return shape[-1] ** -0.5, 0.0
    return 2.2 * shape[-1] ** -0.5, 0.0


def uniform(text: str, n: int) -> NDArray[np.float64]:
    """Numbers from 0 to 1, in 24 bits."""
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(zlib.crc32(text.encode()))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**24
