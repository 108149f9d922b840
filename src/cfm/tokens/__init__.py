"""Tokens: ragged batches, and the numba encoders that make them from CSR rows."""

from .batch import TokenBatch
from .encoders import bin_values, rank_ids, rank_order
from .rows import GeneRows, gene_rows

__all__ = ["GeneRows", "TokenBatch", "bin_values", "gene_rows", "rank_ids", "rank_order"]
