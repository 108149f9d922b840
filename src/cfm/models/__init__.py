"""Models by name or folder: the registry, the contract all families keep, and one folder per family."""

from .contract import CellModel, ModelSpec, Pack, Tokenizer
from .registry import fetch, info, list, load

__all__ = ["CellModel", "ModelSpec", "Pack", "Tokenizer", "fetch", "info", "list", "load"]
