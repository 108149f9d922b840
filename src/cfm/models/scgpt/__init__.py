"""scGPT (Cui et al. 2024): genes with binned counts, read by an encoder. Weights are downloaded by the user."""

from .model import ScgptModel

__all__ = ["ScgptModel"]
