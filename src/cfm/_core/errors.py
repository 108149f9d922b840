"""Errors a user can meet. Each message says what was looked at, what was found, and what to type next."""

from __future__ import annotations


class CfmError(Exception):
    """Base of all errors that `cfm` raises on purpose."""


class CountsError(CfmError, ValueError):
    """No raw counts where they were looked for, or counts that turn out not to be counts."""


class GeneMatchError(CfmError, ValueError):
    """Too few of the genes are known to the model."""


class CheckpointError(CfmError, ValueError):
    """A model folder that is incomplete, damaged or not what it says."""


class DownloadError(CfmError, OSError):
    """Files of a model that cannot be had, or that are not those that are known."""


class UnknownModelError(CfmError, KeyError):
    """No model of this name is registered."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which turns a readable message into one long quoted line.
        return str(self.args[0])


class UnsupportedOutput(CfmError, ValueError):
    """A model was asked for an output that its family cannot give."""


class OptionError(CfmError, ValueError):
    """An argument whose value cannot work."""


class MissingKeyError(CfmError, KeyError):
    """A column, layer or matrix that the AnnData object does not have."""

    def __str__(self) -> str:
        return str(self.args[0])
