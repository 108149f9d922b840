"""Cutting rows into parts for threads."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

import cfm
from cfm.tokens import pool


def parts_of(lengths: list[int], threads: int) -> list[tuple[int, int]]:
    """The parts that `over_rows` hands out, in order."""
    seen: list[tuple[int, int]] = []
    lock = threading.Lock()

    def kernel(first: int, last: int) -> None:
        with lock:
            seen.append((first, last))

    with cfm.settings.override(threads=threads):
        pool.over_rows(kernel, np.cumsum([0, *lengths]))
    return sorted(seen)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "lengths",
    [[], [0], [0, 0, 0], [5], [30_000] * 9, [0, 0, 400_000, 0], [1, 500_000, 1], [500_000, *[0] * 50]],
    ids=["none", "one empty", "all empty", "small", "even", "one giant", "giant inside", "empty tail"],
)
def test_parts_cover_every_row_once(lengths: list[int], threads: int) -> None:
    parts = parts_of(lengths, threads)
    assert len(parts) <= threads
    assert [row for first, last in parts for row in range(first, last)] == list(range(len(lengths)))


def test_parts_hold_about_equal_numbers_of_values() -> None:
    lengths = [1] * 50_000 + [50_000]
    (a, b), (c, d) = parts_of(lengths, 2)
    assert abs(sum(lengths[a:b]) - sum(lengths[c:d])) <= 2


def test_little_work_stays_in_this_thread() -> None:
    assert parts_of([10] * 100, 8) == [(0, 100)]


def test_error_in_a_thread_is_raised() -> None:
    def kernel(first: int, last: int) -> None:
        raise ZeroDivisionError(f"rows {first} to {last}")

    with cfm.settings.override(threads=2), pytest.raises(ZeroDivisionError, match="rows"):
        pool.over_rows(kernel, np.cumsum([0, *[30_000] * 4]))


def test_threads_setting() -> None:
    with cfm.settings.override(threads=3):
        assert pool.n_threads() == 3
    with cfm.settings.override(threads=0):
        assert pool.n_threads() >= 1


FORK = """
import multiprocessing
import numpy as np
import cfm
from cfm.tokens import rank_order

def rank(size):
    with cfm.settings.override(threads=2):
        return int(rank_order(np.arange(float(size)), np.array([0, size // 2, size]))[0])

if __name__ == "__main__":
    assert rank(100_000) == 49_999  # the parent's threads exist now, and the child does not have them
    with multiprocessing.get_context("fork").Pool(1) as child:
        print(child.apply_async(rank, (100_000,)).get(timeout=60))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_child_makes_threads_of_its_own() -> None:
    # In a process of its own: what else the tests have loaded may not bear a fork.
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "49999\n", done.stderr
