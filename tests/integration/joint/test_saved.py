"""A model in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from cfm._core.errors import CheckpointError
from cfm.integration.joint import saved
from cfm.integration.joint.trained import Joint


@pytest.fixture
def written(tmp_path: Path, joint: Joint) -> Path:
    saved.write(tmp_path / "model", joint, {"embedding": None, "number": 3})
    return tmp_path / "model"


def test_a_model_comes_back(
    written: Path, joint: Joint, table: object, weights: Callable[[Joint], dict[str, bytes]]
) -> None:
    again = saved.read(written)
    assert weights(again) == weights(joint)
    assert again.batches == joint.batches
    assert again.options == joint.options
    assert list(again.names) == list(joint.names)
    for kind, reading in joint.readings.items():
        np.testing.assert_array_equal(again.names[kind], joint.names[kind])
        np.testing.assert_array_equal(again.readings[kind].projection.components, reading.projection.components)
        assert again.readings[kind].projection.scale == reading.projection.scale
    assert saved.facts_of(written) == {"embedding": None, "number": 3}


def test_latents_are_the_same(written: Path, joint: Joint, parts: dict, batch: np.ndarray) -> None:
    from cfm.integration.joint.fitting import place

    placed = place(saved.read(written), parts, batch, len(batch), seed=0)
    np.testing.assert_allclose(placed.model.posterior()[0], joint.model.posterior()[0], atol=1e-6)


def test_what_is_left_of_a_modality_comes_back(tmp_path: Path, joint: Joint, parts: dict, batch: np.ndarray) -> None:
    """Cells that lack a modality get the prediction that they had among the training cells."""
    from cfm.integration.joint.fitting import place

    learnt = joint.with_regressions(joint.kinds)
    saved.write(tmp_path / "model", learnt, {})
    again = saved.read(tmp_path / "model")
    assert again.measured_in == learnt.measured_in
    assert list(again.regressions) == list(learnt.regressions)
    for source, regression in learnt.regressions.items():
        for name, array in vars(regression).items():
            np.testing.assert_array_equal(array, getattr(again.regressions[source], name))
    measured = np.zeros((len(batch), 3), bool)
    measured[parts["rna"].rows, 0] = True
    expected = learnt.imputed("protein", measured)
    placed = place(again, {"rna": parts["rna"]}, batch, len(batch), seed=0)
    for found, before in zip(placed.imputed("protein", measured), expected, strict=True):
        np.testing.assert_allclose(found, before, atol=1e-4)


@pytest.mark.parametrize("name", ["measured_in", "regressions"])
def test_a_page_of_an_older_version(written: Path, name: str) -> None:
    page = json.loads((written / "integration.json").read_text(encoding="utf-8"))
    del page[name]
    (written / "integration.json").write_text(json.dumps(page), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"of another version: '{name}'. Integrate again"):
        saved.read(written)


def test_there_is_nothing_that_runs_code(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == ["integration.json", "integration.safetensors"]
    json.loads((written / "integration.json").read_text(encoding="utf-8"))
    with safe_open(written / "integration.safetensors", "numpy") as tensors:
        assert len(list(tensors.keys())) > 10


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no such folder. Type the folder that save= was given"):
        saved.read(tmp_path / "none")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file.txt").touch()
    with pytest.raises(CheckpointError, match=r"holds no saved integration \(integration.json\), but \['file.txt'\]"):
        saved.facts_of(tmp_path / "other")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "{}", "null", "\x00\x01"])
def test_a_damaged_page(written: Path, text: str) -> None:
    (written / "integration.json").write_text(text, encoding="utf-8")
    for call in (saved.read, saved.facts_of):
        with pytest.raises(CheckpointError, match=r"is damaged.*Integrate again"):
            call(written)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_weights_that_were_cut_off(written: Path, share: float) -> None:
    path = written / "integration.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        CheckpointError, match=r"integration.safetensors is damaged or of another version.*Integrate again"
    ):
        saved.read(written)


def test_no_weights(written: Path) -> None:
    (written / "integration.safetensors").unlink()
    with pytest.raises(CheckpointError, match="damaged or of another version"):
        saved.read(written)


@pytest.mark.parametrize(
    "change",
    [
        lambda page: page.pop("batches"),
        lambda page: page["batches"].append("one more"),
        lambda page: page["features"]["protein"].pop(),
        lambda page: page["features"].pop("protein"),
        lambda page: page["scales"].pop("rna"),
        lambda page: page.update(options={"no_such": 1}),
        lambda page: page.update(features=3),
    ],
    ids=["no batches", "a batch more", "a protein less", "no proteins", "no scale", "unknown option", "no features"],
)
def test_a_page_that_does_not_go_with_the_weights(written: Path, change: Callable[[dict], object]) -> None:
    path = written / "integration.json"
    page = json.loads(path.read_text(encoding="utf-8"))
    change(page)
    path.write_text(json.dumps(page), encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged or of another version"):
        saved.read(written)
