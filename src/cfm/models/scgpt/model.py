"""The class that ties tokeniser, network and files of scGPT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from cfm._core.errors import CheckpointError, OptionError, UnsupportedOutput
from cfm._core.resources import sha256
from cfm.genes import GeneMatch, Vocabulary
from cfm.models.contract import NO_COLUMNS, ModelSpec, ObsColumn, Pack, Tokenizer
from cfm.models.weights import LoadReport
from cfm.nn.precision import Precision, autocast, choose_precision, to_int8

from . import checkpoint, files
from .genes import genes_of
from .heads import unit
from .modalities import modality_of_token
from .module import Inputs, ScgptNetwork
from .official import OfficialTokenizer
from .options import Choices
from .tokenizer import ScgptTokenizer, Select, Ties

_LICENCE = "MIT (code)"
_BATCH = "batch"


@dataclass
class ScgptModel:
    """scGPT on a device; keeps `cfm.models.CellModel`."""

    spec: ModelSpec
    vocabulary: Vocabulary
    device: torch.device
    obs_columns: Mapping[str, ObsColumn]
    module: ScgptNetwork
    report: LoadReport
    choices: Choices
    precision: Precision
    token_ids: dict[str, int]
    modality_of_token: NDArray[np.int64] | None
    pad: str
    token_options: frozenset[str] = frozenset({"ties", "select", "max_length", "seed", "zeros", "cls_value", "compat"})

    @staticmethod
    def recognises(folder: Path) -> bool:
        """Whether a folder has the files of a scGPT checkpoint."""
        try:
            return files.is_scgpt(folder)
        except OSError:
            return False

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str,
        device: torch.device,
        precision: Precision | None = None,
        ties: Ties = "left",
        select: Select = "random",
        max_length: int | None = None,
        seed: int | tuple[int, int] = 0,
        zeros: bool | None = None,
        cls_value: float | None = None,
        batch_key: str | None = None,
        heads: int | None = None,
        compat: Literal["official"] | None = None,
    ) -> Self:
        """Read a folder with the files of an official checkpoint, or of a model that was fine-tuned from one.

        Parameters
        ----------
        folder
            With vocab.json, best_model.pt (or one other file of weights), and mostly args.json.
        name
            Name for messages and records.
        device
            Where the model runs.
        precision
            As in `cfm.nn.precision.choose_precision`.
        ties
            The bin of a count that lies on several edges: ``"left"`` takes the highest, as the code did when the
            models were pretrained; ``"random"`` any of them, as the official code does since.
        select
            The genes that stay of a cell with more than fit: ``"random"`` ones, as in the official code, or
            ``"top"``, those with the highest counts.
        max_length
            Most tokens of a cell, ``<cls>`` included; None takes args.json, else 1,200.
        seed
            For random ties and genes. They hang on it and on the cell's own counts, on nothing else.
        zeros
            Whether genes with a count of 0 are tokens too, as in the official fine-tuning for integration. None takes
            args.json of models that were fine-tuned here, else not.
        cls_value
            Value beside ``<cls>``. None takes args.json of models that were fine-tuned here, else the padding value, as
            pretraining does; official fine-tuning takes 0.
        batch_key
            Column of ``obs`` with the batch, for models that were fine-tuned with batches.
        heads
            Number of attention heads, where no args.json tells it.
        compat
            ``"official"`` draws ties and genes with the generators and in the order of the official ``embed_data`` in
            one process, for comparing; `ties` and `select` are then not looked at. `seed` may be a pair, for numpy and
            for torch. A vector then depends on the cells before it, and genes match by exact name only.

        Raises
        ------
        CheckpointError
            A file is missing, damaged, of another model, or holds code.
        OptionError
            An option has no such value, or the model needs a `batch_key`.
        """
        chosen = choose_precision(precision, device)
        found = checkpoint.read(folder, heads)
        layout = found.network.layout
        # A table of values has its last two rows for padding and for masked values.
        beside = {"pad_value": layout.n_values - 2} if layout.values == "category" else {}
        choices = Choices.of(
            beside | found.args, ties=ties, select=select, max_length=max_length, seed=seed, zeros=zeros, cls_value=cls_value,
            compat=compat,
        )  # fmt: skip
        vocabulary, _ = genes_of(found.tokens)
        if chosen == "int8":
            to_int8(found.network.layers)
        outputs = {"token", "expression"}
        if not layout.n_perturbations:
            outputs |= {"cell"} | ({"logits"} if layout.n_classes else set())
        spec = ModelSpec(
            name=name,
            family="scgpt",
            version=f"{layout.layers} layers of {layout.dim}",
            digest=sha256(found.weights)[:12],
            licence=_LICENCE,
            species="human",
            dim=layout.dim,
            max_tokens=choices.max_length,
            outputs=frozenset(outputs),
            special_tokens=1,
        )
        return cls(
            spec=spec,
            vocabulary=vocabulary,
            device=device,
            obs_columns=_columns(found, batch_key, name),
            module=found.network.to(device),
            report=found.report,
            choices=choices,
            precision=chosen,
            token_ids={token: i for i, token in enumerate(found.tokens)},
            modality_of_token=modality_of_token(found.tokens, found.modalities, found.pad),
            pad=found.pad,
        )

    def tokenizer(self, match: GeneMatch, columns: Mapping[str, NDArray[Any]] = NO_COLUMNS) -> Tokenizer:
        """The tokeniser for a file whose genes match like this; checks that the model knows its batches."""
        if self.module.layout.n_perturbations:
            self._refuse({"cell"})
        self._check_batches(columns.get(_BATCH))
        choices, cls = self.choices, self.token_ids[files.CLS]
        if choices.official:
            return OfficialTokenizer(
                match.exact(self.token_ids),
                cls,
                choices.cls_value,
                choices.n_bins - 1,
                choices.max_length,
                choices.seeds,
            )
        ids = self.gene_tokens().astype(np.int32)
        return ScgptTokenizer(
            tokens=np.where(match.tokens >= 0, ids[match.tokens], np.int32(-1)),
            n_tokens=len(self.token_ids),
            cls=cls,
            cls_value=choices.cls_value,
            n_edges=choices.n_bins - 1,
            max_length=choices.max_length,
            ties=choices.ties,
            select=choices.select,
            seed=choices.seeds[0],
            zeros=choices.zeros,
            apart=self.modality_of_token,
        )

    @torch.inference_mode()
    def forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, torch.Tensor]:
        """What is asked for, by name.

        ``"cell"`` is float32[n_cells, dim], of length 1; ``"token"`` float32[n_tokens, dim]; ``"expression"``
        float32[n_tokens], the predicted bin of each token; ``"logits"`` float32[n_cells, n_classes].
        """
        if unknown := outputs - self.spec.outputs:
            self._refuse(unknown)
        with autocast(self.device, self.precision):
            found = self._forward(pack, outputs)
        return {name: tensor.float() for name, tensor in found.items()}

    def _forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, torch.Tensor]:
        network, inputs = self.module, self._inputs(pack)
        x = network.embed(network.encoder(inputs.ids), inputs)
        found: dict[str, torch.Tensor] = {}
        if outputs <= {"cell", "logits"} and network.layout.cell == "cls":
            cells = network.first_tokens(x, inputs)
        else:
            tokens = network.encode(x, inputs)
            cells = network.cell_vectors(tokens, inputs)
            found = {"token": tokens}
            if "expression" in outputs:
                found["expression"] = network.expression(tokens, inputs).values
        if "logits" in outputs and network.cls_decoder is not None:
            found["logits"] = network.cls_decoder(cells)
        found["cell"] = unit(cells.float())
        return {output: found[output] for output in outputs}

    def gene_tokens(self) -> NDArray[np.int64]:
        """int64[genes of the vocabulary]: token id of each gene; other tokens stand between them."""
        return np.array([self.token_ids[name] for name in self.vocabulary.symbols], np.int64)

    @torch.inference_mode()
    def gene_vectors(self) -> NDArray[np.float32]:
        """float32[genes of the vocabulary, dim]: the normed embedding of each gene, which no cell changes."""
        vectors: NDArray[np.float32] = self.module.gene_vectors().float().cpu().numpy()
        return vectors[self.gene_tokens()]

    def reference(self) -> None:
        """None: the checkpoints come without labelled prototypes."""
        return None

    def _inputs(self, pack: Pack) -> Inputs:
        assert pack.values is not None
        codes = pack.cell_scalars.get(_BATCH)
        self._check_batches(None if codes is None else codes.cpu().numpy())
        batches = None if codes is None else codes.long()
        modalities = None
        if self.modality_of_token is not None:
            modalities = torch.from_numpy(self.modality_of_token).to(pack.ids.device)[pack.ids]
        flags = torch.zeros_like(pack.ids) if self.module.layout.n_perturbations else None
        return Inputs(pack.ids, pack.values, pack.offsets, batches, modalities, flags)

    def _check_batches(self, codes: NDArray[Any] | None) -> None:
        layout, name = self.module.layout, self.spec.name
        n = layout.n_domains or layout.n_batches
        if codes is None and layout.n_domains:
            raise OptionError(
                f"{name} was fine-tuned with a norm for each of {n} batches, and has to know the batch of each cell. Type "
                f"batch_key=, the name of a column of obs with the batches 0 to {n - 1}, or with {n} categories."
            )
        if codes is None or not n or not len(codes):
            return
        if codes.min() < 0 or codes.max() >= n or (codes != np.floor(codes)).any():
            raise OptionError(
                f"{name} was fine-tuned with {n} batches, and obs[{self.obs_columns[_BATCH].name!r}] has numbers from "
                f"{codes.min():g} to {codes.max():g}. Batches are whole numbers from 0 to {n - 1}."
            )

    def _refuse(self, unknown: set[str] | frozenset[str]) -> None:
        msg = f"{self.spec.name} gives {sorted(self.spec.outputs)}, not {sorted(unknown)}."
        if self.module.layout.n_perturbations:
            msg += " It predicts expression after a perturbation and has no <cls>: its files hold no cell vector."
        elif "logits" in unknown:
            msg += " Its files hold no cls_decoder: a model that was fine-tuned for annotation does."
        raise UnsupportedOutput(msg)


def _columns(found: checkpoint.Checkpoint, batch_key: str | None, name: str) -> dict[str, ObsColumn]:
    """Which column of ``obs`` the network reads; that a norm needs one is said when cells come."""
    layout, names = found.network.layout, tuple(found.args.get(files.BATCHES, ()))
    n = layout.n_domains or layout.n_batches
    if names and len(names) != n:
        raise CheckpointError(
            f"{found.weights.parent / files.ARGS} names {len(names)} batches, {found.weights.name} has {n}."
        )
    if batch_key is None:
        return {}
    if not n:
        raise OptionError(f"{name} was not fine-tuned with batches: leave out batch_key=.")
    return {_BATCH: ObsColumn(batch_key, n, names)}
