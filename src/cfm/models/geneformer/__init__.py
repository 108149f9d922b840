"""Geneformer (Theodoris et al. 2023; V2: Chen et al. 2024): genes of a cell in the order of their rank."""

from .model import GeneformerModel

__all__ = ["GeneformerModel"]
