"""Running a numba kernel over the rows of a batch with all threads.

The kernels release the GIL and share nothing between rows, so plain Python threads suffice and the code is
safe inside dask workers, where numba's own parallel back ends are not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

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
    # This thread does a part too; the pool stays, since threads that come and go leave their memory behind.
    waiting = [_pool(parts - 1).submit(kernel, a, b) for a, b in zip(edges[1:-1], edges[2:], strict=True)]
    kernel(edges[0], edges[1])
    for done in waiting:
        done.result()


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="cfm-rows")


# Threads do not survive a fork: a child that kept the pool would wait for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
