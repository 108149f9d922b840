"""Plots."""

from ._annotation import annotation
from ._coverage import coverage
from ._integration import integration

__all__ = ["annotation", "coverage", "integration"]
