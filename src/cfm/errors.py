"""The errors that `cfm` raises on purpose, all under `CfmError`."""

from ._core.errors import (
    CfmError,
    CheckpointError,
    CountsError,
    DownloadError,
    GeneMatchError,
    MissingKeyError,
    OptionError,
    UnknownModelError,
    UnsupportedOutput,
)

__all__ = [
    "CfmError",
    "CheckpointError",
    "CountsError",
    "DownloadError",
    "GeneMatchError",
    "MissingKeyError",
    "OptionError",
    "UnknownModelError",
    "UnsupportedOutput",
]
