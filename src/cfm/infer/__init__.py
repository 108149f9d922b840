"""From chunks of counts to arrays in file order."""

from .packing import packs
from .prepare import Prepared, matched, obs_columns, prepare, read_table
from .runner import GeneMeans, Result, passes, run
from .stream import TokenStream, stored_tokens

__all__ = [
    "GeneMeans",
    "Prepared",
    "Result",
    "TokenStream",
    "matched",
    "obs_columns",
    "packs",
    "passes",
    "prepare",
    "read_table",
    "run",
    "stored_tokens",
]
