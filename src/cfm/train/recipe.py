"""The recipe of a pretraining run: one TOML file, every key checked, no defaults hidden elsewhere."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cfm._core.errors import OptionError

PACKAGED = Path(__file__).parent / "recipes" / "cfm-mini.toml"
"""The recipe that cfm-mini was trained with."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceFile(_Table):
    """One h5ad file of the corpus."""

    path: Path
    """Relative to `Data.root`."""
    species: str = "human"
    licence: str = "not stated"
    """Licence of the data, for the model card."""


class MarkerRule(_Table):
    """Cells under `label` that show the markers of something else get another label, or none.

    The rule holds for a cell whose counts of `markers` are at least `min_counts` and at least `min_per_10k` of
    10,000, and whose counts of `absent` are at most `max_absent` and of `rare` at most `max_rare`. Its cells stay in
    the corpus for the main loss.
    """

    label: str
    becomes: str = ""
    """The other label; empty for none."""
    markers: list[str]
    min_counts: int
    min_per_10k: float = 0.0
    absent: list[str] = []
    max_absent: int = 0
    rare: list[str] = []
    max_rare: int = 0


class Data(_Table):
    """The corpus."""

    root: Path = Path()
    """Folder of the files, relative to the recipe."""
    files: list[SourceFile] = []
    label_key: str | None = None
    """Column of obs with labels; files without it count as unlabelled."""
    label_table: Path | None = None
    """Tab-separated table that maps (dataset, cell_type) to coarse, relative to `root`."""
    ignore_labels: list[str] = []
    """Labels that say nothing: treated as unlabelled."""
    wide_labels: dict[str, list[str]] = {}
    """Labels that hold others; a wide label and its parts are never told apart in training."""
    marker_rules: list[MarkerRule] = []
    """Applied in their order."""
    ontology_ids: dict[str, str] = {}
    """Cell Ontology ids of labels, for the packaged reference."""


class VocabularyRecipe(_Table):
    """Which genes the model reads: those seen often enough, in enough files, most often seen first."""

    max_genes: int = 16_000
    min_cells: int = 20
    min_files: int = 3
    exclude: str | None = None
    """Regular expression; genes whose symbol begins with a match are left out."""


class ModelRecipe(_Table):
    """Sizes of the network; see `cfm.models.mini.module.GeneBag`."""

    width: int = 256
    dim: int = 128


class Views(_Table):
    """How a cell is seen in training."""

    min_depth: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Counts are thinned to a share drawn from this to 1."""
    max_counts: int = 6_000
    """Cells above are thinned to less, so that deep cells and read counts do not rule the loss."""
    masked: tuple[float, float] = (0.15, 0.6)
    """Share of the genes that are hidden and predicted, drawn from this range."""


class Objective(_Table):
    """loss = masked-gene loss + label_weight x contrast between labels."""

    label_weight: float = 1.0
    temperature: float = 0.1


class Training(_Table):
    """The optimisation."""

    seed: int = 0
    files_per_step: int = 4
    cells_per_file: int = 48
    file_power: float = 0.75
    """Files are drawn with probability proportional to min(cells, file_cap) to this power."""
    file_cap: int = 1_500
    steps_per_epoch: int = 100
    max_epochs: int = 100
    patience: int = 10
    """Epochs without a better validation loss before the end."""
    validation_share: float = 0.05
    learning_rate: float = 1e-3
    weight_decay: float = 0.01


class ReferenceRecipe(_Table):
    """The packaged reference for annotation: means of near cells of one label in one file."""

    prototypes_per_label_and_file: int = 60
    exclude_labels: list[str] = []
    rename: dict[str, str] = {}
    """Labels that get another name in the reference."""
    n_neighbors: int = 15


class Recipe(_Table):
    """All of a pretraining run."""

    name: str = "cfm-mini"
    version: str = "0.1.0"
    licence: str = "BSD-3-Clause"
    data: Data = Data()
    vocabulary: VocabularyRecipe = VocabularyRecipe()
    model: ModelRecipe = ModelRecipe()
    views: Views = Views()
    objective: Objective = Objective()
    training: Training = Training()
    reference: ReferenceRecipe = ReferenceRecipe()

    def without_corpus(self, name: str) -> Recipe:
        """The hyper-parameters alone, for other cells: nothing that was said of the old ones is kept."""
        reference = ReferenceRecipe(
            prototypes_per_label_and_file=self.reference.prototypes_per_label_and_file,
            n_neighbors=self.reference.n_neighbors,
        )
        facts = {"name": name, "version": "0", "licence": "not stated", "data": Data(), "reference": reference}
        return self.model_copy(update=facts)

    @classmethod
    def read(cls, path: str | Path, *, root: str | Path | None = None) -> Recipe:
        """Read a TOML file; `root` replaces the folder of the data.

        Raises
        ------
        OptionError
            Unreadable, unknown keys, or values of the wrong type, each named.
        """
        path = Path(path)
        try:
            recipe = cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise OptionError(f"{path} cannot be read as a TOML recipe: {error}") from error
        except ValidationError as error:
            lines = [f"  {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            raise OptionError("\n".join([f"{path} is no valid recipe:", *lines])) from error
        folder = Path(root) if root is not None else path.parent / recipe.data.root
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": folder})})
