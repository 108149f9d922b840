"""Vocabularies for the tests of the genes room."""

from __future__ import annotations

import pytest

from cfm.genes import Vocabulary, human_genes


@pytest.fixture(scope="session")
def human() -> Vocabulary:
    """All human genes that have a symbol, by Ensembl id."""
    symbol_of = {identifier: symbol for symbol, identifier in reversed(human_genes().items())}
    identifiers = sorted(symbol_of)
    return Vocabulary(tuple(identifiers), tuple(symbol_of[identifier] for identifier in identifiers))


@pytest.fixture(scope="session")
def crowd(human: Vocabulary) -> list[str]:
    """150 plain symbols: enough to get above the floor beside the names that a test is about."""
    plain = [symbol for symbol in human.symbols if symbol.isalpha() and not symbol.startswith(("SEL", "SEP", "UQ"))]
    return plain[::15][:150]
