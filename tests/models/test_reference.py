"""Transfer of labels by nearest neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from cfm.errors import CheckpointError, OptionError
from cfm.models.reference import UNKNOWN, Reference

DIGEST = "0123456789ab"


def blobs(n: int = 40, seed: int = 0) -> tuple[NDArray[np.float32], list[str]]:
    """Two round clouds around (0, 10) and (10, 0)."""
    rng = np.random.default_rng(seed)
    centres = np.repeat([[0.0, 10.0], [10.0, 0.0]], n, axis=0)
    return (centres + rng.normal(size=(2 * n, 2))).astype(np.float32), ["up"] * n + ["right"] * n


def test_cells_get_the_label_of_their_neighbours() -> None:
    reference = Reference.of(*blobs(), n_neighbors=5)
    cells, labels = blobs(seed=1)
    got = reference.transfer(cells)
    assert (got.labels == labels).mean() > 0.95
    assert set(got.labels) <= {"up", "right", UNKNOWN}
    assert (got.confidence == 1).all()
    assert got.confidence.dtype == np.float32


def test_confidence_is_the_share_of_votes() -> None:
    vectors = np.array([[1, 0], [2, 0], [4, 0], [100, 0], [101, 0]], np.float32)
    reference = Reference.of(vectors, ["a", "b", "a", "c", "c"], n_neighbors=3)
    got = reference.transfer(np.array([[1.5, 0]], np.float32))
    assert got.confidence[0] == np.float32(2 / 3)


def wide(**changes: Any) -> Reference:
    """Four points on a line, two of each label, that reach everywhere."""
    fields: dict[str, Any] = {
        "vectors": np.array([[1, 0], [2, 0], [4, 0], [7, 0]], np.float32),
        "codes": np.array([0, 1, 1, 0], np.int32),
        "names": ("a", "b"),
        "ontology_ids": ("CL:1", ""),
        "reach": np.array([1e9, 1e9], np.float32),
        "n_neighbors": 4,
    }
    return Reference(**fields | changes)


@pytest.mark.parametrize(("at", "label"), [(0.5, "a"), (3.0, "b"), (7.0, "a")])
def test_a_draw_goes_to_the_nearer_voters(at: float, label: str) -> None:
    got = wide().transfer(np.array([[at, 0]], np.float32))
    assert (got.labels[0], got.confidence[0]) == (label, 0.5)


def test_one_vote_more_beats_any_nearness() -> None:
    reference = wide(codes=np.array([0, 1, 1, 1], np.int32))
    assert reference.transfer(np.array([[1, 0]], np.float32)).labels[0] == "b"


def test_beyond_the_reach_is_unknown_and_keeps_the_confidence() -> None:
    reference = Reference.of(*blobs(), n_neighbors=5)
    got = reference.transfer(np.array([[0, 10], [0, 40], [-200, 10]], np.float32))
    assert got.labels.tolist() == ["up", UNKNOWN, UNKNOWN]
    assert got.confidence.tolist() == [1, 1, 1]


def test_the_reach_is_that_of_the_winner() -> None:
    reference = wide(n_neighbors=1, reach=np.array([0.1, 100], np.float32))
    got = reference.transfer(np.array([[0.5, 0], [2.5, 0], [20, 0]], np.float32))
    assert got.labels.tolist() == [UNKNOWN, "b", UNKNOWN]


def test_reach_is_learnt_from_the_distances_between_the_labelled() -> None:
    vectors, labels = blobs()
    reference = Reference.of(vectors, labels, n_neighbors=5)
    distances = np.linalg.norm(vectors[:, None].astype(float) - vectors, axis=2)
    mean = np.sort(distances, axis=1)[:, 1:6].mean(axis=1)
    assert reference.names == ("right", "up")
    np.testing.assert_allclose(reference.reach[0], 1.25 * np.quantile(mean[40:], 0.99), rtol=1e-5)
    np.testing.assert_allclose(reference.reach[1], 1.25 * np.quantile(mean[:40], 0.99), rtol=1e-5)


def test_reach_may_be_learnt_from_other_cells_than_the_reference() -> None:
    vectors, labels = blobs()
    probes, probe_labels = blobs(n=200, seed=1)
    reference = Reference.of(vectors, labels, n_neighbors=5, probes=(3 * probes, np.array(probe_labels)))
    distances = np.sort(np.linalg.norm(3 * probes[:, None].astype(float) - vectors, axis=2), axis=1)
    mean = distances[:, :5].mean(axis=1)
    np.testing.assert_allclose(reference.reach[1], 1.25 * np.quantile(mean[:200], 0.99), rtol=1e-5)
    np.testing.assert_allclose(reference.reach[0], 1.25 * np.quantile(mean[200:], 0.99), rtol=1e-5)


def test_a_zero_vector_is_unknown_however_near() -> None:
    reference = wide(vectors=np.array([[0, 0], [0, 0], [0, 0], [0, 0]], np.float32))
    assert reference.transfer(np.zeros((2, 2), np.float32)).labels.tolist() == [UNKNOWN, UNKNOWN]


def test_no_cells() -> None:
    got = wide().transfer(np.empty((0, 2), np.float32))
    assert (len(got.labels), len(got.confidence)) == (0, 0)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_labelled_cells(n: int) -> None:
    with pytest.raises(OptionError, match=f"has {n} labelled cells; 5 neighbours need more"):
        Reference.of(np.ones((n, 2), np.float32), ["a"] * n, n_neighbors=5)


def test_a_cell_gets_the_same_label_alone_and_among_others() -> None:
    reference = Reference.of(*blobs(), n_neighbors=5)
    cells = np.random.default_rng(5).uniform(-2, 12, (50, 2)).astype(np.float32)
    together = reference.transfer(cells)
    alone = [reference.transfer(cells[i : i + 1]) for i in range(50)]
    assert together.labels.tolist() == [got.labels[0] for got in alone]
    assert together.confidence.tolist() == [got.confidence[0] for got in alone]


def test_write_and_read(tmp_path: Path) -> None:
    vectors, labels = blobs()
    made = Reference.of(vectors, labels, ontology_ids={"up": "CL:0000236"}, n_neighbors=7)
    made.write(tmp_path / "reference.safetensors", DIGEST)
    read = Reference.read(tmp_path / "reference.safetensors", DIGEST)
    assert (read.names, read.ontology_ids, read.n_neighbors) == (("right", "up"), ("", "CL:0000236"), 7)
    np.testing.assert_array_equal(read.codes, made.codes)
    np.testing.assert_array_equal(read.reach, made.reach)
    np.testing.assert_array_equal(read.vectors, vectors.astype(np.float16).astype(np.float32))
    assert read.vectors.dtype == np.float32


def test_made_with_other_weights(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    Reference.of(*blobs()).write(path, DIGEST)
    with pytest.raises(CheckpointError, match=r"made with other weights \(0123456789ab\).*\(ba9876543210\)"):
        Reference.read(path, "ba9876543210")


@pytest.mark.parametrize("damage", ["empty", "truncated", "pickle", "other tensors", "no metadata"])
def test_damaged_or_hostile_files(tmp_path: Path, damage: str, bomb: tuple[bytes, Path]) -> None:
    path = tmp_path / "reference.safetensors"
    Reference.of(*blobs()).write(path, DIGEST)
    data, created = bomb
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(path.read_bytes()[:100])
        case "pickle":
            path.write_bytes(data)
        case "other tensors":
            save_file({"weight": np.ones(3)}, path)
        case "no metadata":
            save_file(load_file(path), path)
    with pytest.raises(CheckpointError, match=r"reference.safetensors is no reference for annotation: .*Copy the file"):
        Reference.read(path, DIGEST)
    assert not created.exists()


@pytest.mark.parametrize(
    ("tensors", "facts"),
    [
        ({}, {"names": 5}),
        ({}, {"names": ["right"]}),
        ({}, {"ontology_ids": []}),
        ({}, {"n_neighbors": 0}),
        ({}, {"n_neighbors": 81}),
        ({"codes": np.zeros(79, np.int32)}, {}),
        ({"codes": np.full(80, 2, np.int32)}, {}),
        ({"codes": np.zeros(80, np.float32)}, {}),
        ({"reach": np.ones(3, np.float32)}, {}),
        ({"vectors": np.ones(80, np.float16)}, {}),
        ({"vectors": np.full((80, 2), np.nan, np.float16)}, {}),
    ],
    ids=["names no list", "one name short", "no ontology ids", "no neighbours", "more neighbours than cells",
         "one code short", "code of no name", "codes no integers", "reach of no label", "no vectors", "NaN"],
)  # fmt: skip
def test_files_that_contradict_themselves(
    tmp_path: Path, tensors: dict[str, NDArray[Any]], facts: dict[str, Any]
) -> None:
    path = tmp_path / "reference.safetensors"
    Reference.of(*blobs()).write(path, DIGEST)
    whole = {"names": ["right", "up"], "ontology_ids": ["", ""], "n_neighbors": 15, "weights": DIGEST}
    save_file(load_file(path) | tensors, path, metadata={"reference": json.dumps(whole | facts)})
    with pytest.raises(CheckpointError, match="reference.safetensors is no reference for annotation"):
        Reference.read(path, DIGEST)


def test_a_cell_between_the_labels_is_unknown() -> None:
    got = Reference.of(*blobs(), n_neighbors=5).transfer(np.array([[5, 5]], np.float32))
    assert got.labels[0] == UNKNOWN
    assert 0.5 < got.confidence[0] <= 1
