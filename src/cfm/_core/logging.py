"""The ``cfm`` logger and progress bars."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm.auto import tqdm

from .settings import settings

_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}

logger = logging.getLogger("cfm")


class _SettingsFilter(logging.Filter):
    """Reads the verbosity at each message, so that `settings.override` works without a hook."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= _LEVELS[settings.verbosity]


class _TqdmHandler(logging.Handler):
    """Writes to standard error, as it is now, without tearing a progress bar that is on screen."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # noqa: BLE001 -- logging's own contract: report the failure, never raise into user code
            self.handleError(record)


def _set_up() -> None:
    if any(isinstance(handler, _TqdmHandler) for handler in logger.handlers):
        return
    handler = _TqdmHandler()
    handler.setFormatter(logging.Formatter("cfm: %(message)s"))
    handler.addFilter(_SettingsFilter())
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


_set_up()


def progress(total: int, description: str, unit: str = "cells") -> tqdm[Any]:
    """A progress bar with cells/s; silent when `settings.progress` is False."""
    return tqdm(total=total, desc=description, unit=f" {unit}", unit_scale=True, disable=not settings.progress)
