"""Cells of several batches in one space: who is in which batch, what to compare cells by, and taking batches out."""

from .batches import Batches, find_batches, warn_of_conditions
from .harmony import align
from .space import Expression, Space, build_space, expression, principal_components

__all__ = [
    "Batches",
    "Expression",
    "Space",
    "align",
    "build_space",
    "expression",
    "find_batches",
    "principal_components",
    "warn_of_conditions",
]
