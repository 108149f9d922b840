"""Scores of results, always beside simple baselines."""

from ._integration import BASELINES, TOTALS, integration

__all__ = ["BASELINES", "TOTALS", "integration"]
