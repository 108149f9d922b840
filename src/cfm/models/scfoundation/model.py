"""The class that ties gene list, tokeniser, network and files of scFoundation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cfm._core.errors import CheckpointError, OptionError, UnsupportedOutput
from cfm._core.resources import sha256
from cfm.genes import GeneMatch, Vocabulary
from cfm.models.contract import NO_COLUMNS, ModelSpec, ObsColumn, Pack
from cfm.models.given import find_file
from cfm.models.weights import LoadReport
from cfm.nn.attention import Scope
from cfm.nn.precision import Precision, autocast, choose_precision, to_int8

from . import checkpoint
from .classifier import Classifier, read_classifier
from .genes import find_list, read_list
from .module import N_DEPTHS, Encoder, Pool, ScfoundationNetwork, pooled
from .options import Choices, Input, Weights, check_known
from .tokenizer import ScfoundationTokenizer

_LICENCE = "scFoundation License (non-commercial research only)"
_TOTAL = "total"
_GENES = ("gene", "gene_expression")
_SOURCE: dict[str, Weights] = {
    "cell": "cell",
    "token": "cell",
    "gene": "gene",
    "gene_expression": "gene",
    "logits": "gene",
}
"""From which of the three models its authors take each output."""


@dataclass
class ScfoundationModel:
    """scFoundation on a device; keeps `cfm.models.CellModel`."""

    spec: ModelSpec
    vocabulary: Vocabulary
    device: torch.device
    obs_columns: Mapping[str, ObsColumn]
    path: Path
    weights: Weights | None
    choices: Choices
    precision: Precision
    networks: dict[Weights, ScfoundationNetwork]
    reports: dict[Weights, LoadReport]
    classifier: Classifier | None = None
    token_options: frozenset[str] = field(
        default=frozenset({"input", "depth", "total_key", "bulk", "target_sum", "gene_list", "compat"})
    )

    @staticmethod
    def recognises(folder: Path) -> bool:
        """Whether a folder has the file with the three models; one of its files may be missing, and loading will name it."""
        return (folder / checkpoint.WEIGHTS).is_file()

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str,
        device: torch.device,
        precision: Precision | None = None,
        weights: Weights | None = None,
        gene_list: str | Path | None = None,
        pool: Pool = "all",
        depth: str | float | None = None,
        input: Input = "counts",
        total_key: str | None = None,
        bulk: bool = False,
        target_sum: float | None = None,
        head: str | Path | None = None,
        compat: Literal["official"] | None = None,
    ) -> Self:
        """Read a folder with models.ckpt and the official gene list.

        Parameters
        ----------
        folder, name, device
            As in `cfm.models.CellModel`.
        precision
            As in `cfm.nn.precision.choose_precision`.
        weights
            Which of the three models of the file: ``"cell"``, ``"gene"`` or ``"rde"``. None takes for each output the one
            that its authors take: ``"cell"`` for cells and tokens, ``"gene"`` for genes and their expression.
        gene_list
            The official gene list; None looks beside models.ckpt.
        pool
            ``"all"``: the vectors of both depths, and the maximum and the mean over the genes, one after another;
            ``"max"``: the maximum over all tokens.
        depth
            What the model is asked for: ``"t4"``, 10^4 counts in every cell; ``"f5"``, five times those of the cell; ``"a1"``,
            10^1 times those of the cell; a number is as after ``t``. None takes ``"t4"``.
        input
            ``"counts"``, which are normalised here; ``"normalized"`` values are taken as they are.
        total_key
            With normalised values: column of ``obs`` with the counts of each cell. None takes the sum of the values for
            them, as the official code does.
        bulk
            Whether the cells are samples of bulk. They are asked for the depth that they have.
        target_sum
            With `bulk` and counts: to what sum a sample is scaled.
        head
            File of a model that was fine-tuned to annotate, or of its head alone: adds the output ``"logits"``.
        compat
            ``"official"`` matches genes by their exact names, leaves out depths of 0 and less, and takes the largest key of
            the decoder over all cells of a pack, as the official code does. The expression of a cell then depends on the
            cells beside it.

        Raises
        ------
        CheckpointError
            A file is missing, damaged, of another model, or holds code.
        OptionError
            An option has no such value, or does not go with another.
        """
        chosen = choose_precision(precision, device)
        check_known("weights", weights, (None, *get_args(Weights)))
        choices = Choices.of(input=input, depth=depth, total_key=total_key, bulk=bulk, target_sum=target_sum, pool=pool,
                             compat=compat)  # fmt: skip
        path = checkpoint.weights_of(folder)
        first: Weights = weights or "cell"
        network, report = checkpoint.read(path, first)
        shape = network.shape
        vocabulary = read_list(find_list(folder, gene_list), shape.genes)
        spec = ModelSpec(
            name=name,
            family="scfoundation",
            version=weights or "cell; gene for genes",
            digest=sha256(path)[:12],
            licence=_LICENCE,
            species="human",
            dim=shape.dim * (4 if pool == "all" else 1),
            max_tokens=shape.positions,
            outputs=frozenset({"cell", "token", *_GENES} | ({"logits"} if head is not None else set())),
            special_tokens=N_DEPTHS,
            positions=dict.fromkeys(_GENES, shape.positions),
            counts=input == "counts",
        )
        model = cls(
            spec=spec,
            vocabulary=vocabulary,
            device=device,
            obs_columns={} if total_key is None else {_TOTAL: ObsColumn(total_key)},
            path=path,
            weights=weights,
            choices=choices,
            precision=chosen,
            networks={},
            reports={},
        )
        model._keep(first, network, report)
        if head is not None:
            of = model.network(model._source("logits"))
            classifier = read_classifier(find_file(head, "head", folder), of.shape, of.encoder)
            own = classifier.encoder
            if chosen == "int8" and isinstance(own, Encoder) and own is not of.encoder:
                to_int8(own.layers)
            model.classifier = classifier.to(device)
        return model

    def tokenizer(self, match: GeneMatch, columns: Mapping[str, NDArray[Any]] = NO_COLUMNS) -> ScfoundationTokenizer:
        """The tokeniser for a file whose genes match like this."""
        totals = columns.get(_TOTAL)
        name = "" if totals is None else self.obs_columns[_TOTAL].name
        tokens = match.tokens
        if self.choices.official:
            tokens = match.exact({symbol: token for token, symbol in enumerate(self.vocabulary.symbols)})
        return ScfoundationTokenizer(tokens, len(self.vocabulary), self.choices, totals, name)

    @torch.inference_mode()
    def forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, Tensor]:
        """What is asked for, by name.

        ``"cell"`` is float32[n_cells, dim]; ``"token"`` float32[n_tokens, width of the encoder]; ``"gene"`` float32[n_cells,
        genes, width of the decoder]; ``"gene_expression"`` float32[n_cells, genes], in logarithms of counts per ten thousand;
        ``"logits"`` float32[n_cells, n_classes].
        """
        if unknown := outputs - self.spec.outputs:
            raise UnsupportedOutput(f"{self.spec.name} gives {sorted(self.spec.outputs)}, not {sorted(unknown)}.")
        assert pack.values is not None
        kept = self._kept(pack) if outputs - {"logits"} else None
        found: dict[str, Tensor] = {}
        with autocast(self.device, self.precision):
            for key in sorted({self._source(output) for output in outputs - {"logits"}}):
                wanted = frozenset(output for output in outputs if self._source(output) == key)
                found |= self._outputs(self.network(key), pack, kept, wanted)
            if "logits" in outputs:
                found["logits"] = self._logits(pack)
        return {name: tensor.float() for name, tensor in found.items()}

    def _outputs(
        self, network: ScfoundationNetwork, pack: Pack, kept: Tensor | None, outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Of one of the three models."""
        ids, values, offsets = pack.ids, pack.values, pack.offsets
        assert values is not None
        if kept is not None:
            ids, values = ids[kept], values[kept]
            offsets = _offsets_of(kept, offsets)
        places = offsets.tolist()
        tokens = network.encoder(ids, values, places)
        found: dict[str, Tensor] = {}
        if "cell" in outputs:
            found["cell"] = pooled(tokens, places, self.choices.pool)
        if "token" in outputs:
            found["token"] = tokens
            if kept is not None:  # tokens that the official code drops have no vector
                found["token"] = tokens.new_zeros(len(pack.ids), tokens.shape[1])
                found["token"][kept] = tokens
        if not outputs.isdisjoint(_GENES):
            found |= self._genes(network, tokens, pack, kept, outputs)
        return found

    def _genes(
        self, network: ScfoundationNetwork, tokens: Tensor, pack: Pack, kept: Tensor | None, outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """What the decoder gives, one cell after another."""
        if kept is not None:  # depths that the encoder has not seen go in as values do
            full = network.encoder.values(pack.values)
            full[kept] = tokens.to(full.dtype)
            tokens = full
        scope: Scope = "batch" if self.choices.official else "cell"
        vectors, expression = [], []
        for cell in network.decode(tokens, pack.ids, pack.offsets.tolist(), scope):
            genes = cell[: len(self.vocabulary)]
            if "gene" in outputs:
                vectors.append(genes)
            if "gene_expression" in outputs:
                expression.append(network.decoder.expression(genes))
        found = {"gene": vectors, "gene_expression": expression}
        return {name: torch.stack(parts) for name, parts in found.items() if name in outputs}

    def _logits(self, pack: Pack) -> Tensor:
        """What the fine-tuned model says of each cell; it reads genes only."""
        assert pack.values is not None
        assert self.classifier is not None
        genes = pack.ids < len(self.vocabulary)
        return self.classifier(pack.ids[genes], pack.values[genes], _offsets_of(genes, pack.offsets).tolist())

    def _kept(self, pack: Pack) -> Tensor | None:
        """The tokens that the official code keeps; None for all."""
        if not self.choices.official:
            return None
        assert pack.values is not None
        kept = pack.values > 0
        lengths = torch.segment_reduce(kept.float(), "sum", offsets=pack.offsets)
        if len(lengths) and lengths.min() <= N_DEPTHS:
            raise OptionError(
                "compat='official': a cell has too few tokens left once depths of 0 and less are dropped, and the official "
                "code ends with an IndexError. Leave out compat=, or this cell."
            )
        return None if bool(kept.all()) else kept

    def gene_tokens(self) -> NDArray[np.int64]:
        """int64[genes]: the place of each gene in the list."""
        return np.arange(len(self.vocabulary))

    def gene_vectors(self) -> NDArray[np.float32]:
        """float32[genes, width of the encoder]: the position vector of each gene, which no cell changes."""
        network = self.network(self._source("gene"))
        return network.encoder.positions.weight.float().cpu().numpy()[: len(self.vocabulary)]

    def reference(self) -> None:
        """None: no labelled cells come with the weights."""
        return None

    def network(self, key: Weights) -> ScfoundationNetwork:
        """One of the three models, read when it is first asked for."""
        if key not in self.networks:
            network, report = checkpoint.read(self.path, key)
            if network.shape.genes != len(self.vocabulary):
                raise CheckpointError(
                    f"The models in {self.path} are for {len(self.vocabulary):,} and, {key!r}, for {network.shape.genes:,} genes. "
                    "Get the file from its official source."
                )
            self._keep(key, network, report)
        return self.networks[key]

    def _keep(self, key: Weights, network: ScfoundationNetwork, report: LoadReport) -> None:
        if self.precision == "int8":
            to_int8(network.encoder.layers)
            to_int8(network.decoder.layers)
        self.networks[key], self.reports[key] = network.to(self.device), report

    def _source(self, output: str) -> Weights:
        return self.weights or _SOURCE[output]


def _offsets_of(kept: Tensor, offsets: Tensor) -> Tensor:
    """Where each cell begins among the tokens that are kept."""
    return F.pad(kept.cumsum(0), (1, 0))[offsets]
