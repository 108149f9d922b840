"""What was measured of a modality, on the scale of what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core import records
from cfm._core.errors import MissingKeyError, OptionError
from cfm.integration import Kind
from cfm.integration.features import read_counts

_SHOWN = 6


@dataclass(frozen=True)
class Pair:
    """The counts of a modality, and what was predicted.

    Parameters
    ----------
    kind
        What it is.
    place
        What it is called in messages.
    names
        str[n_vars].
    counts
        float32[n_cells, n_vars]; columns that were read from elsewhere and are not there are zero.
    imputed, deviation
        float32[n_cells, n_vars]: NaN for features not in use.
    """

    kind: Kind
    place: str
    names: NDArray[np.str_]
    counts: sp.csc_matrix
    imputed: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @property
    def used(self) -> NDArray[np.intp]:
        """Columns that were predicted."""
        return np.flatnonzero(~np.isnan(self.imputed).all(axis=0))

    def of(self, column: int) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """Measured, predicted, and standard deviation of each cell."""
        return self.measured([column])[:, 0], self.imputed[:, column], self.deviation[:, column]

    def measured(self, columns: Any) -> NDArray[np.float64]:
        """float64[n_cells, columns]: counts on the scale of what was predicted."""
        values = np.asarray(self.counts[:, columns].toarray(), np.float64)
        if self.kind == "atac":
            return (values > 0).astype(np.float64)
        if self.kind == "protein":
            # Over the proteins in use, as in training: isotype controls would change the mean.
            size = np.exp(np.log1p(self.counts[:, self.used].toarray().astype(np.float64)).mean(axis=1))
            return np.log1p(values / size[:, None])
        totals = np.asarray(self.counts.sum(axis=1), np.float64).ravel()
        return np.log1p(1e4 * values / np.maximum(totals, 1)[:, None])


def find_pair(data: Any, modality: str | None, layer: str | None) -> Pair:
    """The modality that was predicted.

    Raises
    ------
    MissingKeyError, OptionError, CountsError
        As `cfm.pl.imputation`.
    """
    adata, kind, place, name = _modality(data, modality)
    if records.IMPUTED not in adata.layers:
        there = [str(key) for key in adata.layers.keys() if key is not None]
        data_name = "mdata" if hasattr(data, "mod") else "adata, batch_key=..., method='scvi'"
        raise MissingKeyError(
            f"{place} has no layer {records.IMPUTED!r}. It has {there}; cfm.tl.integrate({data_name}, impute=[{kind!r}]) "
            "writes it."
        )
    _, counts, columns = read_counts(adata, kind, name, layer)
    pick = sp.csr_matrix((np.ones(len(columns), np.float32), (np.arange(len(columns)), columns)),
                         (len(columns), adata.n_vars))  # fmt: skip
    return Pair(
        kind,
        place,
        np.array(adata.var_names, dtype=np.str_),
        sp.csc_matrix(counts @ pick),
        np.asarray(adata.layers[records.IMPUTED]),
        np.asarray(adata.layers[f"{records.IMPUTED}_sd"]),
    )


def default_features(pair: Pair) -> list[int]:
    """The features in use that vary most in what was measured, most first."""
    used = pair.used
    if pair.kind == "atac":
        share = np.asarray((pair.counts[:, used] > 0).mean(axis=0)).ravel()
        spread = share * (1 - share)
    else:
        spread = np.concatenate(
            [pair.measured(part).var(axis=0) for part in np.array_split(used, len(used) // 500 + 1)]
        )
    return [int(column) for column in used[np.argsort(-spread, kind="stable")][:_SHOWN]]


def _modality(data: Any, modality: str | None) -> tuple[AnnData, Kind, str, str]:
    if not hasattr(data, "mod"):
        if modality not in (None, "rna"):
            raise OptionError(f"modality={modality!r}: an AnnData object has RNA alone. Leave it out.")
        return data, "rna", "adata", "rna"
    kinds = _kinds(data)
    imputed = [name for name in data.mod if records.IMPUTED in data.mod[name].layers]
    if modality is None:
        if len(imputed) != 1:
            found = f"{imputed} were predicted: type modality= with one of them" if imputed else (
                f"No modality of {list(data.mod)} has the layer {records.IMPUTED!r}: cfm.tl.integrate(mdata, "
                "impute=['protein']) writes it")  # fmt: skip
            raise (OptionError if imputed else MissingKeyError)(f"{found}.")
        modality = imputed[0]
    name = kinds.get(modality, modality) if modality not in data.mod else modality
    kind = next((kind for kind, key in kinds.items() if key == name), None)
    if name not in data.mod or kind is None:
        raise MissingKeyError(
            f"modality={modality!r} is no modality of the space. The record in mdata.uns['cfm'] has {kinds}, and mdata.mod "
            f"{list(data.mod)}: type one of these, after cfm.tl.integrate(mdata, impute=[...])."
        )
    return data.mod[name], kind, f"mdata.mod[{name!r}]", name  # type: ignore[return-value]


def _kinds(mdata: Any) -> dict[str, str]:
    """Modality by kind, as `cfm.tl.integrate` recorded it; where it was called several times, of the last call."""
    kept = mdata.uns.get(records.UNS, {})
    found = [record for record in kept.values() if isinstance(record, Mapping) and "modalities" in record]
    found.sort(key=lambda record: str(record.get("time", "")))
    return {str(kind): str(name) for record in found for kind, name in record["modalities"].items()}
