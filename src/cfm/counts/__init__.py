"""Raw counts: finding where they are, and streaming them as CSR chunks whatever the storage."""

from .evidence import Evidence
from .filtering import genes_in_cells
from .finding import find_counts, find_normalized, in_memory
from .reading import as_csr
from .source import Chunk, CountSource

__all__ = [
    "Chunk",
    "CountSource",
    "Evidence",
    "as_csr",
    "find_counts",
    "find_normalized",
    "genes_in_cells",
    "in_memory",
]
