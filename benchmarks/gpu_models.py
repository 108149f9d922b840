"""Whole models at published shapes with random weights: cells per second with each backend, beside padded batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from against_padding import bert, transformer
from full_shape import GENEFORMER, SCGPT, write_geneformer, write_scgpt
from gpu_cases import WIDTH, Row, no_row
from gpu_report import Options, Progress
from gpu_timing import device, peak, rates, synchronize, wall
from torch import Tensor
from torch.nn import functional as F

import cfm
from cfm import models
from cfm.genes import match
from cfm.genes.identifiers import human_genes
from cfm.kernels import backends
from cfm.models import Pack
from cfm.tokens import TokenBatch

BACKENDS = ("sdpa", "cuda", "triton", "auto", "eager")
"""Values of `cfm.settings.attention`; the vectors of the first are what those of the others are compared with."""

BATCH = 32
"""Cells of a padded batch, in the order of the file, as the official loops take them."""


@dataclass(frozen=True)
class Model:
    """A model at a published shape.

    Parameters
    ----------
    name
        What the shape is called.
    write
        Writes a checkpoint with random weights to a folder.
    shape
        What `write` takes after the folder.
    padded
        Makes the same network of other people's modules, on padded batches; None: nobody wrote that down.
    options
        Of `cfm.models.load`.
    cells
        So many are embedded: fewer where each has tens of thousands of tokens.
    """

    name: str
    write: Callable[..., None]
    shape: tuple[int, ...]
    padded: Callable[[Path, str, str], Callable[[TokenBatch], Tensor]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    cells: int = 256


# A family more is a line more.
MODELS = (
    Model("scgpt-human", write_scgpt, SCGPT["scgpt-human"], transformer),
    Model("geneformer-v1-10m", write_geneformer, GENEFORMER["geneformer-v1-10m"], bert),
    Model("geneformer-v2-104m", write_geneformer, GENEFORMER["geneformer-v2-104m"], bert, {"emb_mode": "cell"}),
)


def cells(n: int, seed: int = 0) -> ad.AnnData:
    """Made-up cells of 300 to 2,048 expressed genes each; only how many there are matters to a clock."""
    random = np.random.default_rng(seed)
    genes = sorted(set(human_genes().values()))[:20_000]
    lengths = random.integers(300, 2049, n)
    places = [np.sort(random.choice(len(genes), size, replace=False)) for size in lengths]
    counts = random.geometric(0.4, lengths.sum()).astype(np.float32)
    x = sp.csr_matrix((counts, np.concatenate(places), np.concatenate([[0], np.cumsum(lengths)])), (n, len(genes)))
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
    return ad.AnnData(x, obs, pd.DataFrame({"ensembl_id": genes}, index=genes))


def packed(tokens: TokenBatch, budget: int = 16_384) -> list[TokenBatch]:
    """Cells in the order of the file, in batches of as many tokens as a pack of the settings has."""
    groups: list[list[int]] = [[]]
    filled = 0
    for i, n in enumerate(tokens.lengths.tolist()):
        if groups[-1] and filled + n > budget:
            groups.append([])
            filled = 0
        groups[-1].append(i)
        filled += n
    return [tokens.take(np.array(group)) for group in groups]


def models_table(options: Options, progress: Progress) -> None:
    """Fill the table."""
    cfm.settings.progress, cfm.settings.verbosity = False, "error"
    for model in MODELS[:1] if options.quick else MODELS:
        adata = cells(min(model.cells, 64) if options.quick else model.cells)
        progress.title(f"{model.name}, {adata.n_obs} cells of 300 to 2,048 genes, random weights, bfloat16")
        try:
            one_model(model, adata, options, progress)
        except Exception as problem:  # noqa: BLE001  # a family that fails is a line, and the next one goes on
            synchronize()
            progress.add(no_row("models", model.name, "cfm", "run", f"{type(problem).__name__}: {problem}"))


def one_model(model: Model, adata: ad.AnnData, options: Options, progress: Progress) -> None:
    """Rows of a model: the network alone from the same tokens, then `cfm.tl.embed` as a user calls it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / model.name
        folder.mkdir()
        model.write(folder, *model.shape)
        loaded = models.load(folder, device=str(device()), **model.options)
        tokens = loaded.tokenizer(match(adata.var, loaded.vocabulary))(adata.X, 0)

        def ours() -> Tensor:
            batches = (Pack.of(batch, loaded.device) for batch in packed(tokens))
            return torch.cat([loaded.forward(batch, frozenset({"cell"}))["cell"] for batch in batches])

        def embed() -> Tensor:
            cfm.tl.embed(adata, model=folder, device=str(device()), **model.options)
            return torch.from_numpy(np.asarray(adata.obsm["X_cfm"]))

        right: Tensor | None = None
        for backend in BACKENDS:
            with cfm.settings.override(attention=backend):
                found = attempt(model.name, backend, lambda: ours, right, options, progress)
            right = found if right is None else right
        if model.padded:
            theirs = partial(padded, model, folder, tokens)
            attempt(model.name, "padded", theirs, right, options, progress)
        with cfm.settings.override(attention="auto"):
            attempt(model.name, "tl.embed, auto", lambda: embed, right, options, progress)


def padded(model: Model, folder: Path, tokens: TokenBatch) -> Callable[[], Tensor]:
    """The same from the same tokens by padded batches, in bfloat16 too."""
    assert model.padded is not None
    network = model.padded(folder, model.name, str(device()))
    groups = [tokens.take(np.arange(i, min(i + BATCH, tokens.n_cells))) for i in range(0, tokens.n_cells, BATCH)]

    @torch.inference_mode()
    def theirs() -> Tensor:
        with torch.autocast(device().type, dtype=torch.bfloat16):
            return torch.cat([network(group).float() for group in groups])

    return theirs


def attempt(
    model: str,
    rival: str,
    make: Callable[[], Callable[[], Tensor]],
    right: Tensor | None,
    options: Options,
    progress: Progress,
) -> Tensor | None:
    """Note cells per second, peak memory, and the lowest cosine with the vectors of torch's way; give the vectors."""
    if progress.has(model, rival):
        return None
    call = backends.Call(device(), torch.bfloat16, WIDTH)
    why = progress.broken.get(rival) or (backends.lacks(rival, call) if rival in ("cuda", "triton") else None)
    if not why and time.time() > options.until:
        why = "the time of this table was up"
    if why:
        progress.add(no_row("models", model, rival, "cells", why))
        return None
    with progress.trying(model, rival):
        try:
            vectors = make()
            found = vectors().float().cpu()
            ms = wall(vectors, 3 if options.quick else 5)
            made: Row = {"table": "models", "case": model, "rival": rival, "what": "cells", "ms": ms.asdict(),
                         "cells/s": rates(1e3 * len(found), ms), "MiB": peak(vectors)}  # fmt: skip
        except Exception as problem:  # noqa: BLE001  # of any library; the line says which
            synchronize()
            progress.add(no_row("models", model, rival, "cells", f"{type(problem).__name__}: {problem}"))
            return None
        # A kernel that does not compile or start is replaced by the next backend, whose numbers these would be.
        if broken := [why for (name, _), why in backends._broken.items() if name == rival]:
            made = no_row("models", model, rival, "cells", f"another backend took over: {broken[0]}")
        elif right is not None:
            made["cosine"] = float(F.cosine_similarity(found, right).min())
        progress.add(made)
    return found
