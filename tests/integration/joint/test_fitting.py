"""Training on cells, and putting cells of other batches into the space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from cfm._core.errors import OptionError
from cfm.integration.features import Kind
from cfm.integration.joint import fitting
from cfm.integration.joint.table import Measured
from cfm.integration.joint.trained import Joint

N_CELLS = 90


@pytest.fixture(autouse=True)
def _few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "QUERY_EPOCHS", 3)


def test_a_seed_gives_the_same_weights(fit: Callable[..., Joint], weights: Callable[[Joint], dict[str, bytes]]) -> None:
    first, second, other = fit(), fit(), fit(seed=1)
    assert weights(first) == weights(second)
    assert weights(first) != weights(other)
    np.testing.assert_array_equal(first.model.posterior()[0], second.model.posterior()[0])


def test_random_states_of_the_user_are_left_alone(fit: Callable[..., Joint], joint: Joint) -> None:
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
    fit(epochs=1)
    joint.model.posterior()
    joint.model.weights()
    joint.imputed("rna", np.ones((N_CELLS, 3), bool))
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    numpy_after = np.random.get_state()  # noqa: NPY002
    assert numpy_after[0] == numpy_before[0]
    np.testing.assert_array_equal(numpy_after[1], numpy_before[1])


def test_the_state_of_the_user_does_not_matter(
    fit: Callable[..., Joint], weights: Callable[[Joint], dict[str, bytes]]
) -> None:
    first = weights(fit())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(12345)
        assert weights(fit()) == first


@pytest.mark.parametrize("kinds", [["rna"], ["protein"], ["atac"], ["protein", "atac"]])
def test_any_of_the_modalities(kinds: list[Kind], fit: Callable[..., Joint], parts: Mapping[Kind, Measured]) -> None:
    found = fit(epochs=1, parts={kind: parts[kind] for kind in kinds})
    vectors, deviations = found.model.posterior()
    assert vectors.shape == (N_CELLS, 20)
    assert np.isfinite(vectors).all()
    assert (deviations > 0).all()
    assert found.model.kinds == kinds


def test_vectors_of_a_model_are_read_too(fit: Callable[..., Joint], parts: Mapping[Kind, Measured]) -> None:
    extra = np.random.default_rng(0).normal(5, 3, (len(parts["rna"].rows), 7)).astype(np.float32)
    found = fit(epochs=1, parts={**parts, "rna": replace(parts["rna"], extra=extra)})
    reading = found.readings["rna"]
    inputs = reading.read(replace(parts["rna"], extra=extra))
    assert inputs.shape[1] == reading.dim == 27
    assert np.square(inputs[:, 20:]).mean() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("n", [4, 5, 129, 9])
def test_any_number_of_cells(n: int, fit: Callable[..., Joint], parts: Mapping[Kind, Measured]) -> None:
    # 129 cells are a step of 128 and one of a single cell.
    rows = np.arange(n) % len(parts["protein"].rows)
    counts = parts["protein"].counts[rows]
    own = replace(parts["protein"], counts=counts, totals=parts["protein"].totals[rows], rows=np.arange(n))
    found = fitting.fit({"protein": own}, np.array(["a", "b"] * n)[:n], n, seed=0, epochs=2, folder=None, device="cpu")
    assert np.isfinite(found.model.posterior()[0]).all()


# Cells of other batches


def test_cells_of_known_batches_keep_their_vectors(
    joint: Joint, parts: Mapping[Kind, Measured], batch: NDArray[np.str_]
) -> None:
    before = joint.model.posterior()[0]
    placed = fitting.place(joint, parts, batch, N_CELLS, seed=0)
    np.testing.assert_allclose(placed.model.posterior()[0], before, atol=1e-5)
    np.testing.assert_array_equal(joint.model.posterior()[0], before)


def test_cells_of_a_new_batch_get_vectors_and_others_keep_theirs(
    joint: Joint, parts: Mapping[Kind, Measured], batch: NDArray[np.str_], weights: Callable[[Joint], dict[str, bytes]]
) -> None:
    before, bits = joint.model.posterior()[0], weights(joint)
    new = batch.copy()
    new[60:] = "c"
    placed = fitting.place(joint, parts, new, N_CELLS, seed=0)
    vectors = placed.model.posterior()[0]
    assert placed.batches == ["a", "b", "c"]
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[:60], before[:60], atol=1e-5)
    assert weights(joint) == bits
    again = fitting.place(joint, parts, new, N_CELLS, seed=0)
    np.testing.assert_array_equal(again.model.posterior()[0], vectors)
    # What the model had learnt is there as it was, beside the columns of the new batch.
    held, old = placed.model.module.state_dict(), joint.model.module.state_dict()
    for name, tensor in old.items():
        same = held[name][tuple(map(slice, tensor.shape))]
        assert torch.equal(same, tensor), name


def test_all_cells_of_a_new_batch(joint: Joint, parts: Mapping[Kind, Measured]) -> None:
    placed = fitting.place(joint, parts, np.full(N_CELLS, "new"), N_CELLS, seed=0)
    assert placed.batches == ["a", "b", "new"]
    vectors = placed.model.posterior()[0]
    assert np.isfinite(vectors).all()
    assert np.corrcoef(vectors.ravel(), joint.model.posterior()[0].ravel())[0, 1] > 0.5


def test_one_modality_of_three(joint: Joint, parts: Mapping[Kind, Measured], batch: NDArray[np.str_]) -> None:
    placed = fitting.place(joint, {"protein": parts["protein"]}, batch, N_CELLS, seed=0)
    mask = np.zeros((N_CELLS, 3), bool)
    mask[:, 1] = True
    np.testing.assert_allclose(placed.model.posterior()[0], joint.model.posterior(mask)[0], atol=1e-5)


def test_features_in_another_order_beside_unknown_ones(
    joint: Joint, parts: Mapping[Kind, Measured], batch: NDArray[np.str_]
) -> None:
    mixed: dict[Kind, Measured] = {}
    for kind, part in parts.items():
        order = np.random.default_rng(0).permutation(part.counts.shape[1])
        counts = sp.csr_matrix(sp.hstack([part.counts[:, order], part.counts[:, :3]]))
        mixed[kind] = replace(part, counts=counts, names=np.r_[part.names[order], ["x", "y", "z"]])
    placed = fitting.place(joint, mixed, batch, N_CELLS, seed=0)
    np.testing.assert_allclose(placed.model.posterior()[0], joint.model.posterior()[0], atol=1e-5)
    assert placed.names["rna"].tolist() == parts["rna"].names.tolist()


def test_some_genes_are_not_there(
    joint: Joint, parts: Mapping[Kind, Measured], batch: NDArray[np.str_], said: list[str]
) -> None:
    rna = parts["rna"]
    fewer = replace(rna, counts=rna.counts[:, 30:], names=rna.names[30:])
    zero = rna.counts.toarray()
    zero[:, :30] = 0
    a = fitting.place(joint, {**parts, "rna": fewer}, batch, N_CELLS, seed=0).model.posterior()[0]
    assert said == ["INFO integrate: 75 % of the rna features of the saved model are here"]
    b = fitting.place(joint, {**parts, "rna": replace(rna, counts=sp.csr_matrix(zero))}, batch, N_CELLS, seed=0)
    np.testing.assert_allclose(a, b.model.posterior()[0], atol=1e-6)


def test_too_few_genes_are_refused(joint: Joint, parts: Mapping[Kind, Measured], batch: NDArray[np.str_]) -> None:
    rna = parts["rna"]
    renamed = replace(rna, names=np.array([f"ENSG{i}" for i in range(len(rna.names))]))
    with pytest.raises(
        OptionError,
        match=r"Of the 120 rna features of the saved model, 0% are here.*'ENSG0', 'ENSG1', 'ENSG2' in place of",
    ):
        fitting.place(joint, {**parts, "rna": renamed}, batch, N_CELLS, seed=0)
    half = replace(rna, counts=rna.counts[:, :59], names=rna.names[:59])
    with pytest.raises(OptionError, match="49% are here"):
        fitting.place(joint, {**parts, "rna": half}, batch, N_CELLS, seed=0)


def test_no_modality_that_the_model_knows(
    fit: Callable[..., Joint], parts: Mapping[Kind, Measured], batch: NDArray[np.str_]
) -> None:
    own = fit(epochs=1, parts={"protein": parts["protein"]})
    with pytest.raises(OptionError, match="knows protein, and here are rna, atac. Name them with modalities="):
        fitting.place(own, {"rna": parts["rna"], "atac": parts["atac"]}, batch, N_CELLS, seed=0)
