"""From chunks of counts to arrays in file order."""

from .packing import packs
from .prepare import Prepared, prepare, read_table
from .runner import Result, run
from .stream import TokenStream, stored_tokens

__all__ = ["Prepared", "Result", "TokenStream", "packs", "prepare", "read_table", "run", "stored_tokens"]
