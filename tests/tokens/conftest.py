from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cfm.tokens import pool


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many threads the last call of a kernel was given, so that a test of threads cannot pass on one."""
    last = [1]

    class Counted(ThreadPoolExecutor):
        def __init__(self, max_workers: int) -> None:
            last[0] = max_workers
            super().__init__(max_workers)

    monkeypatch.setattr(pool, "ThreadPoolExecutor", Counted)

    def count() -> int:
        found, last[0] = last[0], 1
        return found

    return count
