"""The reference for annotation that is shipped with a model: prototypes of the labelled training cells."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch.nn import functional as F

from cfm.models.mini.module import GeneBag
from cfm.models.reference import Reference

from .corpus import UNLABELLED, Corpus
from .recipe import Recipe
from .views import keep_genes, pack_of, thin

_PACK_CELLS = 512


def make_reference(module: GeneBag, corpus: Corpus, recipe: Recipe) -> Reference | None:
    """Prototypes of every (label, file): cells where they are few, else the means of groups of near cells.

    Means are brought back to length 1, as cell vectors are. How far a label reaches is learnt from its cells as
    training saw them, thinned and with genes hidden: means lie closer together than cells, and the cells that will
    be labelled come from shallower data and other gene lists. None where the corpus has no labels.
    """
    vectors: list[NDArray[np.float32]] = []
    labels: list[str] = []
    probes: list[NDArray[np.float32]] = []
    probe_labels: list[str] = []
    rng = np.random.default_rng(recipe.training.seed)
    for file in corpus.files:
        for code in np.unique(file.labels[file.labels != UNLABELLED]):
            if corpus.labels[code] in recipe.reference.exclude_labels:
                continue
            name = recipe.reference.rename.get(corpus.labels[code], corpus.labels[code])
            counts = sp.csr_array(file.counts[file.labels == code])
            found = _prototypes(
                embed_counts(module, counts), recipe.reference.prototypes_per_label_and_file, recipe.training.seed
            )
            views = _views(counts, recipe, rng)
            vectors.append(found)
            labels += [name] * len(found)
            probes.append(embed_counts(module, views))
            probe_labels += [name] * views.shape[0]
    if len(labels) <= recipe.reference.n_neighbors:
        return None
    return Reference.of(
        np.concatenate(vectors),
        labels,
        ontology_ids=recipe.data.ontology_ids,
        n_neighbors=recipe.reference.n_neighbors,
        probes=(np.concatenate(probes), np.array(probe_labels)),
    )


def _prototypes(cells: NDArray[np.float32], most: int, seed: int) -> NDArray[np.float32]:
    if len(cells) <= most:
        return cells
    means = KMeans(most, n_init=1, random_state=seed).fit(cells).cluster_centers_
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def _views(counts: sp.csr_array, recipe: Recipe, rng: np.random.Generator) -> sp.csr_array:
    """Each cell thinned, and with a share of the genes hidden; a cell that keeps nothing is left out."""
    thinned = thin(counts, recipe.views, rng)
    rows = [
        keep_genes(sp.csr_array(thinned[[cell]]), rng.random(counts.shape[1]) >= rng.uniform(*recipe.views.masked))
        for cell in range(counts.shape[0])
    ]
    return sp.vstack([row for row in rows if row.nnz] or [counts[:0]], format="csr")


@torch.inference_mode()
def embed_counts(module: GeneBag, counts: sp.csr_array) -> NDArray[np.float32]:
    """Unit vectors of CSR rows over the vocabulary."""
    parts = [np.zeros((0, module.output.in_features), np.float32)]
    for start in range(0, counts.shape[0], _PACK_CELLS):
        pack = pack_of(sp.csr_array(counts[start : start + _PACK_CELLS]))
        assert pack.values is not None
        parts.append(F.normalize(module(pack.ids, pack.values, pack.offsets), dim=-1).numpy())
    return np.concatenate(parts)
