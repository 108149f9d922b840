"""The objective of fine-tuning: official losses and gradients, what is hidden, and networks made ready for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfm.errors import CheckpointError, OptionError
from cfm.models.scgpt import ScgptModel, checkpoint
from cfm.models.scgpt.adapting import adapted
from cfm.models.scgpt.layout import FUSED, THIRDS, our_name
from cfm.models.scgpt.module import Inputs, ScgptNetwork
from cfm.models.scgpt.objective import Weights, hidden, loss_parts
from cfm.models.scgpt.tokenizer import ScgptTokenizer
from cfm.models.scgpt.writing import write_folder

OFFICIAL = {
    "expression": "loss_mse", "zeros": "loss_nzlp", "cell_expression": "loss_mvc", "cell_zeros": "loss_mvc_nzlp",
    "similarity": "loss_ecs", "batches": "loss_dab", "loss": "loss_total",
}  # fmt: skip
"""Names of the fixtures' arrays."""


def tensors(official: dict[str, NDArray[Any]], start: str, *names: str) -> list[Tensor]:
    arrays = (official[f"{start}/{name}"] for name in names)
    return [torch.from_numpy(a.astype(np.int64) if a.dtype.kind in "iu" else a) for a in arrays]


def gaps(
    network: ScgptNetwork,
    parts: dict[str, Tensor],
    official: dict[str, NDArray[Any]],
    start: str,
    names: dict[str, str],
) -> tuple[float, float]:
    """Largest errors of losses and of gradients, as shares of the largest number of an array or of 1."""

    def gap(found: Tensor, expected: NDArray[Any]) -> float:
        return float(np.abs(found.detach().numpy() - expected).max() / max(1.0, np.abs(expected).max()))

    losses = max(gap(parts[part], official[f"{start}/{names[part]}"]) for part in parts)
    network.zero_grad()
    parts["loss"].backward()
    found, gradients = dict(network.named_parameters()), 0.0
    for name in (name for name in official if name.startswith(f"{start}/grad:")):
        ours = our_name(name.partition("grad:")[2])
        of = [ours] if FUSED not in ours else [ours.replace(FUSED, third) for third in THIRDS]
        gradients = max(gradients, gap(torch.cat([found[part].grad for part in of]), official[name]))
    return losses, gradients


def test_official_losses_of_integration(fixtures: Path, official: dict[str, NDArray[Any]]) -> None:
    genes, values, masked, labels = tensors(official, "integration", "gene", "values", "masked_values", "dab_labels")
    network = checkpoint.read(fixtures / "integration", heads=2).network.requires_grad_(True).train()
    batch = torch.full((len(genes),), int(official["integration/batch_label"]))
    offsets = torch.arange(len(genes) + 1) * genes.shape[1]
    found = network(Inputs(genes.flatten(), masked.flatten().float(), offsets, batch))
    parts = loss_parts(found, values.flatten().float(), masked.flatten() == -1, labels)
    assert set(parts) == set(OFFICIAL)
    losses, gradients = gaps(network, parts, official, "integration", OFFICIAL)
    assert losses < 5e-5
    assert gradients < 2e-4
    with pytest.raises(ValueError, match="batches have to be given"):
        loss_parts(found, values.flatten().float(), masked.flatten() == -1)


def test_official_losses_of_several_modalities(fixtures: Path, official: dict[str, NDArray[Any]]) -> None:
    genes, values, masked, modalities, batches = tensors(
        official, "multiomic", "gene", "values", "masked_values", "mod_types", "batch_labels"
    )
    found = checkpoint.read(fixtures / "multiomic", heads=2)
    network = found.network.requires_grad_(True).train()
    valid = genes != found.tokens.index(found.pad)
    offsets = torch.nn.functional.pad(valid.sum(1).cumsum(0), (1, 0))
    out = network(Inputs(genes[valid], masked[valid].float(), offsets, batches, modalities[valid]))
    parts = loss_parts(out, values[valid].float(), masked[valid] == -1, batches, Weights(similarity=0))
    names = OFFICIAL | {"expression": "loss_gep", "cell_expression": "loss_gepc"}
    assert set(parts) == {"expression", "cell_expression", "batches", "loss"}
    losses, gradients = gaps(network, parts, official, "multiomic", names)
    assert losses < 5e-5
    assert gradients < 2e-4


def test_a_share_of_genes_is_hidden_and_never_cls() -> None:
    """Officially ``<cls>`` is hidden too: in 4 of 10 cells at this share."""
    offsets = np.array([0, 1, 3, 14, 25, 126])
    seen = np.zeros(126, int)
    for seed in range(200):
        mask = hidden(offsets, 0.4, np.random.default_rng(seed))
        seen += mask
        assert np.add.reduceat(mask, offsets[:-1]).tolist() == [0, 0, 4, 4, 40]
    assert not seen[offsets[:-1]].any()
    assert seen[26:].min() > 40, "all genes have their turn"


