"""The network: the product of experts, and what a modality that was not measured must not do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from torch.distributions import Normal, kl_divergence

from cfm.integration.joint import trained
from cfm.integration.joint.model import JointVI
from cfm.integration.joint.module import MEASURED, JointVAE, inputs_key
from cfm.integration.joint.quiet import quiet
from cfm.integration.joint.trained import Joint

KINDS = ("rna", "protein", "atac")


@pytest.fixture
def module() -> JointVAE:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return JointVAE({"rna": 30, "protein": 4, "atac": 12}, {"rna": 5, "protein": 3, "atac": 6}, 2, n_latent=3)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Eight cells with each of the ways to have at least one of three modalities, and one with none."""
    generator = torch.Generator().manual_seed(0)
    measured = torch.tensor([[i >> bit & 1 for bit in range(3)] for i in range(8)], dtype=torch.float32)
    found = {
        "X": torch.poisson(torch.full((8, 46), 2.0), generator=generator),
        "batch": torch.arange(8)[:, None] % 2,
        MEASURED: measured,
    }
    for kind, n in (("rna", 5), ("protein", 3), ("atac", 6)):
        found[inputs_key(kind)] = torch.randn(8, n, generator=generator)
    return found


def run(module: JointVAE, tensors: dict[str, torch.Tensor], seed: int = 0) -> tuple[Any, Any]:
    """Posteriors and the loss, with the same draws for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        found, _, loss = module(tensors)
    return found, loss


def test_the_product_is_the_closed_form(module: JointVAE) -> None:
    generator = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(8, 3, generator=generator, dtype=torch.float64)
    experts = {kind: Normal(draw(), (0.5 * draw()).exp()) for kind in KINDS}
    measured = torch.tensor([[i >> bit & 1 for bit in range(3)] for i in range(8)], dtype=torch.float64)
    found = module.product(experts, measured)
    assert found.mean.dtype == torch.float64
    for cell in range(8):
        # The density of N(0, 1) times those of the experts is a parabola in its logarithm: fit it through three points.
        points = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None]
        log = Normal(torch.zeros(3, dtype=torch.float64), 1.0).log_prob(points)
        for i, kind in enumerate(KINDS):
            if measured[cell, i]:
                log = log + Normal(experts[kind].mean[cell], experts[kind].stddev[cell]).log_prob(points)
        curvature = log[0] + log[2] - 2 * log[1]
        torch.testing.assert_close(found.variance[cell], -1 / curvature, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.mean[cell], (log[2] - log[0]) / 2 / -curvature, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.mean[0], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(found.stddev[0], torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("training", [True, False])
def test_what_was_not_measured_does_nothing(module: JointVAE, tensors: dict[str, torch.Tensor], training: bool) -> None:
    module.train(training)
    other = {name: tensor.clone() for name, tensor in tensors.items()}
    start = 0
    for i, (kind, size) in enumerate(zip(KINDS, (30, 4, 12), strict=True)):
        without = tensors[MEASURED][:, i] == 0
        other["X"][without, start : start + size] = 77
        other[inputs_key(kind)][without] = 9
        start += size
    for seed in range(4):  # other modalities are drawn to stand alone
        first, loss = run(module, tensors, seed)
        second, loss_again = run(module, other, seed)
        assert len(first["views"]) == (2 if training else 1)
        for a, b in zip(first["views"], second["views"], strict=True):
            assert torch.equal(a.mean, b.mean)
            assert torch.equal(a.stddev, b.stddev)
        assert torch.equal(loss.loss, loss_again.loss)


def test_what_was_measured_does_something(module: JointVAE, tensors: dict[str, torch.Tensor]) -> None:
    other = tensors | {"X": tensors["X"] + 1}
    assert not torch.equal(run(module, tensors)[1].loss, run(module, other)[1].loss)


def test_a_cell_of_which_nothing_was_measured_adds_nothing(module: JointVAE, tensors: dict[str, torch.Tensor]) -> None:
    module.eval()
    _, loss = run(module, tensors)
    assert loss.loss.isfinite()
    assert loss.reconstruction_loss["reconstruction_loss"][0] == 0
    assert loss.kl_local["kl_local"][0] == 0


def test_gradients_are_finite_and_reach_all_weights(module: JointVAE, tensors: dict[str, torch.Tensor]) -> None:
    module.train()
    _, loss = run(module, tensors)
    loss.loss.backward()
    for name, weight in module.named_parameters():
        if "px_r" in name or "px_dropout" in name or "l_encoder" in name or "py_" in name:
            continue  # heads of scvi-tools that the likelihoods here have no use for
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


def test_the_divergence_is_that_of_the_product(module: JointVAE, tensors: dict[str, torch.Tensor]) -> None:
    module.eval()
    found, loss = run(module, tensors)
    rna_or_atac = (tensors[MEASURED][:, 1] == 0) & (tensors[MEASURED].sum(1) > 0)
    expected = kl_divergence(found["views"][0], Normal(torch.zeros(1), 1.0)).sum(1)
    torch.testing.assert_close(loss.kl_local["kl_local"][rna_or_atac], expected[rna_or_atac])


def test_weights_of_modalities_sum_to_one_over_what_was_measured(joint: Joint, table: AnnData) -> None:
    found = joint.model.weights()
    measured = table.obsm[MEASURED] > 0
    assert found.shape == measured.shape
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert (found[~measured] == 0).all()
    assert (found[measured] > 0).all()
    np.testing.assert_allclose(found[40:50], [[1, 0, 0]] * 10)


def test_a_mask_is_never_more_than_what_was_measured(joint: Joint, table: AnnData) -> None:
    measured = table.obsm[MEASURED] > 0
    mean, deviation = joint.model.posterior()
    again, _ = joint.model.posterior(np.ones_like(measured))
    np.testing.assert_array_equal(mean, again)
    nothing, prior = joint.model.posterior(np.zeros_like(measured))
    assert (nothing == 0).all()
    assert (prior == 1).all()
    assert (deviation < 1).all()


def test_imputed_values_are_on_their_scales_and_the_same_each_time(
    joint: Joint, table: AnnData, parts: dict[str, Any]
) -> None:
    measured = table.obsm[MEASURED] > 0
    for kind in KINDS:
        means, deviations = joint.imputed(kind, measured)
        assert means.shape == deviations.shape == (len(measured), parts[kind].counts.shape[1])
        assert np.isfinite(means).all()
        assert (means >= 0).all()
        assert (deviations >= 0).all()
        assert deviations.max() > 0
        again, _ = joint.imputed(kind, measured)
        np.testing.assert_array_equal(means, again)
    assert joint.imputed("atac", measured)[0].max() <= 1
    rna = np.expm1(joint.imputed("rna", measured)[0])
    assert rna.sum(axis=1).max() < 2e4


def test_the_regression_from_most_of_what_a_cell_has(joint: Joint, table: AnnData) -> None:
    has = table.obsm[MEASURED] > 0
    learnt = joint.with_regressions(["protein", "atac"])
    assert set(learnt.regressions) == {("protein", ("rna",)), ("protein", ("atac",)), ("protein", ("rna", "atac"))}
    rna, both = np.tile([True, False, False], (len(has), 1)), np.tile([True, False, True], (len(has), 1))
    of_rna, deviations = learnt.imputed("protein", rna)
    assert not np.array_equal(of_rna, learnt.imputed("protein", both)[0])
    # As in a mosaic in which no cell has all three.
    mosaic = replace(learnt, regressions={("protein", ("rna",)): learnt.regressions["protein", ("rna",)]})
    found = mosaic.imputed("protein", both)
    np.testing.assert_array_equal(found[0], of_rna)
    np.testing.assert_array_equal(found[1], deviations)
    # A cell that has itself alone: the decoder.
    own = np.tile([False, True, False], (len(has), 1))
    np.testing.assert_array_equal(learnt.imputed("protein", own)[0], joint.imputed("protein", own)[0])


def test_too_few_cells_make_no_regression(joint: Joint, monkeypatch: pytest.MonkeyPatch, table: AnnData) -> None:
    both = int((table.obsm[MEASURED][:, :2] > 0).all(axis=1).sum())
    for fewest, there in ((both, True), (both + 1, False)):
        monkeypatch.setattr(trained, "FEWEST_CELLS", fewest)
        assert (("protein", ("rna",)) in joint.with_regressions(["protein"]).regressions) is there


def test_a_cell_is_the_same_alone_and_among_others(joint: Joint, table: AnnData) -> None:
    mean, _ = joint.model.posterior()
    imputed, _ = joint.imputed("protein", table.obsm[MEASURED] > 0)
    few = table[[3, 45, 80]].copy()
    with quiet():
        other = JointVI.load_query_data(few, joint.model, accelerator="cpu")
    other.is_trained_ = True
    np.testing.assert_allclose(other.posterior()[0], mean[[3, 45, 80]], atol=1e-5)
    found, _ = replace(joint, model=other).imputed("protein", few.obsm[MEASURED] > 0)
    np.testing.assert_allclose(found, imputed[[3, 45, 80]], rtol=1e-3, atol=1e-4)
