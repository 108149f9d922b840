"""The genes of scGPT: case-sensitive names of CELLxGENE's census, with Ensembl ids where they can be told."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cfm.genes import Vocabulary, human_genes, human_previous_symbols

_ID = re.compile(r"(?:^|_)(ENSG\d{11})$")
_SPECIAL = re.compile(r"^<[^<>]+>$")


def genes_of(tokens: list[str]) -> tuple[Vocabulary, NDArray[np.int32]]:
    """The genes among tokens, and the token id of each.

    Tokens in angle brackets are no genes. The vocabulary has the names as they are; Ensembl ids are those that a name
    holds (``MATR3_ENSG00000280987``), else the packaged one of the symbol, current or withdrawn. Proteins and other
    features stay without one.

    Parameters
    ----------
    tokens
        In the order of their ids.

    Returns
    -------
    The vocabulary, in the order of ids, and int32[genes].
    """
    which = [token for token, name in enumerate(tokens) if not _SPECIAL.match(name)]
    names = [tokens[token] for token in which]
    return Vocabulary(_ensembl_ids(names), tuple(names), identifier="symbol"), np.array(which, np.int32)


def _ensembl_ids(names: list[str]) -> tuple[str, ...]:
    """One id for each name, or empty text; no id twice, and the surest source first."""
    found: dict[str, str] = {}
    taken: set[str] = set()

    def add(pairs: Iterable[tuple[str, str]]) -> None:
        for name, identifier in pairs:
            if name not in found and identifier not in taken:
                found[name] = identifier
                taken.add(identifier)

    add((name, match[1]) for name in names if (match := _ID.search(name)))
    for table in (human_genes(), human_previous_symbols()):
        add((name, table[name]) for name in names if name in table)
    return tuple(found.get(name, "") for name in names)
