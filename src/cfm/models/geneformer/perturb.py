"""In silico perturbation at the level of tokens: genes are taken out or moved to the front, and vectors compared."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cfm.tokens import TokenBatch


def delete(cell: NDArray[np.int32], genes: NDArray[np.int32]) -> NDArray[np.int32]:
    """The tokens of a cell without some genes; the rest moves up.

    Examples
    --------
    >>> delete(np.array([7, 8, 9], np.int32), np.array([8], np.int32)).tolist()
    [7, 9]
    """
    return cell[~np.isin(cell, genes)]


def overexpress(
    cell: NDArray[np.int32], genes: NDArray[np.int32], max_tokens: int, ends: tuple[int, int] | None
) -> NDArray[np.int32]:
    """The tokens of a cell with some genes at the front, in the order given, expressed there before or not.

    What no longer fits falls off at the end, ``<eos>`` excepted.

    Examples
    --------
    >>> overexpress(np.array([2, 7, 8, 9, 3], np.int32), np.array([9, 5], np.int32), 5, (2, 3)).tolist()
    [2, 9, 5, 7, 3]
    """
    inner = cell if ends is None else cell[1:-1]
    room = max_tokens - (0 if ends is None else 2)
    moved = np.concatenate([genes, delete(inner, genes)]).astype(np.int32)[:room]
    return moved if ends is None else np.concatenate([[ends[0]], moved, [ends[1]]]).astype(np.int32)


def batch_of(cells: list[NDArray[np.int32]]) -> TokenBatch:
    """A batch of cells that have no place in a file."""
    offsets = np.concatenate(([0], np.cumsum([len(cell) for cell in cells]))).astype(np.int64)
    return TokenBatch(np.concatenate(cells).astype(np.int32), None, offsets, np.arange(len(cells)))


def gene_similarity(
    before: Tensor, tokens: NDArray[np.int32], after: Tensor, new_tokens: NDArray[np.int32], left_out: NDArray[np.int32]
) -> float:
    """Mean over the genes of a cell of the cosine between their vectors before and after; V1's measure of a shift.

    Parameters
    ----------
    before, after
        float[n, dim]: token vectors.
    tokens, new_tokens
        The tokens that they belong to.
    left_out
        Genes that do not count, which are the perturbed ones.
    """
    place = {int(token): i for i, token in enumerate(new_tokens)}
    pairs = [(i, place[int(token)]) for i, token in enumerate(tokens) if int(token) in place and token not in left_out]
    if not pairs:
        return float("nan")
    old, new = torch.tensor(pairs, dtype=torch.long).T
    return float(F.cosine_similarity(before[old], after[new]).mean())


def cell_similarity(before: Tensor, after: Tensor) -> float:
    """Cosine between the vectors of a cell before and after; V2's measure of a shift."""
    return float(F.cosine_similarity(before, after, dim=0))


def shift_towards(before: Tensor, after: Tensor, state: Tensor) -> float:
    """How much closer a cell came to the mean vector of a state: difference of cosines, -2 to 2."""
    return cell_similarity(after, state) - cell_similarity(before, state)
