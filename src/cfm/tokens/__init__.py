"""Tokens: ragged batches, and the numba encoders that make them from CSR rows."""

from .batch import TokenBatch
from .encoders import bin_values, quantile_edges, rank_ids, rank_order
from .rows import GeneRows, gene_rows

__all__ = ["GeneRows", "TokenBatch", "bin_values", "gene_rows", "quantile_edges", "rank_ids", "rank_order"]
