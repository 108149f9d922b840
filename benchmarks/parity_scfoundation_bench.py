"""What the parts of scFoundation's comparison share: the cells, the models of the folder, and padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from parity import Report

from cfm import models
from cfm.genes import match
from cfm.models.contract import Pack
from cfm.models.scfoundation import ScfoundationModel
from cfm.tokens import TokenBatch, gene_rows


@dataclass
class Bench:
    """The cells that express a listed gene, over the genes of the list, and the folder's models."""

    report: Report
    counts: ad.AnnData
    normalized: ad.AnnData

    def model(self, **options: Any) -> ScfoundationModel:
        """A model of the folder that repeats the official code."""
        found = models.load(self.report.folder, device="cpu", **({"compat": "official"} | options))
        assert isinstance(found, ScfoundationModel)
        return found

    def tokens(self, model: ScfoundationModel, cells: ad.AnnData, rows: Any = slice(None)) -> TokenBatch:
        """Tokens of some of the cells."""
        cells = cells[rows]
        return tokenizer_of(model, cells)(sp.csr_array(cells.X), 0)

    def pack(self, rows: Any, cells: ad.AnnData | None = None, **options: Any) -> tuple[ScfoundationModel, Pack]:
        """A model, and some of the cells ready for it."""
        model = self.model(**options)
        return model, Pack.of(self.tokens(model, self.counts if cells is None else cells, rows), torch.device("cpu"))

    @property
    def pad(self) -> int:
        """The number that stands for padding among values, and in one route among positions."""
        found = torch.load(self.report.folder / "models.ckpt", weights_only=True, mmap=True)["gene"]["config"]
        return int(found["model_config"][found["model"]]["pad_token_id"])

    @property
    def hidden(self) -> int:
        """The number that stands for a hidden value."""
        found = torch.load(self.report.folder / "models.ckpt", weights_only=True, mmap=True)["gene"]["config"]
        return int(found["model_config"][found["model"]]["mask_token_id"])


def tokenizer_of(model: ScfoundationModel, cells: ad.AnnData) -> Any:
    """The tokeniser for these cells."""
    columns = {name: cells.obs[column.name].to_numpy() for name, column in model.obs_columns.items()}
    return model.tokenizer(match(cells.var, model.vocabulary, gene_column="var_names", min_genes=1), columns)


def depths_of(model: ScfoundationModel, cells: ad.AnnData) -> NDArray[np.float64]:
    """Depth asked for and own depth of each cell, float64[n_cells, 2]."""
    tokenizer = tokenizer_of(model, cells)
    rows = gene_rows(sp.csr_array(cells.X), tokenizer.tokens, tokenizer.n_genes)
    return np.stack(tokenizer.depths(rows, tokenizer.values(rows), 0), axis=1)


def padded(batch: TokenBatch, numbers: NDArray[Any], fill: float, multiple: int = 1) -> NDArray[Any]:
    """One row a cell, filled up to the longest, or to a multiple."""
    width = -(-int(batch.lengths.max()) // multiple) * multiple
    out = np.full((batch.n_cells, width), fill, numbers.dtype)
    for row, (a, b) in enumerate(zip(batch.offsets, batch.offsets[1:], strict=False)):
        out[row, : b - a] = numbers[a:b]
    return out
