"""The genes of scGPT: case-sensitive names of CELLxGENE's census, with Ensembl ids where they can be told."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from cfm.genes import Vocabulary

_SPECIAL = re.compile(r"^<[^<>]+>$")


def is_special(token: str) -> bool:
    """Whether a token is no gene: those in angle brackets are not."""
    return _SPECIAL.match(token) is not None


def genes_of(tokens: list[str]) -> tuple[Vocabulary, NDArray[np.int32]]:
    """The genes among tokens, and the token id of each.

    Tokens in angle brackets are no genes. The vocabulary has the names as they are.

    Parameters
    ----------
    tokens
        In the order of their ids.

    Returns
    -------
    The vocabulary, in the order of ids, and int32[genes].
    """
    which = [token for token, name in enumerate(tokens) if not is_special(name)]
    names = [tokens[token] for token in which]
    return Vocabulary.of_symbols(names), np.array(which, np.int32)
