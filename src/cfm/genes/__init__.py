"""Gene identifiers: packaged tables, vocabularies, and the matching of a data set's genes to a vocabulary."""

from .identifiers import human_genes, human_previous_symbols, mouse_orthologs, strip_version
from .matching import GeneMatch, match
from .report import Coverage
from .vocabulary import Vocabulary

__all__ = [
    "Coverage",
    "GeneMatch",
    "Vocabulary",
    "human_genes",
    "human_previous_symbols",
    "match",
    "mouse_orthologs",
    "strip_version",
]
