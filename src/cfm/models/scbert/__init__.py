"""scBERT (Yang et al. 2022): every gene of a fixed list with its binned expression, read by a Performer.

Users bring the weights and the list.
"""

from .model import ScbertModel

__all__ = ["ScbertModel"]
