"""A run that was stopped goes on, and what its file may do."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from cfm._core.errors import CheckpointError
from cfm.integration.features import Kind
from cfm.integration.joint import training
from cfm.integration.joint.table import Measured
from cfm.integration.joint.trained import Joint

Fit = Callable[..., Joint]
Weights = Callable[[Joint], dict[str, bytes]]


class Stop(Exception):
    """What stops a run here."""


def stop_in(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Runs stop at the start of an epoch, or go through to their end with -1."""

    def on_train_epoch_start(self: training._Seeds, trainer: Trainer, *_: object) -> None:
        if trainer.current_epoch == epoch:
            raise Stop
        before(self, trainer)

    before = _AS_IT_IS
    monkeypatch.setattr(training._Seeds, "on_train_epoch_start", on_train_epoch_start)


_AS_IT_IS = training._Seeds.on_train_epoch_start


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    fit: Fit, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    whole = fit(epochs=4)
    for epoch in (1, 3):
        stop_in(monkeypatch, epoch)
        with pytest.raises(Stop):
            fit(epochs=4, folder=tmp_path)
        assert (tmp_path / "last.ckpt").is_file()
    stop_in(monkeypatch, -1)
    resumed = fit(epochs=4, folder=tmp_path)
    assert weights(resumed) == weights(whole)
    np.testing.assert_array_equal(resumed.model.posterior()[0], whole.model.posterior()[0])
    going_on = f"INFO going on with the run in {tmp_path}"
    assert [line for line in said if "the run" in line] == [going_on, going_on]


def test_a_run_that_is_over_is_not_run_again(
    fit: Fit, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(folder=tmp_path)
    stop_in(monkeypatch, 0)
    assert weights(fit(folder=tmp_path)) == weights(whole)


@pytest.mark.parametrize("other", ["seed", "epochs", "batch", "counts"])
def test_another_run_starts_anew(
    other: str, fit: Fit, weights: Weights, tmp_path: Path, parts: Mapping[Kind, Measured], batch: np.ndarray,
    said: list[str],
) -> None:  # fmt: skip
    fit(folder=tmp_path)
    more = parts["rna"].counts.copy()
    more.data[0] += 1
    given = {
        "seed": {"seed": 1},
        "epochs": {"epochs": 3},
        "batch": {"batch": batch[::-1].copy()},
        "counts": {
            "parts": {**parts, "rna": Measured(more, parts["rna"].totals, parts["rna"].rows, parts["rna"].names)}
        },
    }[other]
    found = fit(folder=tmp_path, **given)
    assert f"INFO the run in {tmp_path} was of other cells or settings; this one starts anew" in said
    assert weights(found) == weights(fit(**given))


@pytest.mark.slow
def test_a_killed_process(fit: Fit, weights: Weights, tmp_path: Path) -> None:
    """A process that is killed, and one that goes on."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "import numpy as np, scipy.sparse as sp\n"
        "from pathlib import Path\n"
        "import cfm\n"
        "from cfm.integration.joint import fitting, training\n"
        "from cfm.integration.joint.table import Measured\n"
        "cfm.settings.progress = False\n"
        "counts = sp.csr_matrix(np.random.default_rng(0).poisson(3, (40, 6)).astype(np.float32))\n"
        "totals = np.asarray(counts.sum(axis=1)).ravel()\n"
        "part = Measured(counts, totals, np.arange(40), np.array(list('abcdef')))\n"
        "folder, wait = Path(sys.argv[1]), sys.argv[2] == 'wait'\n"
        "if wait:\n"
        "    before = training._Seeds.on_train_epoch_start\n"
        "    def slow(self, trainer, *rest):\n"
        "        if trainer.current_epoch == 2:\n"
        "            print('waiting', flush=True)\n"
        "            time.sleep(600)\n"
        "        before(self, trainer)\n"
        "    training._Seeds.on_train_epoch_start = slow\n"
        "joint = fitting.fit({'protein': part}, np.array(['a', 'b'] * 20), 40, seed=0, epochs=4, folder=folder,\n"
        "                    device='cpu')\n"
        "np.save(sys.argv[3], joint.model.posterior()[0])\n"
    )
    command = [sys.executable, str(script)]
    first = subprocess.Popen(
        [*command, str(tmp_path / "run"), "wait", "x.npy"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert any(line.startswith("waiting") for line in first.stdout)
    finally:
        first.kill()
        first.communicate()
    assert not (tmp_path / "x.npy").exists()
    subprocess.run([*command, str(tmp_path / "run"), "go on", "resumed.npy"], cwd=tmp_path, check=True)
    subprocess.run([*command, str(tmp_path / "fresh"), "go on", "whole.npy"], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "resumed.npy"), np.load(tmp_path / "whole.npy"))


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_state_runs_no_code(fit: Fit, tmp_path: Path) -> None:
    fit(folder=tmp_path)
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for write in (torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))):
        write({**held, "evil": Evil(tmp_path / "ran")}, tmp_path / "last.ckpt")
        with pytest.raises(CheckpointError, match=r"last.ckpt, the state of a run.*Delete it, and the run starts anew"):
            fit(folder=tmp_path)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"nonsense"])
def test_a_damaged_state(content: bytes, fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged or of another version.*Delete it"):
        fit(folder=tmp_path)


def test_a_state_that_was_cut_off(fit: Fit, tmp_path: Path) -> None:
    fit(folder=tmp_path)
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        fit(folder=tmp_path)


def test_nothing_is_written_elsewhere(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fit(folder=tmp_path / "run")
    fit()
    assert not list((tmp_path / "here").iterdir())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("n_cells", [1, 3, 50, 256, 1280, 100_000])
@pytest.mark.parametrize(("n_batches", "wanted"), [(1, training.STEPS), (2, training.STEPS_OF_BATCHES)])
def test_how_many_epochs(n_cells: int, n_batches: int, wanted: int) -> None:
    steps = -(-n_cells // training._batch_size(n_cells))
    epochs = training.epochs_for(n_cells, n_batches)
    assert epochs >= training.FEWEST_EPOCHS
    assert epochs * steps >= wanted
    assert epochs == training.FEWEST_EPOCHS or (epochs - 1) * steps < wanted
