"""Raw counts: finding where they are, and streaming them as CSR chunks whatever the storage."""

from .evidence import Evidence
from .finding import find_counts, in_memory
from .reading import as_csr
from .source import Chunk, CountSource

__all__ = ["Chunk", "CountSource", "Evidence", "as_csr", "find_counts", "in_memory"]
