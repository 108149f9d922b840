"""A ragged batch of tokenised cells."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of several cells, one after another, without padding.

    Parameters
    ----------
    ids
        int32[n_tokens]: token ids of all cells.
    values
        float32[n_tokens]: the value beside each token, or None for families that have none.
    offsets
        int64[n_cells + 1]: cell i has the tokens ``offsets[i]`` to ``offsets[i + 1]``.
    rows
        int64[n_cells]: position of each cell in the file.
    cell_scalars
        float32[n_cells] by name, for families that give the model numbers of the cell.
    """

    ids: NDArray[np.int32]
    values: NDArray[np.float32] | None
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    cell_scalars: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_tokens, n_cells = len(self.ids), len(self.rows)
        spans = len(self.offsets) == n_cells + 1 and self.offsets[0] == 0 and self.offsets[-1] == n_tokens
        if not spans or (np.diff(self.offsets) < 0).any():
            raise ValueError(f"offsets do not span {n_tokens} tokens of {n_cells} cells")
        if self.values is not None and len(self.values) != n_tokens:
            raise ValueError(f"{len(self.values)} values for {n_tokens} tokens")
        for name, scalars in self.cell_scalars.items():
            if len(scalars) != n_cells:
                raise ValueError(f"{len(scalars)} cell scalars {name!r} for {n_cells} cells")

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each cell."""
        return np.diff(self.offsets)

    def take(self, cells: NDArray[np.int64]) -> TokenBatch:
        """The batch of some cells, in the order given."""
        lengths = self.lengths[cells]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        # Position of every token: where its cell begins, plus its place within the cell.
        where = np.repeat(self.offsets[cells] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return TokenBatch(
            ids=self.ids[where],
            values=None if self.values is None else self.values[where],
            offsets=offsets,
            rows=self.rows[cells],
            cell_scalars={name: scalars[cells] for name, scalars in self.cell_scalars.items()},
        )
