"""Tools: embed cells, annotate them, integrate batches, pretrain a model."""

from ._annotate import annotate
from ._embed import embed
from ._enhance import enhance
from ._integrate import integrate
from ._pretrain import pretrain

__all__ = ["annotate", "embed", "integrate", "pretrain"]
