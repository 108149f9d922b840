"""The class that ties species, tokeniser, network and files of UCE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from cfm._core.errors import OptionError, UnsupportedOutput
from cfm._core.logging import logger
from cfm.genes import GeneMatch, Vocabulary, human_genes, mouse_orthologs
from cfm.models.contract import NO_COLUMNS, ModelSpec, ObsColumn, Pack, Tokenizer
from cfm.models.given import find_file
from cfm.models.weights import LoadReport
from cfm.nn.precision import Precision, autocast, choose_precision, to_int8

from . import checkpoint
from .gene_lists import ARCHIVE, ENDING, protein_vectors, symbols_of
from .module import UceNetwork, unit
from .official import OfficialTokenizer
from .options import Choices
from .species import CHROMOSOMES, FIRST_GENE, OFFSETS, PAD, Genes, checked_species, new_genes, trained_genes
from .table import NewRows, ProteinRows, TokenVectors, TrainedRows
from .tokenizer import Atlas, UceTokenizer

_LICENCE = "CC-BY-4.0 (code MIT)"
_OUTPUTS = frozenset({"cell", "token"})
_OTHER_SPECIES = 0.5


@dataclass
class UceModel:
    """UCE on a device, for cells of one species; keeps `cfm.models.CellModel`."""

    spec: ModelSpec
    vocabulary: Vocabulary
    device: torch.device
    obs_columns: Mapping[str, ObsColumn]
    module: UceNetwork
    vectors: TokenVectors
    table: ProteinRows
    genes: Genes
    report: LoadReport
    choices: Choices
    precision: Precision
    token_options: frozenset[str] = frozenset(
        {"sample_size", "pad_length", "filter", "seed", "compat", "batch_size", "protein_file", "chromosomes"}
    )

    @staticmethod
    def recognises(folder: Path) -> bool:
        """Whether a folder has weights of the usual endings and a file that only UCE has."""
        try:
            beside = any((folder / name).is_file() for name in (CHROMOSOMES, OFFSETS, ARCHIVE))
            beside = beside or any(folder.glob(f"*{ENDING}"))
            return beside and bool(checkpoint.candidates(folder))
        except OSError:
            return False

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str,
        device: torch.device,
        species: str | None = None,
        precision: Precision | None = None,
        seed: int = 0,
        sample_size: int = 1024,
        pad_length: int | None = None,
        filter: Literal["official", "none"] | None = None,
        heads: int | None = None,
        weights: str | None = None,
        protein_file: str | Path | None = None,
        chromosomes: str | Path | None = None,
        taxon: int | None = None,
        compat: Literal["official"] | None = None,
        batch_size: int | None = None,
    ) -> Self:
        """Read a folder with the files of an official checkpoint.

        Parameters
        ----------
        folder
            With the weights (4layer_model.torch, 33l_8ep_1024t_1280.torch, or one other file), and here or in the folder
            above species_chrom.csv, species_offsets.pkl and the order of the genes.
        name
            Name for messages and records.
        device
            Where the model runs.
        species
            Species of the cells; None is human.
        precision
            As in `cfm.nn.precision.choose_precision`.
        seed
            For the genes that are drawn. They hang on it and on the cell's own counts, on nothing else.
        sample_size
            Genes drawn for a cell, with replacement.
        pad_length
            Longest sentence; None takes 1,536. What does not fit is left out: with 1,024 genes, what comes after 255
            chromosomes.
        filter
            ``"official"`` leaves out genes that fewer than 10 cells of the object express, and then gives cells that
            express fewer than 25 genes a vector of zeros, where the official code drops them. ``"none"`` does neither,
            which is the default but with `compat`.
        heads
            Number of attention heads. None takes ``nhead`` of a config.json beside the weights, else heads of 64 numbers.
        weights
            Which file has the weights, where a folder holds several.
        protein_file, chromosomes
            Of a species that UCE was not trained on: a file of torch.save with a vector for each symbol, and a table with
            the columns gene_symbol, chromosome, start and species.
        taxon
            With these: the seed of the vectors of its chromosomes, by official custom its number at NCBI; None is 0.
        compat
            ``"official"`` draws with the generator and in the order of the official code and pads batches as it does,
            for comparing. A vector then depends on the cells before and beside it, and symbols match exactly but for case.
        batch_size
            Cells of a batch, with `compat`; 1 takes no pads, None is 25.

        Raises
        ------
        CheckpointError
            A file is missing, damaged, of another model, or holds code.
        OptionError
            An option has no such value, or UCE does not know the species.
        """
        chosen = choose_precision(precision, device)
        proteins, places = (
            None if given is None else find_file(given, option, folder)
            for option, given in (("protein_file", protein_file), ("chromosomes", chromosomes))
        )
        if (proteins is None) != (places is None):
            raise OptionError("A species of your own needs both, protein_file= and chromosomes=.")
        of = checked_species(species, new=proteins is not None)
        found = checkpoint.read(path := checkpoint.weights_of(folder, weights), heads)
        shape = found.network.shape
        choices = Choices.of(
            shape.positions, sample_size=sample_size, pad_length=pad_length, filter=filter, seed=seed,
            compat=compat, batch_size=batch_size, taxon=taxon, new_species=proteins is not None,
        )  # fmt: skip
        table: ProteinRows
        if proteins is not None and places is not None:
            genes, table = _new_species(of, proteins, places, choices.taxon, found.table)
        else:
            first = checkpoint.first_chromosome(path)
            genes = trained_genes([folder, folder.parent], of, len(found.table), first)
            table = TrainedRows(found.table)
        if chosen == "int8":
            to_int8(found.network.layers)
        network = found.network.to(device)
        spec = ModelSpec(
            name=name,
            family="uce",
            version=f"{shape.layers} layers of {shape.dim}",
            digest=found.digest,
            licence=_LICENCE,
            species=of,
            dim=shape.decoder[-1],
            max_tokens=choices.pad_length,
            outputs=_OUTPUTS,
            special_tokens=None,
            min_cells=choices.min_cells,
        )
        return cls(
            spec=spec,
            vocabulary=genes.vocabulary(),
            device=device,
            obs_columns={},
            module=network,
            vectors=TokenVectors(table, network.projection, shape.dim, device),
            table=table,
            genes=genes,
            report=found.report,
            choices=choices,
            precision=chosen,
        )

    def tokenizer(self, match: GeneMatch, columns: Mapping[str, NDArray[Any]] = NO_COLUMNS) -> Tokenizer:
        """The tokeniser for a file whose genes match like this."""
        del columns
        self._warn_of_other_species(match)
        atlas, choices = Atlas.of(self.genes), self.choices
        tokens = match.tokens
        if choices.official:
            tokens = match.exact({symbol: place for place, symbol in enumerate(self.genes.symbols)}, str.upper)
        numbered = np.where(tokens >= 0, atlas.number[tokens], np.int32(-1))
        drawing = (numbered, atlas, choices.sample_size, choices.pad_length, choices.min_genes, choices.seed)
        return OfficialTokenizer(*drawing, choices.batch_size) if choices.official else UceTokenizer(*drawing)

    @torch.inference_mode()
    def forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, torch.Tensor]:
        """What is asked for, by name.

        ``"cell"`` is float32[n_cells, dim], of length 1; ``"token"`` float32[n_tokens, dim], what the decoder makes of
        each token, which for the first of a cell is the cell's vector before its length is made 1.
        """
        if unknown := outputs - _OUTPUTS:
            raise UnsupportedOutput(
                f"{self.spec.name} gives {sorted(_OUTPUTS)}, not {sorted(unknown)}. Whether a cell expresses a gene is told by "
                "the method predict of the loaded model."
            )
        vectors = self.vectors(pack.ids)
        with autocast(self.device, self.precision):
            found = self._forward(vectors, pack, outputs)
        return {output: found[output].float() for output in outputs}

    def _forward(self, vectors: torch.Tensor, pack: Pack, outputs: frozenset[str]) -> dict[str, torch.Tensor]:
        network, offsets = self.module, pack.offsets.tolist()
        # The official mask is added to the scores: pads are not left out, but favoured.
        bias = (pack.ids == PAD).float() if self.choices.official else None
        x = network.place(vectors, pack.offsets)
        if "token" not in outputs:
            return {"cell": unit(network.decoder(network.first_tokens(x, offsets, bias)).float())}
        tokens = network.decoder(network.encode(x, offsets, bias))
        return {"token": tokens, "cell": unit(tokens[offsets[:-1]].float())}

    @torch.inference_mode()
    def predict(self, cells: NDArray[np.floating], genes: NDArray[np.integer]) -> NDArray[np.float32]:
        """Whether each cell expresses each gene, as UCE was trained to tell.

        Parameters
        ----------
        cells
            float[n_cells, dim]: vectors of cells.
        genes
            int[n_genes]: tokens of genes, such as those of `gene_tokens`.

        Returns
        -------
        float32[n_cells, n_genes]: logits; above 0 is expressed.
        """
        proteins = self.table[torch.from_numpy(np.asarray(genes, np.int64))].to(self.device)
        vectors = torch.from_numpy(np.asarray(cells, np.float32)).to(self.device)
        found: NDArray[np.float32] = self.module.predict(vectors, proteins).float().cpu().numpy()
        return found

    def gene_tokens(self) -> NDArray[np.int64]:
        """int64[genes of the vocabulary]: token of each gene."""
        return self.genes.rows.astype(np.int64)

    @torch.inference_mode()
    def gene_vectors(self) -> NDArray[np.float32]:
        """float32[genes of the vocabulary, length of a token vector]: the projected protein of each gene."""
        ids = torch.from_numpy(self.gene_tokens()).to(self.device)
        vectors: NDArray[np.float32] = self.vectors(ids).cpu().numpy()
        return vectors

    def reference(self) -> None:
        """None: the checkpoints come without labelled prototypes."""
        return None

    def _warn_of_other_species(self, match: GeneMatch) -> None:
        """Symbols of man and mouse agree but for case, and case does not count here."""
        if self.spec.species not in ("human", "mouse") or match.identifier != "symbol":
            return
        human, mouse = human_genes(), mouse_orthologs()
        own, other, name = (human, mouse, "mouse") if self.spec.species == "human" else (mouse, human, "human")
        found = match.names[match.tokens >= 0]
        of_other = sum(str(gene) in other and str(gene) not in own for gene in found)
        if of_other > _OTHER_SPECIES * len(found):
            logger.warning(
                "%s reads the cells as %s, and %d of the %d genes that match are written like those of %s. If they are: "
                "species=%r",
                self.spec.name,
                self.spec.species,
                of_other,
                len(found),
                name,
                name,
            )


def _new_species(
    name: str, proteins: Path, chromosomes: Path, taxon: int, table: torch.Tensor
) -> tuple[Genes, ProteinRows]:
    """The genes of a species of the user's own, and a table for it that begins like that of the checkpoint."""
    vectors = symbols_of(protein_vectors(proteins))
    width = table.shape[1]
    if wrong := sorted({len(vector) for vector in vectors.values()} - {width}):
        raise OptionError(
            f"protein_file={str(proteins)!r} has vectors of {wrong[0]:,} numbers, and this model reads {width:,}."
        )
    genes, n_chromosomes = new_genes(name, list(vectors), chromosomes)
    random = torch.Generator().manual_seed(taxon)
    return genes, NewRows(
        table[:FIRST_GENE], list(vectors.values()), torch.randn(n_chromosomes, width, generator=random)
    )
