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
_PAIRS = 300
_CYCLES = 10
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
        For the cells that are compared, 4,000 over all batches, or 200 of each if these are more; and of more than 25 batches,
        for the 20 others that each is compared with.

    Returns
    -------
    float32[n_cells, dim].
    """
    out = np.array(space, np.float32)
    for cells in batches.to_align():
        present, codes = np.unique(batches.codes[cells], return_inverse=True)
        generator = np.random.default_rng(seed)
        drawn = _draw(codes, generator)
        out[cells] += _steps([out[cells[some]] for some in drawn], _pairs(len(present), generator))[codes]
    return out


def _draw(codes: NDArray[np.int64], generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Cells of each batch to compare."""
    n_batches = int(codes.max()) + 1
    most = max(_CELLS // n_batches, _CELLS_PER_BATCH)
    cells = (np.flatnonzero(codes == code) for code in range(n_batches))
    return [np.sort(generator.choice(c, most, replace=False)) if len(c) > most else c for c in cells]


def _pairs(n_batches: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """All pairs of batches; of many, those that are neighbours on one of some random cycles through all."""
    if n_batches * (n_batches - 1) / 2 <= _PAIRS:
        return list(combinations(range(n_batches), 2))
    cycles = [generator.permutation(n_batches).tolist() for _ in range(_CYCLES)]
    return sorted({(min(p), max(p)) for cycle in cycles for p in zip(cycle, cycle[1:] + cycle[:1], strict=True)})


def _steps(groups: list[NDArray[np.float32]], pairs: list[tuple[int, int]]) -> NDArray[np.float32]:
    """float32[n_batches, dim]: what to add to each batch, in rounds, since neighbours change as batches come closer."""
    # Distances of single precision want small numbers. Cells that are all the same, such as those without counts, are one:
    # each would be the nearest of all others.
    mean = np.vstack(groups).mean(axis=0)
    groups = [np.unique(group - mean, axis=0) for group in groups]
    steps = np.zeros((len(groups), len(mean)), np.float32)
    small = _SMALL_STEP * np.vstack(groups).std()
    for _ in range(_ROUNDS):
        step = _step([group + moved for group, moved in zip(groups, steps, strict=True)], pairs)
        steps += step
        if np.abs(step).max() <= small:
            break
    return steps


def _step(groups: list[NDArray[np.float32]], pairs: list[tuple[int, int]]) -> NDArray[np.float32]:
    """Least squares over pairs of batches, by the normal equations; a pair with many mutual neighbours weighs more."""
    equations = np.zeros((len(groups), len(groups)))
    between = np.zeros((len(groups), groups[0].shape[1]))
    for one, other in pairs:
        a, b = groups[one], groups[other]
        of_a, of_b = np.nonzero(_mutual(a, b))
        weight = len(of_a) / min(len(a), len(b))
        step = weight * (b[of_b] - a[of_a]).mean(axis=0)
        equations[[one, other], [one, other]] += weight
        equations[[one, other], [other, one]] -= weight
        between[one] += step
        between[other] -= step
    return np.asarray(np.linalg.lstsq(equations, between, rcond=None)[0], np.float32)


def _mutual(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[cells of a, cells of b]: which are among the nearest of each other; the nearest pair of all is, so there is one."""
    apart = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T)
    nearest_to_a, nearest_to_b = (min(_NEIGHBOURS, n) - 1 for n in (len(b), len(a)))
    return (apart <= np.partition(apart, nearest_to_a, axis=1)[:, [nearest_to_a]]) & (
        apart <= np.partition(apart, nearest_to_b, axis=0)[[nearest_to_b]]
    )
