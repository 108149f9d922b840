"""A trained space of RNA alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData

from cfm._core.errors import OptionError
from cfm._core.inputs import announce_overwrite
from cfm.counts import CountSource, find_counts
from cfm.integration import Batches, Kind, Modality, all_counts

from ._joint import Embedding, Training, joint_space
from ._modalities import predict, write_frames, write_layers


def integrate_rna(
    adata: AnnData,
    compared: AnnData,
    batches: Batches,
    embedding: Embedding,
    training: Training,
    key: str,
    impute: Sequence[Kind],
    layer: str | None,
) -> dict[str, Any]:
    """Train on RNA alone, on the counts of `compared`, and write what it says."""
    if training.reference is None and (unknown := [kind for kind in impute if kind != "rna"]):
        raise OptionError(
            f"impute={unknown}: an AnnData object takes impute=['rna']. Other modalities are predicted with reference=, a space "
            "that was trained on them."
        )
    if not compared.var_names.is_unique:
        twice = compared.var_names[compared.var_names.duplicated()]
        raise OptionError(
            f"A trained space goes by the names of genes, and var_names has {len(twice):,} a second time, such as {twice[0]!r}. "
            "Type adata.var_names_make_unique() first."
        )
    source = find_counts(compared, layer=layer)
    rna = _as_modality(compared, source)
    joint, facts = joint_space({"rna": rna}, batches, adata, embedding, training, impute)
    announce_overwrite(adata, "obsm", key)
    adata.obsm[key] = joint.model.posterior()[0]
    for kind in impute:
        imputed = predict(joint, kind, {"rna": rna}, adata.n_obs)
        if kind == "rna":
            write_layers(adata, rna, imputed)
        else:
            write_frames(adata, kind, imputed)
    return facts | {"counts": source.where}


def _as_modality(adata: AnnData, source: CountSource) -> Modality:
    """Counts as a modality; those of raw are taken for the genes that the object has."""
    place = adata.var_names.get_indexer(source.var.index)
    there = np.flatnonzero(place >= 0)
    counts = all_counts(source)[:, there]
    names = source.var.index.to_numpy(str)[there]
    return Modality("rna", "X", counts, names, place[there].astype(np.int64), np.arange(adata.n_obs))
