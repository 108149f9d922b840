"""The ``cfm`` command: arguments in, public functions called, results and exit codes out."""

from .main import main

__all__ = ["main"]
