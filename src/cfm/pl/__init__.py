"""Plots."""

from ._annotation import annotation
from ._coverage import coverage
from ._integration import integration
from ._modalities import imputation, modalities

__all__ = ["annotation", "coverage", "imputation", "integration", "modalities"]