def test_half_precision_does_not_reach_the_losses(fixtures: Path) -> None:
    network = checkpoint.read(fixtures / "integration", heads=2).network
    inputs = Inputs(torch.arange(60), torch.arange(60.0) % 51, torch.tensor([0, 30, 60]), torch.tensor([0, 1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = loss_parts(network(inputs), inputs.values, inputs.values > 20, inputs.batches)
    assert {part.dtype for part in parts.values()} == {torch.float32}


# --- networks


@pytest.fixture
def human(fixtures: Path) -> checkpoint.Checkpoint:
    return checkpoint.read(fixtures / "human")


def test_a_pretrained_network_gets_heads_for_batches(human: checkpoint.Checkpoint) -> None:
    genes = [token for token in human.tokens if token[0] != "<"][10:40]
    before = {name: tensor.clone() for name, tensor in human.network.state_dict().items()}
    found = adapted(human.network, human.tokens, genes[::-1], n_batches=4)
    assert found.tokens == [token for token in human.tokens if token in genes or token[0] == "<"]
    layout = found.network.layout
    assert (layout.n_tokens, layout.n_batches, layout.n_domains, layout.n_adversary) == (33, 4, 4, 4)
    after = found.network.state_dict()
    for name in ("encoder.enc_norm.bias", "value_encoder.linear1.weight", "layers.2.key.weight", "decoder.fc.2.weight"):
        assert torch.equal(after[name], before[name]), name
    rows = [human.tokens.index(token) for token in found.tokens]
    assert torch.equal(after["encoder.embedding.weight"], before["encoder.embedding.weight"][rows])
    heads = {name.split(".")[0] for name in found.fresh}
    assert heads == {"batch_encoder", "dsbn", "decoder", "mvc_decoder", "grad_reverse_discriminator"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in human.network.state_dict().items())
    assert found.network.encoder.embedding.weight.requires_grad


def test_a_fine_tuned_network_is_taken_whole(fixtures: Path) -> None:
    base = checkpoint.read(fixtures / "integration", heads=2)
    found = adapted(base.network, base.tokens, [token for token in base.tokens if token[0] != "<"], n_batches=3)
    assert found.fresh == ()
    assert found.tokens == base.tokens


def test_new_proteins_get_rows_and_a_modality(human: checkpoint.Checkpoint, tmp_path: Path) -> None:
    genes = [token for token in human.tokens if token[0] != "<"][:20]
    found = adapted(human.network, human.tokens, [*genes, "p_CD3", "p_CD4"], n_batches=2, zeros=False, domains=False)
    assert found.tokens[-2:] == ["p_CD3", "p_CD4"]
    new = found.network.encoder.embedding.weight[-2:]
    assert 0.05 < float(new.detach().abs().max()) <= 0.1
    layout = found.network.layout
    assert (layout.n_modalities, layout.n_domains, layout.query_genes_labelled) == (5, 0, True)
    settings = {"pad_token": "<pad>", "n_bins": 51, "max_seq_len": 4001, "batch_names": ["x", "y"]}
    write_folder(tmp_path / "model", found.network, found.tokens, found.modalities, settings)
    assert json.loads((tmp_path / "model" / "vocab_mod.json").read_text())["Protein"] == 0
    model = ScgptModel.load(tmp_path / "model", name="model", device=torch.device("cpu"), batch_key="b")
    assert model.obs_columns["batch"].names == ("x", "y")
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, found.network.state_dict()[name]), name
    one = adapted(human.network, human.tokens, [*genes, "p_CD3"], n_batches=1, zeros=False, domains=False)
    assert one.network.grad_reverse_discriminator is None
    settings["batch_names"] = ["x"]
    write_folder(tmp_path / "model", found.network, found.tokens, found.modalities, settings)
    with pytest.raises(CheckpointError, match="names 1 batches"):
        ScgptModel.load(tmp_path / "model", name="model", device=torch.device("cpu"))


def test_what_cannot_be_fine_tuned(human: checkpoint.Checkpoint, fixtures: Path) -> None:
    with pytest.raises(OptionError, match=r"1 of 2 genes.*'nope'"):
        adapted(human.network, human.tokens, [human.tokens[0], "nope"], n_batches=2)
    other = checkpoint.read(fixtures / "perturbation", heads=2)
    with pytest.raises(OptionError, match="predicts perturbations"):
        adapted(other.network, other.tokens, other.tokens[:3], n_batches=2)


def test_settings_of_a_folder_are_checked(fixtures: Path, tmp_path: Path) -> None:
    base = checkpoint.read(fixtures / "integration", heads=2)
    good = {"pad_token": "<pad>", "n_bins": 51, "max_seq_len": 61}
    for wrong in ({"include_zero_gene": 1}, {"batch_names": "ab"}, {"cls_value": "0"}):
        write_folder(tmp_path, base.network, base.tokens, [], good | wrong)
        with pytest.raises(CheckpointError, match=next(iter(wrong))):
            ScgptModel.load(tmp_path, name="model", device=torch.device("cpu"))


def test_modalities_are_binned_apart() -> None:
    import scipy.sparse as sp

    counts = sp.csr_array(np.array([[1.0, 2, 3, 0, 100, 200, 300]]))
    tokens, modality = np.arange(1, 8, dtype=np.int32), np.array([3, 1, 1, 1, 1, 0, 0, 0])
    together = ScgptTokenizer(tokens, 8, 0, 0.0, 50, 100)(counts, 0).values
    apart = ScgptTokenizer(tokens, 8, 0, 0.0, 50, 100, apart=modality)(counts, 0).values
    assert apart.tolist()[1:4] == apart.tolist()[4:]
    assert apart[3] == 50 > together[3]
