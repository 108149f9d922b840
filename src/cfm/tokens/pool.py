"""Running a numba kernel over the rows of a batch with all threads.

The kernels release the GIL and share nothing between rows, so plain Python threads suffice and the code is
safe inside dask workers, where numba's own parallel back ends are not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from cfm._core.settings import settings

_MIN_VALUES_PER_THREAD = 20_000


def n_threads() -> int:
    """Threads to use: the setting, or the cores this process may run on."""
    # process_cpu_count honours affinity but came with Python 3.13; sched_getaffinity is Linux only.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return settings.threads or usable or 1


def over_rows(kernel: Callable[[int, int], None], offsets: NDArray[np.int64]) -> None:
    """Call ``kernel(start_row, stop_row)`` on parts of about equal numbers of values, in parallel."""
    n_rows = len(offsets) - 1
    n_values = int(offsets[-1] - offsets[0])
    parts = min(n_threads(), n_rows, 1 + n_values // _MIN_VALUES_PER_THREAD)
    if parts <= 1:
        kernel(0, n_rows)
        return
    marks = offsets[0] + np.arange(1, parts) * n_values // parts
    edges = [0, *np.searchsorted(offsets, marks).tolist(), n_rows]
    with ThreadPoolExecutor(parts) as pool:
        for done in [pool.submit(kernel, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]:
            done.result()
