"""Holding back what Lightning and scvi-tools say that nobody can act on here."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = ("scvi", "lightning.pytorch")
_WARNINGS = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*treespec.*",
    ".*number of training batches.*",
    ".*train_size.*",
    ".*fewer than 3 cells.*",
    ".*validation.*",
    ".*early_stopping was automatically disabled.*",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loggers at WARNING, and some warnings ignored, within the block."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for text in _WARNINGS:
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
