"""Fine-tuning of scGPT on real cells: losses, an interrupted run, the folder that is written, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

import cfm
from cfm import infer, models
from cfm.errors import CountsError, MissingKeyError, OptionError
from cfm.genes import match
from cfm.models.scgpt import ScgptModel
from cfm.models.scgpt.checkpoint import official_tensors
from cfm.train import finetune_cells, finetune_task
from cfm.train.finetune import fine_tune
from cfm.train.finetune_cells import VALIDATION, Cells, MiniBatches
from cfm.train.finetune_task import INTEGRATION, MULTIOMIC, FineTuning

DATA = Path(__file__).parents[1] / "data" / "fixtures"
SMALL = replace(INTEGRATION, epochs=3, batch_cells=8, learning_rate=3e-3)


@pytest.fixture
def base() -> ScgptModel:
    return models.load(DATA / "scgpt" / "integration", heads=2, device="cpu")


@pytest.fixture
def adata() -> AnnData:
    """48 real cells, two of them without genes of the model, in batches of 23, 22 and 3."""
    cells = ad.read_h5ad(DATA / "cells" / "cells.h5ad")
    cells.obs["donor"] = ["c"] * 3 + ["a", "b"] * 22 + ["a"]
    return cells


def cells_of(adata: AnnData, model: ScgptModel) -> Cells:
    donors = adata.obs["donor"].astype("category").cat
    found = match(adata.var, model.vocabulary, min_genes=1)
    names = tuple(donors.categories)
    return Cells.matched(sp.csr_array(adata.X), found, model, donors.codes.to_numpy(), names)


@pytest.fixture
def cells(adata: AnnData, base: ScgptModel) -> Cells:
    return cells_of(adata, base)


def vectors(adata: AnnData, folder: Path) -> np.ndarray:
    cfm.tl.embed(adata, model=folder, device="cpu", batch_key="donor")
    return np.asarray(adata.obsm["X_cfm"])


def losses(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("run/losses/*/metrics.csv")
    with path.open() as handle:
        return list(csv.DictReader(handle))


def test_training_lowers_the_losses(base: ScgptModel, cells: Cells, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in base.module.state_dict().items()}
    state = torch.random.get_rng_state()
    fine_tune(base, cells, tmp_path, replace(SMALL, epochs=8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.module.state_dict().items())
    for name in ("train_loss", "train_expression", "train_cell_expression", "val_expression", "val_loss"):
        found = [float(row[name]) for row in losses(tmp_path) if row[name]]
        assert len(found) == 8 + name.startswith("val")  # and once more for the weights that were kept
        assert min(found[4:8]) < 0.9 * found[0], name


def test_an_interrupted_run_goes_on_to_the_same_weights(
    base: ScgptModel, cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fine_tune(base, cells, tmp_path / "whole", SMALL)
    step, seen = finetune_task.HiddenValues.training_step, []

    def stops(task: finetune_task.HiddenValues, batch: finetune_cells.MiniBatch, number: int) -> torch.Tensor:
        seen.append(number)
        if len(seen) == 10:
            raise RuntimeError("power is off")
        return step(task, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(finetune_task.HiddenValues, "training_step", stops)
        with pytest.raises(RuntimeError, match="power is off"):
            fine_tune(base, cells, tmp_path / "cut", SMALL)
    assert seen[-1] > 0, "in the middle of an epoch that is not the first"
    assert 0 in seen[1:]
    assert not (tmp_path / "cut" / "best_model.pt").exists()
    cut = fine_tune(base, cells, tmp_path / "cut", SMALL)
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, cut.module.state_dict()[name]), name
    for epochs in (1, 3):  # more epochs later are the same run, longer
        longer = fine_tune(base, cells, tmp_path / "longer", replace(SMALL, epochs=epochs))
    assert torch.equal(longer.module.decoder.fc[0].weight, whole.module.decoder.fc[0].weight)
    other = fine_tune(base, cells, tmp_path / "other", replace(SMALL, seed=1))
    assert not torch.equal(other.module.decoder.fc[0].weight, whole.module.decoder.fc[0].weight)


def test_the_folder_gives_the_same_vectors(base: ScgptModel, cells: Cells, adata: AnnData, tmp_path: Path) -> None:
    tuned = fine_tune(base, cells, tmp_path / "tuned", SMALL)
    stored = torch.load(tmp_path / "tuned" / "best_model.pt", weights_only=True)
    assert set(stored) == set(official_tensors(tuned.module))
    args = json.loads((tmp_path / "tuned" / "args.json").read_text())
    assert args["batch_names"] == ["a", "b", "c"]
    assert args["include_zero_gene"]
    tokenizer = tuned.tokenizer(match(adata.var, tuned.vocabulary, min_genes=1), {"batch": cells.batches})
    batch = tokenizer(sp.csr_array(adata.X), 0)
    batch.cell_scalars["batch"] = cells.batches.astype(np.float32)
    assert set(batch.lengths) == {0, 61}, "all genes of a cell that has any"
    direct = infer.run(tuned, [batch], adata.n_obs, 4096).vectors
    found = vectors(adata, tmp_path / "tuned")
    np.testing.assert_array_equal(found, direct)
    np.testing.assert_allclose(np.linalg.norm(found[batch.lengths > 0], axis=1), 1, atol=1e-5)
    # A cell among others, in another order, or alone with those of its batch: one vector.
    order = np.random.default_rng(0).permutation(adata.n_obs)
    np.testing.assert_array_equal(vectors(adata[order].copy(), tmp_path / "tuned"), found[order])
    some = adata.obs["donor"] == "b"
    np.testing.assert_array_equal(vectors(adata[some].copy(), tmp_path / "tuned"), found[some])
    adata.obs["donor"] = "z"
    with pytest.raises(OptionError, match=r"holds \['z'\], and the model knows \['a', 'b', 'c'\]"):
        vectors(adata, tmp_path / "tuned")
    del adata.obs["donor"]
    with pytest.raises(MissingKeyError):
        vectors(adata, tmp_path / "tuned")


def test_from_a_pretrained_folder_without_any_head(adata: AnnData, tmp_path: Path, said: list[str]) -> None:
    """By its folder; fewer genes than the model knows, and fewer tokens than genes."""
    folder = DATA / "scgpt" / "human"
    cells = cells_of(adata, models.load(folder, device="cpu"))
    with cfm.settings.override(device="cpu"):
        tuned = fine_tune(folder, cells, tmp_path, replace(SMALL, epochs=1, max_length=50))
    assert len(tuned.vocabulary) == 440
    assert tuned.spec.max_tokens == 50
    assert any("grad_reverse_discriminator" in line for line in said)
    assert any(line.startswith("WARNING") and "highly variable" in line for line in said)
    assert any("kept epoch 1 of 1" in line for line in said)


def test_genes_and_proteins(base: ScgptModel, cells: Cells, tmp_path: Path) -> None:
    proteins = sp.csr_array(np.random.default_rng(0).poisson(3, (48, 4)).astype(np.float32))
    names = (*cells.names, *(f"p_{i}" for i in range(4)))
    both = replace(cells, counts=sp.csr_array(sp.hstack([cells.counts, proteins], format="csr")), names=names)
    tuned = fine_tune(base, both, tmp_path / "tuned", replace(MULTIOMIC, epochs=2))
    assert tuned.module.layout.n_modalities == 5
    assert tuned.module.dsbn is None
    assert set(tuned.modality_of_token.tolist()) == {0, 1, 2, 3}
    assert {"p_0", "p_3"} <= set(tuned.vocabulary.symbols)
    parts = losses(tmp_path / "tuned")[0].keys()
    assert {"train_expression", "train_cell_expression", "train_batches"} <= parts
    assert not {"train_zeros", "train_similarity"} & parts
    alone = replace(both, batches=np.zeros(48, np.int64), batch_names=("a",))
    tuned = fine_tune(base, alone, tmp_path / "alone", replace(MULTIOMIC, epochs=1))
    assert tuned.module.batch_encoder is None
    assert not tuned.obs_columns


# --- mini-batches


def test_minibatches_are_of_one_batch_and_shuffled(cells: Cells) -> None:
    def rows(epoch: int, apart: bool) -> list[list[int]]:
        made = MiniBatches(
            cells, train, lambda *_: None, modalities=None, labelled=True, apart=apart, size=8, share=0.4, seed=0,
            epoch=epoch,
        )  # fmt: skip
        return [part.tolist() for part in made.rows]

    train, held_out = cells.split(0.1, seed=0)
    assert sorted([*train, *held_out]) == sorted(set(range(48)) - set(np.flatnonzero(empty(cells))))
    assert np.bincount(cells.batches[train], minlength=3)[2] == 3, "a batch of three cells loses none"
    assert set(cells.batches[held_out]) == {0, 1}
    first, again, second = rows(0, True), rows(0, True), rows(1, True)
    assert first == again != second
    for epoch in (first, second, rows(VALIDATION, True), rows(0, False)):
        assert sorted(sum(epoch, [])) == sorted(train)
        assert max(map(len, epoch)) <= 8
    for epoch in (first, second):
        batches = [set(cells.batches[part]) for part in epoch]
        assert all(len(found) == 1 for found in batches)
        assert [min(found) for found in batches] != sorted(min(found) for found in batches)
    assert any(len(set(cells.batches[part])) > 1 for part in rows(0, False))


def empty(cells: Cells) -> np.ndarray:
    columns = np.array([name is not None for name in cells.names])
    return np.asarray(cells.counts[:, columns].sum(axis=1)).ravel() == 0


def test_batches_of_a_few_cells_train_all_the_same(base: ScgptModel, cells: Cells, tmp_path: Path) -> None:
    few = replace(cells, counts=cells.counts[:6], batches=np.array([0, 0, 0, 1, 1, 2]))
    tuned = fine_tune(base, few, tmp_path, replace(SMALL, epochs=1, batch_cells=2))
    assert all(torch.isfinite(tensor).all() for tensor in tuned.module.state_dict().values())
    assert [int(norm.num_batches_tracked) > 0 for norm in tuned.module.dsbn.bns] == [True] * 3


def test_a_batch_that_is_seen_once_has_its_own_norm(adata: AnnData, tmp_path: Path) -> None:
    """Officially its norm keeps nine tenths of the numbers it was made with, 0 and 1."""
    base = models.load(DATA / "scgpt" / "human", device="cpu")
    still = replace(SMALL, epochs=1, max_length=500, masked=0.0, learning_rate=1e-9)
    tuned = fine_tune(base, cells_of(adata, base), tmp_path, replace(still, dropout=0.0))
    once = tuned.module.dsbn.bns[2]
    assert int(once.num_batches_tracked) == 1
    batch = tuned.tokenizer(match(adata.var, tuned.vocabulary), {"batch": np.zeros(3)})(sp.csr_array(adata.X[:3]), 0)
    with torch.no_grad():
        x = tuned.module.encoder(torch.from_numpy(batch.ids).long())
        x = x + tuned.module.value_encoder(torch.from_numpy(batch.values))
    torch.testing.assert_close(once.running_mean, x.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(once.running_var, x.var(0), atol=1e-5, rtol=1e-4)


# --- what is refused


def test_one_batch_has_nothing_to_integrate(base: ScgptModel, cells: Cells, tmp_path: Path) -> None:
    one = replace(cells, batches=np.zeros(48, np.int64), batch_names=("only",))
    with pytest.raises(OptionError, match=r"All 48 cells are of one batch \('only'\)"):
        fine_tune(base, one, tmp_path / "model", SMALL)
    assert not (tmp_path / "model").exists()


def test_folders_of_something_else(base: ScgptModel, cells: Cells, tmp_path: Path) -> None:
    fine_tune(base, cells, tmp_path / "model", replace(SMALL, epochs=1), run=tmp_path / "run")
    with pytest.raises(OptionError, match="another recipe or other cells"):
        fine_tune(base, cells, tmp_path / "new", replace(SMALL, seed=3), run=tmp_path / "run")
    with pytest.raises(OptionError, match="holds a model already"):
        fine_tune(base, cells, tmp_path / "model", SMALL)
    with pytest.raises(OptionError, match="family mini"):
        fine_tune("cfm-mini", cells, tmp_path / "new", SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"names": c.names[1:]}, "do not go with"),
        (lambda c: {"batches": c.batches + 1}, "numbers from 0 to 2.*from 1 to 3"),
        (lambda c: {"batch_names": (*c.batch_names, "d")}, r"1 of 4 batches have no cells: \['d'\]"),
    ],
)
def test_cells_that_do_not_go_together(
    cells: Cells, change: Callable[[Cells], dict[str, object]], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        replace(cells, **change(cells))


def test_values_that_are_no_counts(cells: Cells, base: ScgptModel, tmp_path: Path) -> None:
    with pytest.raises(CountsError, match="below 0"):
        replace(cells, counts=-cells.counts)
    with pytest.raises(OptionError, match="No cell has a count"):
        fine_tune(base, replace(cells, counts=0 * cells.counts), tmp_path, SMALL)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"masked": 2}, {"learning_rate": 0}, {"seed": 1.5}])
def test_numbers_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        FineTuning(**wrong)
