from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cfm.tokens import pool


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How many threads the last call of a kernel was given, so that a test of threads cannot pass on one."""
    workers = [0]

    class Counted(ThreadPoolExecutor):
        def __init__(self, max_workers: int, thread_name_prefix: str) -> None:
            workers[0] = max_workers
            super().__init__(max_workers, thread_name_prefix)

    def count() -> int:
        found, workers[0] = workers[0], 0
        pool._pool.cache_clear()
        return found + 1  # the caller's own thread

    monkeypatch.setattr(pool, "ThreadPoolExecutor", Counted)
    pool._pool.cache_clear()
    yield count
    pool._pool.cache_clear()
