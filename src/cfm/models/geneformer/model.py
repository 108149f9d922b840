"""The class that ties dictionaries, tokeniser, network and files of Geneformer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from cfm._core.errors import OptionError, UnsupportedOutput
from cfm._core.logging import logger
from cfm._core.resources import sha256
from cfm.genes import GeneMatch, Vocabulary
from cfm.models.contract import NO_COLUMNS, ModelSpec, ObsColumn, Pack
from cfm.models.weights import LoadReport
from cfm.nn.precision import Precision, autocast, choose_precision, to_int8

from . import checkpoint
from .dictionaries import CLS, Dictionaries, find_dictionaries
from .module import Geneformer
from .tokenizer import Arithmetic, GeneformerTokenizer, tie_places

EmbMode = Literal["cls", "cell"]


@dataclass
class GeneformerModel:
    """Geneformer on a device; keeps `cfm.models.CellModel`."""

    spec: ModelSpec
    vocabulary: Vocabulary
    device: torch.device
    obs_columns: Mapping[str, ObsColumn]
    module: Geneformer
    dictionaries: Dictionaries
    report: LoadReport
    n_layers: int
    emb_mode: EmbMode
    arithmetic: Arithmetic
    precision: Precision
    token_options: frozenset[str] = frozenset({"dictionaries", "n_counts", "arithmetic"})

    @staticmethod
    def recognises(folder: Path) -> bool:
        """Whether config.json says that this is a BERT."""
        try:
            config = json.loads((folder / checkpoint.CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and config.get("model_type") == "bert"

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str,
        device: torch.device,
        precision: Precision | None = None,
        dictionaries: str | Path | None = None,
        emb_layer: int = -1,
        emb_mode: EmbMode | None = None,
        n_counts: str | None = None,
        arithmetic: Arithmetic = "sparse",
    ) -> Self:
        """Read a Geneformer folder.

        Parameters
        ----------
        folder, name, device
            As in `cfm.models.CellModel`.
        precision
            As in `cfm.nn.precision.choose_precision`.
        dictionaries
            Folder of the official gene dictionaries; None looks beside the checkpoint.
        emb_layer
            -1 takes the last layer but one, 0 the last: the official numbering.
        emb_mode
            ``"cls"`` takes the vector of ``<cls>``, which models have since V2; ``"cell"`` the mean over genes. None
            takes ``"cls"`` where there is one.
        n_counts
            Column of ``obs`` with the total count of each cell. It changes nothing but rounding, by its dtype.
        arithmetic
            ``"sparse"`` or ``"dense"``: round as the official code does for a matrix stored like this.
        """
        chosen = choose_precision(precision, device)
        config = checkpoint.read_config(folder)
        path = checkpoint.weights_path(folder)
        shape = checkpoint.shape_of(config)
        module, report = checkpoint.read_module(path, shape)
        found = find_dictionaries(folder, dictionaries, shape.vocabulary)
        version = "1" if found.ends is None else "2"
        if emb_layer not in (layers := range(-shape.layers, 1)) or layers.index(emb_layer) != emb_layer + shape.layers:
            raise OptionError(f"emb_layer={emb_layer!r}: 0 is the last layer, -1 the one before, to {-shape.layers}.")
        spec = ModelSpec(
            name=name,
            family="geneformer",
            version=version,
            digest=sha256(path)[:12],
            licence="Apache-2.0",
            species="human",
            dim=shape.dim,
            max_tokens=shape.positions,
            outputs=frozenset({"cell", "token"} | ({"logits"} if module.head is not None else set())),
            special_tokens=0 if found.ends is None else 2,
        )
        logger.debug("%s: %s", path.name, report)
        if chosen == "int8":
            to_int8(module.bert.layers)
        return cls(
            spec=spec,
            vocabulary=found.vocabulary,
            device=device,
            obs_columns={} if n_counts is None else {"n_counts": ObsColumn(n_counts)},
            module=module.to(device),
            dictionaries=found,
            report=report,
            n_layers=shape.layers + emb_layer,
            emb_mode=_chosen_mode(emb_mode, found),
            precision=chosen,
            arithmetic=_one_of("arithmetic", arithmetic, ("sparse", "dense")),
        )

    def tokenizer(self, match: GeneMatch, columns: Mapping[str, NDArray[Any]] = NO_COLUMNS) -> GeneformerTokenizer:
        """The tokeniser for a file whose genes match like this."""
        places, genes = tie_places(match.tokens)
        return GeneformerTokenizer(
            places=places,
            tokens=self.dictionaries.tokens[genes],
            medians=self.dictionaries.medians[genes],
            max_tokens=self.spec.max_tokens,
            ends=self.dictionaries.ends,
            n_counts=columns.get("n_counts"),
            arithmetic=self.arithmetic,
        )

    @torch.inference_mode()
    def forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, torch.Tensor]:
        """Vectors of cells and tokens at the chosen layer, and what the head says."""
        if unknown := outputs - self.spec.outputs:
            raise UnsupportedOutput(f"{self.spec.name} gives {sorted(self.spec.outputs)}, not {sorted(unknown)}.")
        with autocast(self.device, self.precision):
            found = self._forward(pack, outputs)
        return {name: tensor.float() for name, tensor in found.items()}

    def _forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, torch.Tensor]:
        offsets = pack.offsets.tolist()
        found: dict[str, torch.Tensor] = {}
        if "token" in outputs or ("cell" in outputs and self.emb_mode == "cell"):
            tokens = self.module.bert(pack.ids, offsets, self.n_layers)
            found["token"] = tokens
            found["cell"] = tokens[offsets[:-1]] if self.emb_mode == "cls" else self._gene_mean(tokens, pack.offsets)
        elif "cell" in outputs:
            found["cell"] = self.module.bert.first_tokens(pack.ids, offsets, self.n_layers)
        if "logits" in outputs:
            logits = self.module.logits(pack.ids, offsets)
            found["logits"] = torch.cat(logits, dim=1) if isinstance(logits, list) else logits
        return {name: tensor for name, tensor in found.items() if name in outputs}

    def _gene_mean(self, tokens: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Mean over the genes of each cell, without ``<cls>`` and ``<eos>``."""
        inner = 0 if self.dictionaries.ends is None else 1
        return torch.stack([tokens[a + inner : b - inner].float().mean(0) for a, b in offsets.unfold(0, 2, 1).tolist()])

    def gene_tokens(self) -> NDArray[np.int64]:
        """Token id of each gene."""
        return self.dictionaries.tokens.astype(np.int64)

    def gene_vectors(self) -> NDArray[np.float32]:
        """The input embedding of each gene, float32[genes, dim]."""
        return self.module.bert.word.weight.float().cpu().numpy()[self.dictionaries.tokens]

    def reference(self) -> None:
        """None: no labelled cells come with the checkpoints."""


def _chosen_mode(mode: EmbMode | None, dictionaries: Dictionaries) -> EmbMode:
    if mode is None:
        return "cell" if dictionaries.ends is None else "cls"
    if mode == "cls" and dictionaries.ends is None:
        msg = f"emb_mode='cls': this is a V1 model, whose cells have no {CLS}. Type emb_mode='cell', or leave it out."
        raise OptionError(msg)
    return _one_of("emb_mode", mode, ("cls", "cell"))


def _one_of[T: str](option: str, value: T, allowed: tuple[T, ...]) -> T:
    if value not in allowed:
        raise OptionError(f"{option}={value!r}: type {' or '.join(map(repr, allowed))}.")
    return value
