"""Several modalities in one space."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core import records
from cfm._core.errors import OptionError
from cfm._core.inputs import chosen_key
from cfm._core.logging import logger
from cfm.integration import (
    Batches,
    Kind,
    Modalities,
    Modality,
    batch_column,
    find_batches,
    find_modalities,
    warn_of_conditions,
)

from ._joint import Embedding, Training, joint_space
from ._scgpt import fine_tuned_modalities


def is_mudata(data: Any) -> bool:
    """Whether an object is a MuData; one who has such an object has imported mudata."""
    mudata = sys.modules.get("mudata")
    return mudata is not None and isinstance(data, mudata.MuData)


def integrate_modalities(
    mdata: Any,
    method: str,
    batch_key: str | None,
    condition_key: str | None,
    modalities: Mapping[str, str] | None,
    layers: Mapping[str, str] | None,
    impute: Sequence[Kind],
    embedding: Embedding,
    training: Training,
    key_added: str | None,
    copy: bool,
) -> Any:
    """`cfm.tl.integrate` of a MuData object."""
    if copy:
        mdata = mdata.copy()
    key = chosen_key(key_added, records.JOINT)
    if key in mdata.mod:
        raise OptionError(f"key_added={key!r} is the name of a modality, which obsm has a mask for. Type another.")
    found = find_modalities(mdata, modalities, layers)
    if training.reference is None and (absent := [kind for kind in impute if kind not in found.parts]):
        raise OptionError(f"impute={absent}: the modalities found are {list(found.parts)}. Type some of them.")
    batches = _batches(mdata, batch_key, condition_key, alone=training.reference is not None)
    rna = mdata.mod[found.parts["rna"].name] if "rna" in found.parts else None
    layer = None if layers is None else layers.get("rna")
    embedding = Embedding(embedding.model, embedding.device, embedding.options, embedding.where | {"layer": layer})
    if method == "scgpt":
        if impute or condition_key or training.devices > 1:
            raise OptionError("impute=, condition_key= and devices= go with method='scvi'. Leave them out.")
        vectors, facts = fine_tuned_modalities(found.parts, batches, rna, embedding, training)
        _write_vectors(mdata, key, found, vectors)
    else:
        joint, facts = joint_space(found.parts, batches, rna, embedding, training, impute)
        _write(mdata, key, found, joint)
        for kind in impute:
            imputed = predict(joint, kind, found.parts, found.n_cells)
            part = found.parts.get(kind)
            if part is not None:
                write_layers(mdata.mod[part.name], part, imputed)
            if part is None or len(part.rows) < found.n_cells:
                write_frames(mdata, kind, imputed)
    logger.info(
        "integrate: %s of %d cells in one space",
        ", ".join(f"{kind} ({len(part.rows):,})" for kind, part in found.parts.items()),
        found.n_cells,
    )
    facts |= {
        "method": "scgpt" if method == "scgpt" else "scvi",
        "modalities": {kind: part.name for kind, part in found.parts.items()},
        "batch_key": batch_key,
        "condition_key": condition_key,
        "seed": training.seed,
    }
    records.write_record(mdata.uns, key, records.make_record("cfm.tl.integrate", **facts))
    return mdata if copy else None


def _batches(mdata: Any, batch_key: str | None, condition_key: str | None, *, alone: bool) -> Batches:
    if batch_key is None:
        if condition_key is not None:
            raise OptionError("condition_key= says which differences between batches stay: type batch_key= too.")
        zeros = np.zeros(mdata.n_obs, np.int64)
        return Batches("", zeros, ["all"], zeros)
    keys = [key for key in (batch_key, condition_key) if key is not None]
    obs = pd.DataFrame({key: batch_column(mdata, key) for key in keys})
    batches = find_batches(obs, batch_key, condition_key, alone=alone)
    if condition_key is None:
        warn_of_conditions(mdata.obs, batches)
    return batches


def _write(mdata: Any, key: str, found: Modalities, joint: Any) -> None:
    """Vectors, weights, and where each modality alone puts its cells."""
    _write_vectors(mdata, key, found, joint.model.posterior()[0])
    kinds = joint.model.kinds
    mdata.obsm[records.WEIGHTS] = pd.DataFrame(joint.model.weights(), mdata.obs_names, kinds)
    for kind, part in found.parts.items():
        if kind in kinds:
            alone, _ = joint.model.posterior(_only(kinds, kind, found.n_cells))
            mdata.mod[part.name].obsm[key] = alone[part.rows]


def _write_vectors(mdata: Any, key: str, found: Modalities, vectors: NDArray[np.float32]) -> None:
    """Vectors of all cells; zeros where nothing was measured."""
    nothing = ~found.measured.any(axis=1)
    if nothing.any():
        logger.warning(
            "%d of %d cells have none of %s, and get zeros in obsm[%r]",
            int(nothing.sum()),
            found.n_cells,
            ", ".join(found.parts),
            key,
        )
    vectors[nothing] = 0
    mdata.obsm[key] = vectors


@dataclass(frozen=True)
class Imputed:
    """What is expected of the features in use of a modality, and its standard deviation, float32[n_cells, n_features] each."""

    names: NDArray[np.str_]
    means: NDArray[np.float32]
    deviations: NDArray[np.float32]


def predict(joint: Any, kind: Kind, parts: Mapping[Kind, Modality], n_cells: int) -> Imputed:
    """Predict a modality from the others; of cells that have no other, from itself; NaN of cells that have nothing."""
    others = np.zeros((n_cells, len(joint.kinds)), bool)
    for i, name in enumerate(joint.kinds):
        if name in parts and name != kind:
            others[parts[name].rows, i] = True
    others[~others.any(axis=1), joint.kinds.index(kind)] = True
    means, deviations = joint.imputed(kind, others)
    nothing = np.ones(n_cells, bool)
    nothing[np.concatenate([part.rows for name, part in parts.items() if name in joint.kinds])] = False
    means[nothing], deviations[nothing] = np.nan, np.nan
    return Imputed(joint.names[kind], means, deviations)


def write_layers(adata: AnnData, part: Modality, imputed: Imputed) -> None:
    """Write the layers of a modality."""
    place = dict(zip(part.features.tolist(), part.columns.tolist(), strict=True))
    columns = np.array([place.get(name, -1) for name in imputed.names.tolist()])
    there = np.flatnonzero(columns >= 0)
    for name, values in ((records.IMPUTED, imputed.means), (f"{records.IMPUTED}_sd", imputed.deviations)):
        layer = np.full(adata.shape, np.nan, np.float32)
        layer[:, columns[there]] = values[np.ix_(part.rows, there)]
        adata.layers[name] = layer


def write_frames(data: Any, kind: Kind, imputed: Imputed) -> None:
    """Write data frames of all cells to ``obsm``; files take no slash in the name of a column."""
    names = np.char.replace(imputed.names, "/", "_")
    if (changed := imputed.names[names != imputed.names]).size:
        logger.info("integrate: in obsm, / became _ in the names of %s", ", ".join(changed))
    for name, values in ((kind, imputed.means), (f"{kind}_sd", imputed.deviations)):
        data.obsm[f"{records.IMPUTED}_{name}"] = pd.DataFrame(values, data.obs_names, names)


def _only(kinds: Sequence[str], kind: str, n_cells: int) -> NDArray[np.bool_]:
    return np.tile(np.array([name == kind for name in kinds]), (n_cells, 1))
