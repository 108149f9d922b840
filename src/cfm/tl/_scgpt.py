"""Spaces by scGPT's own fine-tuning: RNA of several batches, or RNA and proteins."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cfm import infer, models
from cfm._core.errors import OptionError
from cfm.integration import Batches, Kind, Modality, all_counts
from cfm.integration.space import most_variable

from ._joint import Embedding, Training
from ._vectors import embedded

N_GENES = 1200
"""Of the official recipe."""
BATCH = "batch"


def fine_tuned(
    adata: AnnData, batches: Batches, embedding: Embedding, training: Training
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Fine-tune on RNA of several batches; vectors, and what was used."""
    from cfm.train.finetune import Cells, fine_tune  # Lightning: seconds to import
    from cfm.train.finetune_task import INTEGRATION

    loaded = _scgpt(embedding, training)
    source, found = infer.matched(adata, loaded, **embedding.where)
    counts, names = _genes(all_counts(source), found.tokens, loaded.vocabulary.symbols, batches)
    cells = Cells(sp.csr_array(counts), names, batches.codes, tuple(batches.names))
    with _folder(training) as folder:
        fine_tune(loaded, cells, folder, _recipe(INTEGRATION, training))
        vectors, facts = embedded(adata, folder, embedding.device, {"batch_key": batches.key}, **embedding.where)
    return vectors, _facts(facts, loaded, embedding, training)


def fine_tuned_modalities(
    parts: Mapping[Kind, Modality], batches: Batches, rna: AnnData | None, embedding: Embedding, training: Training
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Fine-tune on RNA and proteins; vectors of all cells, and what was used."""
    from cfm.integration.joint.table import spread
    from cfm.train.finetune import Cells, fine_tune
    from cfm.train.finetune_task import MULTIOMIC

    if rna is None or set(parts) != {"rna", "protein"}:
        raise OptionError(
            f"method='scgpt' reads RNA and proteins, and here are {list(parts)}. Type modalities={{'rna': ..., "
            "'protein': ...}, or method='scvi'."
        )
    loaded = _scgpt(embedding, training)
    source, found = infer.matched(rna, loaded, **embedding.where)
    own = batches.of(parts["rna"].rows)
    genes, names = _genes(all_counts(source), found.tokens, loaded.vocabulary.symbols, own)
    n_cells = len(batches.codes)
    proteins = parts["protein"]
    blocks = [spread(genes, parts["rna"].rows, n_cells), spread(proteins.counts, proteins.rows, n_cells)]
    every = (*names, *(f"p_{name}" for name in proteins.features))
    table = AnnData(
        sp.hstack(blocks, format="csr"),
        pd.DataFrame({BATCH: batches.categories()}, [str(i) for i in range(n_cells)]),
        pd.DataFrame(index=list(every)),
    )
    cells = Cells(sp.csr_array(table.X), every, batches.codes, tuple(batches.names))
    with _folder(training) as folder:
        fine_tune(loaded, cells, folder, _recipe(MULTIOMIC, training))
        nothing: dict[str, Any] = {"gene_column": None, "species": None, "gene_table": None, "layer": None}
        options = {"batch_key": BATCH} if len(batches.names) > 1 else {}
        vectors, facts = embedded(table, folder, embedding.device, options, **nothing)
    return vectors, _facts(facts, loaded, embedding, training)


def _scgpt(embedding: Embedding, training: Training) -> Any:
    """The pretrained model."""
    if training.reference is not None:
        raise OptionError(
            "reference= takes models of method='scvi'. A folder that method='scgpt' saved embeds new cells of its batches: "
            "cfm.tl.embed(adata, model=FOLDER, batch_key=...)."
        )
    loaded = models.load(embedding.model, device=embedding.device, **embedding.options)
    if loaded.spec.family != "scgpt":
        raise OptionError(
            f"method='scgpt' trains a checkpoint of scGPT, and model={str(embedding.model)!r} is of the family "
            f"{loaded.spec.family}. Type model= with 'scgpt-human' or a folder of scGPT, or method='scvi'."
        )
    return loaded


def _genes(
    counts: sp.csr_matrix, tokens: NDArray[np.integer], symbols: tuple[str, ...], batches: Batches
) -> tuple[sp.csr_matrix, tuple[str, ...]]:
    """Counts of the genes that the model knows and that vary most within batches, and their names there."""
    known = np.flatnonzero(tokens >= 0)
    chosen = known[most_variable(counts[:, known], batches, N_GENES).columns]
    return counts[:, chosen], tuple(symbols[token] for token in tokens[chosen].tolist())


def _recipe(recipe: Any, training: Training) -> Any:
    return replace(recipe, seed=training.seed, epochs=training.epochs or recipe.epochs)


@contextmanager
def _folder(training: Training) -> Iterator[Path]:
    """Where the fine-tuned model goes: to stay, or until its vectors are there."""
    if training.save is not None:
        yield training.save
        return
    with tempfile.TemporaryDirectory(prefix="cfm-") as name:
        yield Path(name)


def _facts(facts: dict[str, Any], loaded: Any, embedding: Embedding, training: Training) -> dict[str, Any]:
    kept = {} if training.save is None else {"saved": str(training.save)}
    return (
        facts | kept | {"source": str(embedding.model), "model": loaded.spec.name, "model_digest": loaded.spec.digest}
    )
