"""UCE: sentences of proteins, drawn from the expressed genes of a cell, for cells of eight species and of new ones."""

from .model import UceModel

__all__ = ["UceModel"]
