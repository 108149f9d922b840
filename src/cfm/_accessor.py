"""``adata.cfm``: what works on one AnnData object, as its methods."""

from __future__ import annotations

from importlib import import_module
from types import MethodType
from typing import Any

import anndata
from anndata import AnnData

_METHODS = {
    "tokenize": "cfm.pp",
    "embed": "cfm.tl",
    "annotate": "cfm.tl",
    "integrate": "cfm.tl",
    "enhance": "cfm.tl",
}


@anndata.register_anndata_namespace("cfm")
class CfmAccessor:
    """Calls `cfm` functions on this object: ``adata.cfm.embed()`` is ``cfm.tl.embed(adata)``.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.pbmc68k()
    >>> adata.cfm.embed()
    >>> "X_cfm" in adata.obsm
    True
    """

    def __init__(self, adata: AnnData) -> None:
        self._adata = adata

    def __getattr__(self, name: str) -> Any:
        if name in _METHODS:
            # Bound like a method, so that help shows the function's own text and signature.
            return MethodType(getattr(import_module(_METHODS[name]), name), self._adata)
        raise AttributeError(f"adata.cfm has no {name!r}. It has {sorted(_METHODS)}.")

    def __dir__(self) -> list[str]:
        return sorted(_METHODS)

    def __repr__(self) -> str:
        return f"cfm methods: {', '.join(f'{name}()' for name in sorted(_METHODS))}"
