"""Cells of several batches in one space: who is in which batch, what to compare cells by, and taking batches out."""

from .batches import Batches, find_batches, warn_of_conditions
from .harmony import align
from .modalities import Kind, Modalities, Modality, find_modalities
from .modality_batches import batch_column
from .orthologs import on_common_genes
from .shift import shift
from .space import Expression, Space, all_counts, build_space, expression, principal_components

__all__ = [
    "Batches",
    "Expression",
    "Kind",
    "Modalities",
    "Modality",
    "Space",
    "align",
    "all_counts",
    "batch_column",
    "build_space",
    "expression",
    "find_batches",
    "find_modalities",
    "on_common_genes",
    "principal_components",
    "shift",
    "warn_of_conditions",
]
