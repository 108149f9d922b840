"""The network: ragged, invariant, and its heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cfm.models.scgpt import checkpoint, losses, perturbation
from cfm.models.scgpt.heads import Classifier
from cfm.models.scgpt.layout import Layout, layout_of
from cfm.models.scgpt.module import Inputs, ScgptNetwork
from cfm.models.scgpt.norms import DomainNorm, InputNorm

LENGTHS = (9, 1, 30, 4)


def inputs_for(network: ScgptNetwork, **more: Tensor) -> Inputs:
    draws = torch.Generator().manual_seed(0)
    n = sum(LENGTHS)
    ids = torch.randint(network.layout.n_tokens, (n,), generator=draws)
    values = torch.randint(1, 51, (n,), generator=draws).float()
    return Inputs(ids, values, torch.tensor([0, *np.cumsum(LENGTHS)]), **more)


def one_cell(inputs: Inputs, cell: int) -> Inputs:
    a, b = inputs.offsets[cell : cell + 2].tolist()
    return replace(
        inputs,
        ids=inputs.ids[a:b],
        values=inputs.values[a:b],
        offsets=torch.tensor([0, b - a]),
        batches=None if inputs.batches is None else inputs.batches[cell : cell + 1],
        n_known=None if inputs.n_known is None else inputs.n_known[cell : cell + 1],
    )


@pytest.fixture
def human(fixtures: Path) -> ScgptNetwork:
    return checkpoint.read(fixtures / "human").network


@pytest.fixture
def integration(fixtures: Path) -> ScgptNetwork:
    return checkpoint.read(fixtures / "integration", heads=2).network


@torch.inference_mode()
def test_the_last_layer_for_cls_alone_is_the_last_layer(human: ScgptNetwork) -> None:
    inputs = inputs_for(human)
    x = human.embed(human.encoder(inputs.ids), inputs)
    whole = human.encode(x, inputs)[inputs.offsets[:-1]]
    torch.testing.assert_close(human.first_tokens(x, inputs), whole, atol=2e-6, rtol=0)


@torch.inference_mode()
def test_a_cell_alone_and_among_others_has_the_same_bits(integration: ScgptNetwork) -> None:
    inputs = inputs_for(integration, batches=torch.tensor([2, 0, 1, 1]))
    together = integration(inputs)
    for cell in range(len(LENGTHS)):
        alone = integration(one_cell(inputs, cell))
        span = slice(*inputs.offsets[cell : cell + 2].tolist())
        assert torch.equal(alone.cells[0], together.cells[cell])
        assert torch.equal(alone.tokens, together.tokens[span])
        assert torch.equal(alone.expression.values, together.expression.values[span])
        assert torch.equal(alone.from_cell.non_zero, together.from_cell.non_zero[span])
        assert torch.equal(alone.batches[0], together.batches[cell])


def test_official_first_label_for_all_gives_other_vectors(
    integration: ScgptNetwork, official: dict[str, np.ndarray]
) -> None:
    """Official evaluation norms a chunk of cells by the batch of its first cell; here each goes by its own batch."""
    values = torch.from_numpy(official["integration/values"].astype(np.float32))
    genes = torch.from_numpy(official["integration/gene"].astype(np.int64))
    labels = torch.from_numpy(official["integration/encode_batch_labels"].astype(np.int64))
    offsets = torch.arange(len(genes) + 1) * genes.shape[1]
    theirs = official["integration/encode_batch_bs4"]
    with torch.inference_mode():
        cells = integration(Inputs(genes.flatten(), values.flatten(), offsets, labels)).cells
    ours = torch.nn.functional.normalize(cells, dim=1).numpy()
    leaders = np.arange(len(labels)) // 4 * 4
    right = labels.numpy() == labels.numpy()[leaders]
    np.testing.assert_allclose(ours[right], theirs[right], atol=5e-5)
    assert (~right).any()
    assert (np.abs(ours[~right] - theirs[~right]).max(1) > 1e-3).all()


def test_known_tokens_do_not_see_unknown_ones(human: ScgptNetwork) -> None:
    inputs = inputs_for(human, n_known=torch.tensor([5, 1, 20, 4]))
    known = inputs.known()
    with torch.inference_mode():
        mixed = human(inputs)
        spans = torch.tensor([0, *np.cumsum([5, 1, 20, 4])])
        plain = human(Inputs(inputs.ids[known], inputs.values[known], spans))
    torch.testing.assert_close(mixed.tokens[known], plain.tokens, atol=3e-6, rtol=0)
    torch.testing.assert_close(mixed.cells, plain.cells, atol=3e-6, rtol=0)


@torch.inference_mode()
def test_unknown_tokens_see_no_other_unknown_and_no_value(human: ScgptNetwork) -> None:
    inputs = inputs_for(human, n_known=torch.tensor([5, 1, 20, 4]))
    before = human(inputs).expression.values
    other = inputs.ids.clone()
    other[8] = (other[8] + 1) % human.layout.n_tokens  # the last, unknown token of the first cell
    values = torch.where(inputs.known(), inputs.values, 17.0)
    after = human(replace(inputs, ids=other, values=values)).expression.values
    unchanged = torch.arange(len(before)) != 8
    torch.testing.assert_close(after[unchanged], before[unchanged], atol=2e-6, rtol=0)
    assert (after[8] - before[8]).abs() > 1e-4


def test_prompting_with_the_cells_own_vector(human: ScgptNetwork) -> None:
    inputs = inputs_for(human, n_known=torch.tensor([5, 1, 20, 4]))
    with torch.inference_mode():
        first = human(inputs)
        second = human(inputs, first.cells)
        assert (second.expression.values - first.expression.values).abs().max() > 1e-3


def test_values_above_512_count_as_512(human: ScgptNetwork) -> None:
    with torch.inference_mode():
        vectors = human.value_encoder(torch.tensor([512.0, 513.0, 1e6, -2.0, -3.0]))
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.equal(vectors[3], vectors[4]), "there is no lower bound"


def test_distinct_values_once_equals_each_value(human: ScgptNetwork) -> None:
    values = torch.tensor([3.0, 50.0, -1.0, 3.0, -2.0, 50.0])
    with torch.inference_mode():
        once = human.value_encoder(values)
    torch.testing.assert_close(once, human.value_encoder(values).detach(), atol=1e-6, rtol=0)


def test_domain_norm_equals_torchs_of_each_domain() -> None:
    draws = torch.Generator().manual_seed(0)
    x, domains = torch.randn(50, 6, generator=draws), torch.randint(3, (50,), generator=draws)
    norm = DomainNorm(6, 3)
    trained = norm(x, domains)
    plain = [InputNorm(6) for _ in range(3)]
    for domain, reference in enumerate(plain):
        its_own = domains == domain
        torch.testing.assert_close(trained[its_own], reference(x[its_own]))
        torch.testing.assert_close(norm.bns[domain].running_var, reference.running_var)
    norm.eval()
    evaluated = norm(x, domains)
    for domain, reference in enumerate(plain):
        torch.testing.assert_close(evaluated[domains == domain], reference.eval()(x[domains == domain]))


def test_statistics_in_training_leave_out_pads(integration: ScgptNetwork, official: dict[str, np.ndarray]) -> None:
    """Official statistics run over the padded length. Ours over the tokens, whatever length others have."""
    genes = torch.from_numpy(official["integration/pad_gene"].astype(np.int64))
    values = torch.from_numpy(official["integration/pad_values"].astype(np.float32))
    valid = values != -2
    lengths = valid.sum(1)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    integration.train()
    integration(Inputs(genes[valid], values[valid], offsets, torch.full((len(genes),), 2)))
    ours = integration.dsbn.bns[2].running_mean.numpy()
    theirs = official["integration/pad_after_running_mean"]
    assert np.abs(ours - theirs).max() > 1e-3
    x = integration.encoder(genes[valid]) + integration.value_encoder(values[valid])
    start = checkpoint_mean(integration)
    np.testing.assert_allclose(ours, 0.9 * start + 0.1 * x.mean(0).detach().numpy(), atol=1e-5)


def checkpoint_mean(network: ScgptNetwork) -> np.ndarray:
    folder = Path(__file__).parents[2] / "data" / "fixtures" / "scgpt" / "integration"
    assert network.layout.n_domains == 3
    return torch.load(folder / "best_model.pt", weights_only=True)["dsbn.bns.2.running_mean"].numpy()


def test_the_discriminators_gradient_is_reversed() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    adversary = Classifier(6, 2, 3, adversary=True)
    adversary(x).square().sum().backward()
    reversed_gradient = x.grad.clone()
    x.grad = None
    adversary.adversary = False
    adversary(x).square().sum().backward()
    torch.testing.assert_close(reversed_gradient, -x.grad)


def test_losses_where_nothing_is_masked() -> None:
    """The official masked losses are NaN there, and end a training run."""
    nothing = torch.zeros(3, dtype=torch.bool)
    assert losses.masked_mse(torch.ones(3), torch.zeros(3), nothing) == 0
    assert losses.masked_non_zero_loss(torch.full((3,), 0.5), torch.ones(3), nothing) == 0


def test_predictions_do_not_hang_on_other_cells_unless_asked_to(fixtures: Path) -> None:
    network = checkpoint.read(fixtures / "perturbation", heads=2).network
    draws = torch.Generator().manual_seed(0)
    ids = torch.arange(20)
    control = torch.rand(5, 20, generator=draws) * (torch.rand(5, 20, generator=draws) > 0.5)
    flags = torch.zeros(5, 20, dtype=torch.int64)
    flags[:, 3] = 1
    all_genes = perturbation.predict(network, ids, control, flags)
    assert torch.equal(perturbation.predict(network, ids, control[:1], flags[:1])[0], all_genes[0])
    expressed = perturbation.predict(network, ids, control[:1], flags[:1], genes="expressed")
    assert (expressed[control[:1] == 0] == 0).all()
    unperturbed = perturbation.predict(network, ids, control, torch.zeros_like(flags))
    assert (unperturbed - all_genes).abs().max() > 1e-3


def test_what_a_network_needs_is_said(integration: ScgptNetwork, human: ScgptNetwork) -> None:
    with pytest.raises(ValueError, match="the batches have to be given"):
        integration(inputs_for(integration))
    other = ScgptNetwork(replace(human.layout, flags=False))
    with pytest.raises(ValueError, match="was not trained to generate"):
        other(inputs_for(other, n_known=torch.tensor([1, 1, 1, 1])))


def test_every_layout_is_told_by_its_tensors() -> None:
    """Whatever a network is made of, its tensors say so: no part is left out on reading."""
    base = Layout(n_tokens=9, dim=8, heads=2, hidden=12, layers=2)
    for change in (
        {},
        {"values": "category", "n_values": 53},
        {"values": "scaling"},
        {"flags": True, "query": "inner product"},
        {"n_batches": 3, "decoder_labels": True, "query": "inner product", "query_cells_labelled": True},
        {"n_batches": 2, "n_modalities": 4, "decoder_labels": True, "query": "inner product",
         "query_cells_labelled": True, "query_genes_labelled": True, "query_zeros": True},
        {"query": "concat query"},
        {"query": "sum query"},
        {"n_domains": 2, "decoder_zeros": True},
        {"n_domains": 2, "domain_affine": True},
        {"input_norm": True, "n_classes": 3, "class_layers": 2},
        {"n_adversary": 4, "adversary_layers": 3, "n_classes": 1, "class_layers": 1},
        {"n_perturbations": 3, "affine": True},
        {"n_perturbations": 3, "affine": True, "decoder_zeros": True},
    ):  # fmt: skip
        layout = replace(base, **change)
        shapes = {name: tuple(t.shape) for name, t in ScgptNetwork(layout).state_dict().items()}
        assert layout_of(shapes, heads=2) == layout
