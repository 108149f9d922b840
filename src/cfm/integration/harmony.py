"""Taking the difference between batches out of a space."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .batches import Batches


def align(space: NDArray[np.floating], batches: Batches, *, seed: int = 0) -> NDArray[np.float32]:
    """Harmony (Korsunsky et al. 2019): cells of each batch move to where like cells of the other batches are.

    Parameters
    ----------
    space
        float[n_cells, dim].
    batches
        Batches, and strata within which they are aligned; a stratum of a single batch stays as it is.
    seed
        For the clusters that it starts from.

    Returns
    -------
    float32[n_cells, dim].
    """
    out = np.array(space, np.float32)
    for cells in batches.to_align():
        out[cells] = _harmony(space[cells], batches.codes[cells], seed)
    return out


def _harmony(space: NDArray[np.floating], codes: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    import harmonypy

    moved = harmonypy.run_harmony(
        np.asarray(space, np.float64),
        pd.DataFrame({"batch": codes.astype(str)}),
        "batch",
        random_state=seed,
        verbose=False,
    ).Z_corr
    # Its second major version gives cells x dimensions, the first the transpose.
    return np.asarray(moved if moved.shape == space.shape else moved.T, np.float32)
