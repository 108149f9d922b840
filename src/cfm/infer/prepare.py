"""From an AnnData object and a model to a stream of tokens: where counts, genes and tokeniser meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core.errors import MissingKeyError, OptionError
from cfm._core.logging import logger
from cfm._core.settings import settings
from cfm.counts import CountSource, find_counts, find_normalized, genes_in_cells
from cfm.genes import Coverage, GeneMatch, match
from cfm.genes.matching import MIN_GENES, read_gene_table
from cfm.models import CellModel
from cfm.models.contract import ObsColumn

from .stream import TokenStream


@dataclass(frozen=True)
class Prepared:
    """What a public function needs to run a model on an object."""

    source: CountSource
    found: GeneMatch
    stream: TokenStream
    model: CellModel

    def coverage(self) -> Coverage:
        """How much was read; right once the stream is used up."""
        return Coverage.from_totals(self.found, self.stream.totals, len(self.model.vocabulary))

    def __str__(self) -> str:
        spec, found = self.model.spec, self.found
        what = "counts" if spec.counts else "values"
        return (
            f"{what} from {self.source.where}; {self.coverage()} by {found.identifier} in {found.column}; "
            f"{spec.name} ({spec.digest}) on {self.model.device}"
        )

    def facts(self) -> dict[str, object]:
        """What was used, for the record of the call."""
        spec = self.model.spec
        return {
            "model": spec.name,
            "model_version": spec.version,
            "model_digest": spec.digest,
            "device": str(self.model.device),
            "counts": self.source.where,
            "gene_column": self.found.column,
            "gene_identifier": self.found.identifier,
            "species": self.found.species,
            "coverage": self.coverage().to_dict(),
        }


def prepare(
    adata: AnnData,
    model: CellModel,
    *,
    layer: str | None,
    gene_column: str | None,
    species: str | None,
    gene_table: str | Path | Mapping[str, str] | None,
) -> Prepared:
    """Find counts and genes, and make the token stream; nothing is read yet but a sample."""
    source, found = matched(adata, model, layer=layer, gene_column=gene_column, species=species, gene_table=gene_table)
    columns = obs_columns(adata, model)
    stream = TokenStream(source, model.tokenizer(found, columns), settings.chunk_cells, columns)
    return Prepared(source, found, stream, model)


def matched(
    adata: AnnData,
    model: CellModel,
    *,
    layer: str | None,
    gene_column: str | None,
    species: str | None,
    gene_table: str | Path | Mapping[str, str] | None,
) -> tuple[CountSource, GeneMatch]:
    """Where the counts are, and which genes of the model their columns are."""
    source = (find_counts if model.spec.counts else find_normalized)(adata, layer=layer)
    if model.spec.min_cells:
        source = genes_in_cells(source, model.spec.min_cells, settings.chunk_cells)
    table = read_table(gene_table)
    # Models that were fine-tuned on a panel know few genes themselves.
    min_genes = min(MIN_GENES, len(model.vocabulary) // 2)
    found = match(
        source.var,
        model.vocabulary,
        gene_column=gene_column,
        species=species,
        gene_table=table,
        min_genes=min_genes,
    )
    return source, found


def obs_columns(adata: AnnData, model: CellModel) -> dict[str, NDArray[Any]]:
    """The columns of ``obs`` that a model reads, as numbers."""
    return {name: _numbers(adata, name, column) for name, column in model.obs_columns.items()}


def _numbers(adata: AnnData, name: str, column: ObsColumn) -> NDArray[Any]:
    if column.name not in adata.obs:
        raise MissingKeyError(f"obs has no {column.name!r}. It has {[str(c) for c in adata.obs.columns]}.")
    values = pd.Series(adata.obs[column.name])
    if values.isna().any():
        msg = f"obs[{column.name!r}] has no value for {int(values.isna().sum()):,} of {len(values):,} cells."
        raise MissingKeyError(f"{msg} Fill it, or leave these cells out.")
    if isinstance(values.dtype, pd.CategoricalDtype) and values.cat.categories.dtype.kind in "iuf":
        values = values.astype(values.cat.categories.dtype)
    # Before numbers: batches can be called 1, 2 and 10.
    known = values.astype(str).map({text: i for i, text in enumerate(column.names)})
    if known.notna().all():
        return known.to_numpy(np.int64)
    if values.dtype.kind in "iuf":
        return values.to_numpy()
    if column.categories is None:
        msg = f"obs[{column.name!r}] holds {values.dtype}, and {name}= takes a column of numbers."
        raise OptionError(f"{msg} Convert it: adata.obs[{column.name!r}].astype(float).")
    names = sorted(map(str, values.unique()))
    if column.names:
        unknown = [text for text in names if text not in column.names]
        raise OptionError(
            f"obs[{column.name!r}] holds {unknown[:5]}, and the model knows {list(column.names)}. It was fine-tuned with "
            "these; for cells of others it has to be fine-tuned again, or type one of these for them."
        )
    if len(names) != column.categories:
        # Numbering the names that happen to be here would give the cells of a subset other numbers.
        raise OptionError(
            f"obs[{column.name!r}] has {len(names)} names, and the model knows {column.categories}. Names are numbered in "
            f"alphabetical order only where all are there. Put the model's own numbers, 0 to {column.categories - 1}, "
            "into a column."
        )
    logger.info("%s: %s", name, ", ".join(f"{text!r} is {i}" for i, text in enumerate(names)))
    return values.astype(str).map({text: i for i, text in enumerate(names)}).to_numpy(np.int64)


def read_table(gene_table: str | Path | Mapping[str, str] | None) -> Mapping[str, str] | None:
    """A user's gene table, read if it is a path."""
    return read_gene_table(gene_table) if isinstance(gene_table, str | Path) else gene_table
