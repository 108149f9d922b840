from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cfm.train.run import compatible_labels
from cfm.train.task import label_contrast, poisson_loss


def test_poisson_loss_is_minus_the_log_probability() -> None:
    torch.manual_seed(0)
    log_rate, counts = torch.randn(5, 7, dtype=torch.float64), torch.poisson(torch.full((5, 7), 2.0).double())
    log_probability = torch.distributions.Poisson(log_rate.exp()).log_prob(counts)
    expected = -(log_probability + torch.lgamma(counts + 1)).sum() / counts.sum()
    assert torch.allclose(poisson_loss(log_rate, counts), expected)


def test_contrast_equals_its_definition() -> None:
    torch.manual_seed(0)
    z = F.normalize(torch.randn(8, 4, dtype=torch.float64), dim=-1)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, -1, -1])
    files = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1])
    total, cells = 0.0, 0
    for i in range(6):
        partners = [j for j in range(6) if j != i and labels[j] == labels[i]]
        if not partners:
            continue
        seen = [j for j in range(6) if j != i and (labels[j] == labels[i] or files[j] == files[i])]
        others = torch.stack([z[i] @ z[j] / 0.5 for j in seen]).logsumexp(0)
        total += -sum((z[i] @ z[j] / 0.5 - others).item() for j in partners) / len(partners)
        cells += 1
    found = label_contrast(z, labels, files, torch.zeros(3, 3, dtype=torch.bool), 0.5)
    assert found.item() == pytest.approx(total / cells)


def test_a_wide_label_is_not_pushed_from_its_parts() -> None:
    z = F.normalize(torch.randn(4, 3), dim=-1).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1])
    compatible = compatible_labels(("T cell", "CD4+ T cell"), {"T cell": ["CD4+ T cell", "absent"]})
    assert compatible.tolist() == [[False, True], [True, False]]
    # Nothing is left to be told apart, so each cell's only partner has the whole share.
    assert label_contrast(z, labels, torch.zeros(4, dtype=torch.long), compatible, 0.1).item() == pytest.approx(
        0, abs=1e-6
    )


def test_without_partners_there_is_no_loss_and_no_nan() -> None:
    z = torch.randn(3, 4, requires_grad=True)
    labels, files, none = (
        torch.tensor([-1, 0, 1]),
        torch.zeros(3, dtype=torch.long),
        torch.zeros(2, 2, dtype=torch.bool),
    )
    loss = label_contrast(F.normalize(z, dim=-1), labels, files, none, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(z.grad).all()


def test_files_are_not_told_apart() -> None:
    """Moving all cells of one file together changes no pair that the loss pushes apart."""
    torch.manual_seed(0)
    z = F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=-1)
    labels, files = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    none = torch.zeros(2, 2, dtype=torch.bool)
    moved = z.clone()
    moved[3:] = -z[3:]
    assert torch.allclose(label_contrast(z, labels, files, none, 0.1), label_contrast(moved, labels, files, none, 0.1))
