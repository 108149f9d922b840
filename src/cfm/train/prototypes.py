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
from .views import pack_of

_PACK_CELLS = 512


def make_reference(module: GeneBag, corpus: Corpus, recipe: Recipe) -> Reference | None:
    """Prototypes of every (label, file): cells where they are few, else the means of groups of near cells.

    Means are brought back to length 1, as cell vectors are. None where the corpus has no labels.
    """
    vectors, labels = [], []
    excluded = set(recipe.reference.exclude_labels)
    for file in corpus.files:
        for code in np.unique(file.labels[file.labels != UNLABELLED]):
            name = corpus.labels[code]
            if name in excluded:
                continue
            cells = embed_counts(module, sp.csr_array(file.counts[file.labels == code]))
            found = _prototypes(cells, recipe.reference.prototypes_per_label_and_file, recipe.training.seed)
            vectors.append(found)
            labels += [recipe.reference.rename.get(name, name)] * len(found)
    if len(labels) <= recipe.reference.n_neighbors:
        return None
    return Reference.of(
        np.concatenate(vectors),
        labels,
        ontology_ids=recipe.data.ontology_ids,
        n_neighbors=recipe.reference.n_neighbors,
    )


def _prototypes(cells: NDArray[np.float32], most: int, seed: int) -> NDArray[np.float32]:
    if len(cells) <= most:
        return cells
    means = KMeans(most, n_init=1, random_state=seed).fit(cells).cluster_centers_
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


@torch.inference_mode()
def embed_counts(module: GeneBag, counts: sp.csr_array) -> NDArray[np.float32]:
    """Unit vectors of CSR rows over the vocabulary."""
    parts = []
    for start in range(0, counts.shape[0], _PACK_CELLS):
        pack = pack_of(sp.csr_array(counts[start : start + _PACK_CELLS]))
        assert pack.values is not None
        parts.append(F.normalize(module(pack.ids, pack.values, pack.offsets), dim=-1).numpy())
    return np.concatenate(parts)
