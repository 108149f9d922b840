"""The class that ties tokeniser, network and files of scBERT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfm._core.errors import OptionError, UnsupportedOutput
from cfm._core.resources import sha256
from cfm.genes import GeneMatch, Vocabulary
from cfm.models.contract import NO_COLUMNS, ModelSpec, ObsColumn, Pack
from cfm.models.weights import LoadReport
from cfm.nn.attention import Scope
from cfm.nn.precision import Precision, autocast, choose_precision, to_int8

from . import checkpoint, files
from .genes import columns_of, read_genes
from .heads import Classifier
from .module import ScbertNetwork, dense_bins
from .tokenizer import ScbertTokenizer

Pool = Literal["mean", "max", "last"]

LICENCE = "GPL-3.0"
MIN_GENES = 200
"""Cells with fewer genes of the list were left out of the training data."""

_OF_POSITIONS = frozenset({"cell", "token", "gene", "attention_sum"})


@dataclass
class ScbertModel:
    """scBERT on a device; keeps `cfm.models.CellModel`."""

    spec: ModelSpec
    vocabulary: Vocabulary
    device: torch.device
    module: ScbertNetwork
    report: LoadReport
    precision: Precision
    pool: Pool
    threshold: float
    official: bool
    classes: tuple[str, ...]
    obs_columns: Mapping[str, ObsColumn] = field(default_factory=dict)
    token_options: frozenset[str] = frozenset({"gene_list", "compat"})

    @staticmethod
    def recognises(folder: Path) -> bool:
        """Whether a folder has weights of scBERT."""
        try:
            return files.is_scbert(folder)
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
        gene_list: str | Path | None = None,
        weights: str | None = None,
        labels: str | Path | None = None,
        pool: Pool = "mean",
        threshold: float = 0.5,
        compat: Literal["official"] | None = None,
    ) -> Self:
        """Read a folder with the published weights, or with those of a model that was fine-tuned from them.

        Parameters
        ----------
        folder
            With panglao_pretrain.pth or one other file of weights, and a gene list.
        name
            Name for messages and records.
        device
            Where the model runs.
        precision
            As in `cfm.nn.precision.choose_precision`.
        gene_list
            File with the gene order; None looks beside the weights, see `cfm.models.scbert.genes.read_genes`.
        weights
            Name of the file of weights, where the folder has several.
        labels
            File with the names of the classes; None looks for label_dict beside the weights.
        pool
            The vector of a cell: ``"mean"`` or ``"max"`` over all positions, or that of the ``"last"`` one, which is no
            gene. The authors define none.
        threshold
            Of fine-tuned models: a cell whose most likely class is less likely than this is none of the classes; 0 names
            every cell.
        compat
            ``"official"`` repeats the official code, for comparing: columns match by exact name, and the first of
            several counts; the largest key feature is taken over all cells that go through together, so that vectors
            depend on the neighbours; attention is that of the state after the residual.

        Raises
        ------
        CheckpointError
            A file is missing, damaged, of another model, or holds code.
        OptionError
            An option has no such value.
        """
        chosen = choose_precision(precision, device)
        for option, value, known in (("pool", pool, get_args(Pool)), ("compat", compat, (None, "official"))):
            if value not in known:
                raise OptionError(f"{option}={value!r} is unknown. Type one of {', '.join(map(repr, known))}.")
        given: object = threshold  # typed at a prompt, it may be anything
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
            raise OptionError(f"threshold={threshold!r} is no probability. Type a number from 0 to 1.")
        path = files.weights_of(folder, weights)
        tensors = checkpoint.read_named(path)
        n_positions = checkpoint.n_positions_of(tensors)
        genes = read_genes(folder, gene_list, None if n_positions is None else n_positions - 1)
        found = checkpoint.network_of(tensors, len(genes), path)
        layout = found.network.layout
        if layout.classes is None and labels is not None:
            raise OptionError(
                f"labels= goes with a fine-tuned model, and {path.name} has no classifier. Leave it out, or type weights= with "
                "the name of the fine-tuned file."
            )
        classes = () if layout.classes is None else files.read_classes(folder, labels, layout.classes[-1])
        if chosen == "int8":
            to_int8(found.network.layers)
        outputs = _OF_POSITIONS | ({"token_logits", "gene_logits"} if layout.classes is None else {"logits"})
        spec = ModelSpec(
            name=name,
            family="scbert",
            version=f"{layout.layers} layers of {layout.dim}",
            digest=sha256(path)[:12],
            licence=LICENCE,
            species="human",
            dim=layout.dim,
            max_tokens=len(genes),
            outputs=outputs,
            positions=dict.fromkeys(outputs, layout.n_positions),
            min_genes=MIN_GENES,
        )
        return cls(
            spec=spec,
            vocabulary=Vocabulary.of_symbols(genes),
            device=device,
            module=found.network.to(device),
            report=found.report,
            precision=chosen,
            pool=pool,
            threshold=float(threshold),
            official=compat == "official",
            classes=classes,
        )

    def tokenizer(self, match: GeneMatch, columns: Mapping[str, NDArray[Any]] = NO_COLUMNS) -> ScbertTokenizer:
        """The tokeniser for a file whose genes match like this."""
        tokens = columns_of(match, self.vocabulary, official=self.official)
        return ScbertTokenizer(tokens, len(self.vocabulary), self.module.layout.n_bins)

    @torch.inference_mode()
    def forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, Tensor]:
        """What is asked for, by name.

        ``"cell"`` is float32[n_cells, dim]; ``"token"`` float32[n_tokens, dim]; ``"gene"`` float32[n_cells, genes, dim];
        ``"attention_sum"`` float32[n_cells, genes], the share of the attention that each gene gets, mean over layers, heads
        and queries. Of pretrained models ``"token_logits"`` float32[n_tokens, n] and ``"gene_logits"`` float32[n_cells,
        genes, n], for each bin; of fine-tuned ones ``"logits"`` float32[n_cells, n_classes].
        """
        if unknown := outputs - self.spec.outputs:
            self._refuse(unknown)
        with autocast(self.device, self.precision):
            found = self._forward(pack, outputs)
        return {name: tensor.float() for name, tensor in found.items()}

    def _forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, Tensor]:
        assert pack.values is not None
        network, scope, n_genes = self.module, self.scope, len(self.vocabulary)
        bins = dense_bins(pack.ids, pack.values, pack.offsets, network.layout.n_positions)
        found: dict[str, Tensor] = {}
        if "attention_sum" in outputs:
            found["attention_sum"] = network.attention_received(bins, scope, after=self.official)[:, :n_genes]
        if outputs <= found.keys():
            return found
        vectors = network.encode(bins, scope)
        of_tokens = vectors[_cells(pack), pack.ids] if outputs & {"token", "token_logits"} else None
        if "cell" in outputs:
            found["cell"] = pooled(vectors, self.pool)
        if "token" in outputs and of_tokens is not None:
            found["token"] = of_tokens
        if "gene" in outputs:
            found["gene"] = vectors[:, :n_genes]
        if "token_logits" in outputs and of_tokens is not None:
            found["token_logits"] = network.logits(of_tokens)
        if "gene_logits" in outputs:
            found["gene_logits"] = network.logits(vectors.flatten(0, 1)).unflatten(0, bins.shape)[:, :n_genes]
        if "logits" in outputs:
            found["logits"] = network.head(vectors.flatten(0, 1))
        return found

    @property
    def scope(self) -> Scope:
        """Over what the largest key feature is taken."""
        return "batch" if self.official else "cell"

    def classify(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The classes that a fine-tuned model gives cells.

        Parameters
        ----------
        logits
            float32[n_cells, n_classes], the output of that name.

        Returns
        -------
        int64[n_cells], positions in `classes`, or -1 for a cell whose most likely class is less likely than the threshold;
        and float32[n_cells], the probability of that class.

        Raises
        ------
        UnsupportedOutput
            A model without a classifier, or without the names of its classes.
        """
        if not isinstance(self.module.head, Classifier):
            self._refuse({"logits"})
        if not self.classes:
            raise UnsupportedOutput(
                f"{self.spec.name} has no names for its classes. Put the {files.LABELS} that fine-tuning wrote beside the "
                "weights, or type labels='FILE'."
            )
        probability, which = torch.softmax(torch.from_numpy(logits), dim=1).max(dim=1)
        return torch.where(probability < self.threshold, -1, which).numpy(), probability.numpy()

    def gene_tokens(self) -> NDArray[np.int64]:
        """int64[genes of the vocabulary]: position of each gene, which is its place in the list."""
        return np.arange(len(self.vocabulary), dtype=np.int64)

    def gene_vectors(self) -> NDArray[np.float32]:
        """float32[genes of the vocabulary, dim]: the gene2vec vector of each gene, which no cell changes."""
        if self.module.positions is None:
            raise UnsupportedOutput(
                f"{self.spec.name} was trained without gene2vec and has no vectors of genes outside a cell. Type "
                "genes='contextual'."
            )
        vectors: NDArray[np.float32] = self.module.positions[: len(self.vocabulary)].float().cpu().numpy()
        return vectors

    def reference(self) -> None:
        """None: the checkpoint comes without labelled prototypes."""
        return None

    def _refuse(self, unknown: set[str] | frozenset[str]) -> None:
        msg = f"{self.spec.name} gives {sorted(self.spec.outputs)}, not {sorted(unknown)}."
        if "logits" in unknown:
            msg += (
                " Its weights end in the language-model head: a model that was fine-tuned for annotation has classes."
            )
        elif unknown & {"token_logits", "gene_logits"}:
            msg += " Fine-tuning put a classifier in the place of the language-model head."
        raise UnsupportedOutput(msg)


def pooled(vectors: Tensor, pool: Pool) -> Tensor:
    """float[n_cells, dim] of float[n_cells, n_positions, dim]. Cell by cell, so that neighbours leave no trace in the bits."""
    if pool == "last":
        return vectors[:, -1]
    if pool == "max":
        return vectors.amax(1)
    return torch.stack([cell.mean(0, dtype=torch.float64).to(cell.dtype) for cell in vectors])


def _cells(pack: Pack) -> Tensor:
    """int64[n_tokens]: the cell of each token."""
    n_cells = len(pack.offsets) - 1
    return torch.arange(n_cells, device=pack.ids.device).repeat_interleave(pack.offsets.diff())
