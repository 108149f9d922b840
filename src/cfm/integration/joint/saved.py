"""A joint model in a folder: weights without code, and a page of JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cfm._core.errors import CheckpointError
from cfm._core.resources import atomic_path

from .fitting import untrained
from .inputs import Projection
from .regression import Regression
from .table import Reading
from .trained import Joint

CONFIG, WEIGHTS = "integration.json", "integration.safetensors"
_READING, _REGRESSION = "reading.", "regression."


def write(folder: Path, joint: Joint, facts: dict[str, Any]) -> None:
    """Write a model; `facts` are for whoever reads it again, such as the model whose vectors it takes."""
    tensors = {
        f"module.{name}": tensor.detach().cpu().contiguous() for name, tensor in joint.model.module.state_dict().items()
    }
    for kind, reading in joint.readings.items():
        own = {"feature_weights": reading.projection.feature_weights, "mean": reading.projection.mean}
        own |= {"components": reading.projection.components}
        if reading.extra_mean is not None:
            own["extra_mean"] = reading.extra_mean
        tensors |= {f"{_READING}{kind}.{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in own.items()}
    for i, regression in enumerate(joint.regressions.values()):
        tensors |= {f"{_REGRESSION}{i}.{name}": torch.from_numpy(array) for name, array in vars(regression).items()}
    config = {
        "facts": facts,
        "batches": joint.batches,
        "options": joint.options,
        "features": {kind: names.tolist() for kind, names in joint.names.items()},
        "measured_in": joint.measured_in,
        "regressions": [[kind, *sources] for kind, sources in joint.regressions],
        "scales": {kind: [float(r.projection.scale), float(r.extra_scale)] for kind, r in joint.readings.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS) as path:
        save_file(tensors, path)
    with atomic_path(folder / CONFIG) as path:
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def facts_of(folder: Path) -> dict[str, Any]:
    """The facts that `write` was given.

    Raises
    ------
    CheckpointError
        The folder holds no integration, or a damaged one.
    """
    return dict(_config(folder)["facts"])


def read(folder: Path) -> Joint:
    """A model as `write` left it.

    Raises
    ------
    CheckpointError
        The folder holds no integration, or a damaged one.
    """
    config = _config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
        names = {kind: np.array(own, str) for kind, own in config["features"].items()}
        readings = {kind: _reading(kind, tensors, *config["scales"][kind]) for kind in names}
        n_inputs = {kind: reading.dim for kind, reading in readings.items()}
        sources: Any = [(kind, tuple(others)) for kind, *others in config["regressions"]]
        regressions = {source: _regression(i, tensors) for i, source in enumerate(sources)}
        measured_in = {kind: list(map(str, config["measured_in"][kind])) for kind in names}
        model = untrained(names, n_inputs, config["batches"], config["options"])
        model.module.load_state_dict(
            {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("module.")}
        )
    except (SafetensorError, AttributeError, KeyError, RuntimeError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged or of another version: {error}. Integrate again."
        ) from error
    model.module.eval()
    model.is_trained_ = True
    return Joint(model, readings, names, config["options"], measured_in, regressions)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "nothing: there is no such folder"
        raise CheckpointError(
            f"{folder} holds no saved integration ({CONFIG}), but {there}. Type the folder that save= was given."
        )
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        return {**page, "facts": dict(page["facts"])}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Integrate again.") from error


def _reading(kind: Any, tensors: dict[str, torch.Tensor], scale: float, extra_scale: float) -> Reading:
    def own(name: str) -> NDArray[np.float32]:
        return tensors[f"{_READING}{kind}.{name}"].numpy()

    projection = Projection(kind, own("feature_weights"), own("mean"), own("components"), scale)
    extra = own("extra_mean") if f"{_READING}{kind}.extra_mean" in tensors else None
    return Reading(projection, extra, extra_scale)


def _regression(i: int, tensors: dict[str, torch.Tensor]) -> Regression:
    return Regression(**{field.name: tensors[f"{_REGRESSION}{i}.{field.name}"].numpy() for field in fields(Regression)})
