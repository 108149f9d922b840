"""Spaces that are trained on the cells at hand: RNA of several batches, or several modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cfm._core.errors import OptionError
from cfm._core.logging import logger
from cfm.integration import Batches, Kind, Modality
from cfm.integration.space import model_helps, most_variable

from ._vectors import embedded, embedded_by_species


@dataclass(frozen=True)
class Training:
    """How a space is trained, or where a trained one lies.

    Parameters
    ----------
    epochs
        Times through all cells, or None for as many as the number of cells asks for.
    seed
        For all that is drawn.
    save
        Folder for the model and for the state of the run.
    reference
        Folder of a saved model that takes the cells.
    devices
        Processes on the CPU, or GPUs.
    """

    epochs: int | None
    seed: int
    save: Path | None
    reference: Path | None
    devices: int

    def checked(self) -> Training:
        """Itself, if the values can be meant.

        Raises
        ------
        OptionError
            No number of epochs or devices, or options that exclude each other.
        """
        for name, value in (("epochs", self.epochs), ("devices", self.devices)):
            if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
                raise OptionError(f"{name}={value!r}: type a whole number from 1 on.")
        if self.reference is not None and (self.save is not None or self.epochs is not None):
            raise OptionError("reference= takes a trained model as it is: leave out save= and epochs=.")
        return self


@dataclass(frozen=True)
class Embedding:
    """What makes the vectors that the RNA side of a space reads.

    Parameters
    ----------
    model, device, options, where
        As in `cfm.tl.embed`; `where` has what says where counts and genes are.
    species
        Cells of each species, if there are several.
    """

    model: str | Path
    device: str | None
    options: dict[str, Any]
    where: dict[str, Any]
    species: dict[str, NDArray[np.int64]] | None = None

    def made(self, adata: AnnData) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Vectors, and all that was used."""
        if self.species is None:
            return embedded(adata, self.model, self.device, self.options, **self.where)
        return embedded_by_species(adata, self.species, self.model, self.device, self.options, **self.where)

    def of(self, adata: AnnData) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Vectors, and by which model."""
        vectors, facts = self.made(adata)
        return vectors, {name: facts[name] for name in ("source", "model", "model_digest")}


def joint_space(
    parts: Mapping[Kind, Modality],
    batches: Batches,
    rna: AnnData | None,
    embedding: Embedding,
    training: Training,
    impute: Sequence[Kind],
) -> tuple[Any, dict[str, Any]]:
    """Train a space, or place the cells in a saved one.

    Returns
    -------
    The `cfm.integration.joint.trained.Joint`, with what the modalities of `impute` need, and what was used.
    """
    from cfm.integration.joint import fitting, saved  # scvi-tools: seconds to import
    from cfm.integration.joint.parts import features_in_use, measured

    names = np.array(batches.names, str)[crossed(batches)]
    n_cells = len(names)
    if training.reference is not None:
        facts = saved.facts_of(training.reference)
        known = saved.read(training.reference)
        if unknown := [kind for kind in impute if kind not in known.names]:
            raise OptionError(f"impute={unknown}: the saved model knows {known.kinds}. Type some of them.")
        found = {
            kind: measured(part.counts, np.arange(part.counts.shape[1]), part.features, part.rows)
            for kind, part in parts.items()
            if kind in known.names
        }
        if "rna" in found and facts.get("embedding") and rna is not None:
            made, by = replace(embedding, model=facts["embedding"]["source"]).of(rna)
            _check_same(by, facts["embedding"])
            found["rna"] = replace(found["rna"], extra=made)
        joint = fitting.place(known, found, names, n_cells, seed=training.seed)
        return joint, {"reference": str(training.reference), "embedding": facts.get("embedding")}

    used: dict[str, Any] | None = None
    explained: dict[str, float] | None = None
    taken: dict[Kind, Any] = {}
    for kind, part in parts.items():
        vectors: NDArray[np.float32] | None = None
        if kind == "rna" and rna is not None:
            own = batches.of(part.rows)
            genes = most_variable(part.counts, own)
            columns = genes.columns
            made, by = embedding.of(rna)
            helps, explained = model_helps(genes.values, made, own)
            vectors, used = (made, by) if helps else (None, None)
        else:
            columns = features_in_use(kind, part.counts)
        taken[kind] = measured(part.counts, columns, part.features, part.rows, vectors)
    run = None if training.save is None else training.save / "run"
    joint = fitting.fit(
        taken, names, n_cells, seed=training.seed, epochs=training.epochs, folder=run, device=embedding.device,
        devices=training.devices,
    )  # fmt: skip
    if impute or training.save is not None:
        joint = joint.with_regressions(joint.kinds if training.save is not None else impute)
    facts = {"embedding": used, "explained": explained}
    if training.save is not None:
        saved.write(training.save, joint, facts)
        logger.info("integrate: the model is in %s; reference= takes it for new cells", training.save)
    return joint, facts


def crossed(batches: Batches) -> NDArray[np.int64]:
    """int64[n_cells]: batches that a network may tell apart.

    Those seen in a single stratum count as one, the first of them: what sets them apart cannot be told from the condition.
    """
    codes = batches.codes.copy()
    strata = [np.unique(batches.strata[codes == code]) for code in range(len(batches.names))]
    if len(np.unique(batches.strata)) > 1:
        alone = [code for code, seen in enumerate(strata) if len(seen) == 1]
        if alone:
            codes[np.isin(codes, alone)] = alone[0]
            logger.warning(
                "%d of %d batches have cells of one condition only; what sets these batches apart is not taken out",
                len(alone),
                len(batches.names),
            )
    return codes


def _check_same(used: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    if used["model_digest"] != then["model_digest"]:
        raise OptionError(
            f"The saved integration was trained on vectors of {then['model']} ({then['model_digest']}), and "
            f"{then['source']} is now {used['model_digest']}. Integrate again, or bring that model back."
        )
