"""scFoundation (Hao et al. 2024): expressed genes through an encoder, all genes through a Performer."""

from .model import ScfoundationModel

__all__ = ["ScfoundationModel"]
