"""Moving each batch as a whole, by what lies between its cells and like cells of the other batches."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from .batches import Batches

_NEIGHBOURS = 5
_ROUNDS = 20
_CELLS = 4000
_CELLS_PER_BATCH = 200
_SMALL_STEP = 1e-2


def shift(space: NDArray[np.floating], batches: Batches, *, seed: int = 0) -> NDArray[np.float32]:
    """Add one vector per batch, so that cells that are mutual nearest neighbours between batches come to lie together.

    Harmony compares cells by their direction, and where batches lie far apart it sees a cluster for each batch and takes
    nothing out. Moving each batch to a common mean would mend that, but would also lay kinds of cells that only one
    batch has on others. Mutual nearest neighbours (Haghverdi et al. 2018) are mostly cells of a kind that both have.

    Parameters
    ----------
    space
        float[n_cells, dim].
    batches
        Batches, and strata within which they are moved; a stratum of a single batch stays as it is.
    seed
        For the cells that are compared: 4,000 over all batches, or 200 of each if these are more.

    Returns
    -------
    float32[n_cells, dim].
    """
    out = np.array(space, np.float32)
    for stratum in np.unique(batches.strata):
        cells = np.flatnonzero(batches.strata == stratum)
        present, codes = np.unique(batches.codes[cells], return_inverse=True)
        if len(present) > 1:
            drawn = _draw(codes, np.random.default_rng(seed))
            out[cells] += _steps([out[cells[some]] for some in drawn])[codes]
    return out


def _draw(codes: NDArray[np.int64], generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Cells of each batch to compare."""
    n_batches = int(codes.max()) + 1
    most = max(_CELLS // n_batches, _CELLS_PER_BATCH)
    cells = (np.flatnonzero(codes == code) for code in range(n_batches))
    return [np.sort(generator.choice(c, most, replace=False)) if len(c) > most else c for c in cells]


def _steps(groups: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """float32[n_batches, dim]: what to add to each batch, in rounds, since neighbours change as batches come closer."""
    steps = np.zeros((len(groups), groups[0].shape[1]), np.float32)
    small = _SMALL_STEP * np.vstack(groups).std()
    for _ in range(_ROUNDS):
        step = _step([group + moved for group, moved in zip(groups, steps, strict=True)])
        steps += step
        if np.abs(step).max() <= small:
            break
    return steps


def _step(groups: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Least squares over all pairs of batches; a pair with many mutual neighbours weighs more."""
    pairs = list(combinations(range(len(groups)), 2))
    which = np.zeros((len(pairs), len(groups)))
    between = np.zeros((len(pairs), groups[0].shape[1]))
    for row, (one, other) in enumerate(pairs):
        a, b = groups[one], groups[other]
        of_a, of_b = np.nonzero(_mutual(a, b))
        weight = np.sqrt(len(of_a) / min(len(a), len(b)))
        which[row, [one, other]] = weight, -weight
        between[row] = weight * (b[of_b] - a[of_a]).mean(axis=0)
    return np.asarray(np.linalg.lstsq(which, between, rcond=None)[0], np.float32)


def _mutual(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[cells of a, cells of b]: which are among the nearest of each other; the nearest pair of all is, so there is one."""
    apart = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T)
    nearest_to_a, nearest_to_b = (min(_NEIGHBOURS, n) - 1 for n in (len(b), len(a)))
    return (apart <= np.partition(apart, nearest_to_a, axis=1)[:, [nearest_to_a]]) & (
        apart <= np.partition(apart, nearest_to_b, axis=0)[[nearest_to_b]]
    )
