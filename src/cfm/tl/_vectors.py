"""Vectors of cells that a public function goes on with: made by a model now, or before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cfm import infer, models
from cfm._core.errors import MissingKeyError, OptionError
from cfm._core.logging import logger
from cfm._core.settings import settings


def embedded(
    adata: AnnData, model: str | Path, device: str | None, options: dict[str, Any], **where: Any
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Vectors of a model, and what was used."""
    loaded = models.load(model, device=device, species=where["species"], **options)
    prepared = infer.prepare(adata, loaded, **where)
    result = infer.run(loaded, prepared.stream, adata.n_obs, settings.pack_tokens)
    logger.info("integrate: %s", prepared)
    if n_empty := int((result.lengths == 0).sum()):
        logger.warning(
            "%d of %d cells have no gene that the model reads: they say nothing about where they belong. Leave them out "
            "before cfm.tl.integrate",
            n_empty,
            adata.n_obs,
        )
    return result.vectors, prepared.facts() | {"source": str(model), "options": options or None}


def embedded_by_species(
    adata: AnnData,
    rows: Mapping[str, NDArray[np.int64]],
    model: str | Path,
    device: str | None,
    options: dict[str, Any],
    **where: Any,
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """`embedded`, the cells of each species by its own genes."""
    found = {
        species: embedded(adata[own], model, device, options, **(where | {"species": species}))
        for species, own in rows.items()
    }
    order = np.argsort(np.concatenate(list(rows.values())))
    every = [facts for _, facts in found.values()]
    same = {name: value for name, value in every[0].items() if all(facts[name] == value for facts in every)}
    own_facts = {
        species: {name: value for name, value in facts.items() if name not in same}
        for species, (_, facts) in found.items()
    }
    return np.concatenate([vectors for vectors, _ in found.values()])[order], same | {"species": own_facts}


def kept(adata: AnnData, use_rep: str, options: dict[str, Any]) -> NDArray[np.float32]:
    """Vectors that the object holds."""
    if options:
        raise OptionError(f"use_rep={use_rep!r} runs no model: leave out {', '.join(options)}.")
    if use_rep not in adata.obsm:
        raise MissingKeyError(
            f"obsm has no {use_rep!r}. It has {list(adata.obsm)}; cfm.tl.embed(adata) writes 'X_cfm'."
        )
    vectors = np.asarray(adata.obsm[use_rep], np.float32)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise OptionError(f"obsm[{use_rep!r}] has missing or infinite values. Leave these cells out.")
    return vectors
