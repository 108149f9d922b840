"""cfm-mini: a small masked-gene model of our own. Its weights and model card stand in ``weights/``."""

from .model import MiniModel

__all__ = ["MiniModel"]
