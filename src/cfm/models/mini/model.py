"""The class that ties tokeniser, network and files of cfm-mini."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from cfm._core.errors import CheckpointError, UnsupportedOutput
from cfm.genes import GeneMatch, Vocabulary
from cfm.models.contract import NO_COLUMNS, ModelSpec, ObsColumn, Pack
from cfm.models.reference import Reference

from . import checkpoint
from .module import GeneBag
from .tokenizer import MiniTokenizer

OUTPUTS = frozenset({"cell"})

_ROWS = 256
"""Cells that go through the dense layers together, the last group padded. BLAS takes other paths for other numbers of
rows and rounds differently; with one number for all, the bits of a vector do not depend on the cells beside it."""


@dataclass
class MiniModel:
    """cfm-mini on a device; keeps `cfm.models.CellModel`."""

    spec: ModelSpec
    vocabulary: Vocabulary
    device: torch.device
    module: GeneBag
    folder: Path
    obs_columns: Mapping[str, ObsColumn] = field(default_factory=dict)
    token_options: frozenset[str] = frozenset()

    @staticmethod
    def recognises(folder: Path) -> bool:
        """Whether config.json says that this is a cfm-mini."""
        try:
            config = json.loads((folder / checkpoint.CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return (folder / checkpoint.VOCABULARY).is_file() and (folder / checkpoint.WEIGHTS).is_file()
        return isinstance(config, dict) and config.get("family") == "mini"

    @classmethod
    def load(cls, folder: Path, *, name: str, device: torch.device) -> Self:
        """Read a cfm-mini folder."""
        config = checkpoint.read_config(folder)
        vocabulary = checkpoint.read_vocabulary(folder)
        module = checkpoint.read_module(folder, config, len(vocabulary)).to(device)
        checkpoint.check_vocabulary(folder, vocabulary)
        spec = ModelSpec(
            name=name,
            family="mini",
            version=config["version"],
            digest=checkpoint.digest(folder),
            licence=config["licence"],
            species=config["species"],
            dim=config["dim"],
            max_tokens=len(vocabulary),
            outputs=OUTPUTS,
        )
        return cls(spec, vocabulary, device, module, folder)

    def tokenizer(self, match: GeneMatch, columns: Mapping[str, NDArray[Any]] = NO_COLUMNS) -> MiniTokenizer:
        """The tokeniser for a file whose columns match like this; nothing of ``obs`` is needed."""
        del columns
        return MiniTokenizer(match.tokens, len(self.vocabulary))

    @torch.inference_mode()
    def forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, torch.Tensor]:
        """Cell vectors of length 1, float32[n_cells, dim]."""
        if unknown := outputs - OUTPUTS:
            raise UnsupportedOutput(f"cfm-mini gives {sorted(OUTPUTS)}, not {sorted(unknown)}.")
        assert pack.values is not None
        bags = self.module.bag(pack.ids, pack.values, pack.offsets)
        parts = [
            self.module.encoder(F.pad(part, (0, 0, 0, _ROWS - len(part))))[: len(part)] for part in bags.split(_ROWS)
        ]
        return {"cell": F.normalize(torch.cat(parts), dim=-1)}

    def gene_tokens(self) -> NDArray[np.int64]:
        """The position of each gene: cfm-mini has no other tokens."""
        return np.arange(len(self.vocabulary))

    def gene_vectors(self) -> NDArray[np.float32]:
        """The decoder's vector of each gene, float32[genes, dim]: genes that go together point alike."""
        return self.module.output.weight.float().cpu().numpy()

    def reference(self) -> Reference | None:
        """Labelled prototypes that came with the weights, or None."""
        path = self.folder / checkpoint.REFERENCE
        if not path.is_file():
            return None
        found = Reference.read(path, self.spec.digest)
        if (length := found.vectors.shape[1]) != self.spec.dim:
            raise CheckpointError(f"{path} holds vectors of {length} numbers, the model gives {self.spec.dim}.")
        return found
