"""The record of a call in ``adata.uns["cfm"]``, and the names of everything that `cfm` writes."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

UNS = "cfm"
EMBEDDING = "X_cfm"
N_GENES = "cfm_n_genes"
GENE_VECTORS = "cfm_genes"
TOKENS = "cfm_tokens"
VALUES = "cfm_values"
N_TOKENS = "cfm_n_tokens"
LABEL = "cfm_label"
ENHANCED = "cfm_enhanced"
INTEGRATED = "X_cfm_integrated"
JOINT = "X_cfm_joint"
WEIGHTS = "cfm_modality_weights"
IMPUTED = "cfm_imputed"
INTEGRATION = "integration"
CONFIDENCE_SUFFIX = "_confidence"


def make_record(function: str, /, **facts: Any) -> dict[str, Any]:
    """What was done and with what, in types that h5ad and zarr can hold.

    AnnData files take text, numbers, booleans, lists of one kind and dictionaries with text keys: None is
    left out, tuples become lists. Facts may come from another record, whose function, version and time are replaced.
    """
    return _storable(facts) | {
        "function": function,
        "version": version("cfm-tools"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _storable(value: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in value.items():
        if item is None:
            continue
        if isinstance(item, Mapping):
            out[key] = _storable(item)
        elif isinstance(item, os.PathLike):
            out[key] = os.fspath(item)
        elif isinstance(item, tuple | list):
            out[key] = [str(x) for x in item]
        else:
            out[key] = item
    return out


def write_record(uns: MutableMapping[str, Any], key: str, record: dict[str, Any]) -> None:
    """Put a record under ``uns["cfm"][key]``; the records of other calls stay."""
    uns[UNS] = {**uns.get(UNS, {}), key: record}
