"""Timing two ways of doing one thing in turns, so that a busy machine slows both alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """How many times faster the second way is: median of the rounds, and the range of their middle half."""

    median: float
    low: float
    high: float
    seconds: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.median:5.2f}x  (middle half {self.low:.2f} to {self.high:.2f})"


def compare(slow: Callable[[], object], fast: Callable[[], object], rounds: int = 15) -> Ratio:
    """Run both in turns `rounds` times, after one warm-up, and compare round by round."""
    slow(), fast()
    times = np.array([[_time(slow), _time(fast)] for _ in range(rounds)])
    ratios = times[:, 0] / times[:, 1]
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return Ratio(median, low, high, tuple(np.median(times, axis=0)))


def _time(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
