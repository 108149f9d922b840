"""The modalities of a vocabulary: which tokens are genes, and which are proteins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import files

_PROTEIN = "p_"


def is_protein(token: str) -> bool:
    """Whether a token is a protein: ``p_CD4``."""
    return token.startswith(_PROTEIN)


def vocabulary_of(pad: str) -> list[str]:
    """The modalities of genes and proteins in the order of their ids, as the official recipe numbers them."""
    return ["Protein", "RNA", pad, files.CLS, "<eoc>"]


def modality_of_token(tokens: list[str], modalities: list[str], pad: str) -> NDArray[np.int64] | None:
    """The modality of each token: proteins are named ``p_...``, special tokens are their own, all else is RNA."""
    if not modalities:
        return None
    ids = {modality: i for i, modality in enumerate(modalities)}
    proteins, other = ids.get("Protein", 0), ids.get("RNA", 0)
    special = {token: ids[token] for token in (pad, files.CLS) if token in ids}
    return np.array([special.get(t, proteins if is_protein(t) else other) for t in tokens], np.int64)
