"""The classifier that fine-tuning puts in the place of the language-model head."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cfm.nn.rows import by_rows


class Classifier(nn.Module):
    """Classes of a cell from one number for each position.

    Parameters
    ----------
    dim
        Length of a position's vector.
    n_positions
        Positions of a cell.
    hidden
        Lengths of the two layers between.
    n_classes
        Number of classes.
    """

    def __init__(self, dim: int, n_positions: int, hidden: tuple[int, int], n_classes: int) -> None:
        super().__init__()
        self.n_positions = n_positions
        self.score = nn.Linear(dim, 1)
        self.fc1 = nn.Linear(n_positions, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """float[n_cells, n_classes]: logits, for the positions float[n_cells * n_positions, dim]."""
        scores = by_rows(self.score, x).view(-1, self.n_positions)
        # One row at a time: a group of 512 would be nearly all padding, of rows this long.
        return by_rows(self._classes, scores, rows=1)

    def _classes(self, scores: Tensor) -> Tensor:
        logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(F.relu(scores))))))
        return logits
