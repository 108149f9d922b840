"""Real cells that need no download."""

from ._pbmc68k import pbmc68k

__all__ = ["pbmc68k"]
