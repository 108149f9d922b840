"""Tools: embed cells, annotate them, pretrain a model."""

from ._annotate import annotate
from ._embed import embed
from ._pretrain import pretrain

__all__ = ["annotate", "embed", "pretrain"]
