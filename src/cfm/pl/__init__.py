"""Plots."""

from ._annotation import annotation
from ._coverage import coverage

__all__ = ["annotation", "coverage"]
