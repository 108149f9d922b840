"""Cell foundation models as one-line calls inside a scanpy workflow.

>>> import cfm
>>> adata = cfm.datasets.pbmc68k()
>>> cfm.tl.embed(adata)
>>> adata.obsm["X_cfm"].shape
(700, 128)
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from . import _accessor as _accessor
from . import errors
from ._core.settings import settings

if TYPE_CHECKING:
    from . import datasets, metrics, models, pl, pp, tl

__all__ = ["datasets", "errors", "metrics", "models", "pl", "pp", "settings", "tl"]

_LAZY = frozenset({"datasets", "metrics", "models", "pl", "pp", "tl"})


def __getattr__(name: str) -> object:
    # torch, scanpy and numba take seconds to import: a room is loaded when it is first used.
    if name in _LAZY:
        return import_module(f"{__name__}.{name}")
    if name == "__version__":
        return version("cfm-tools")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
