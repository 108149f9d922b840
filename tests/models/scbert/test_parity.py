"""The parity report passes on the fixtures in the repository, and notices what is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
CELLS = ROOT / "tests" / "data" / "fixtures" / "cells" / "cells.h5ad"


def report(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks" / "parity.py", "scbert", "--fixtures", folder, "--cells", CELLS]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_array_agrees(fixtures: Path) -> None:
    done = report(fixtures)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert ", 0 failed, " in lines[-1]
    assert ", 0 not looked at, " in lines[-1]
    uncovered = {line.split()[0] for line in lines if "not covered" in line}
    assert uncovered == {
        "pretrain/calls_before",
        "pretrain/calls_after",
        "finetune/redraw/projection_0",
        "finetune/redraw/projection_1",
        "finetune/lr_schedule",
    }


@pytest.mark.slow
def test_a_wrong_number_is_a_fail(fixtures: Path, tmp_path: Path) -> None:
    """A folder with some of the files only, one number of which is off."""
    for name in ("panglao_pretrain.pth", "genes.txt", "genes_wide.txt", "preprocess.npz"):
        shutil.copy(fixtures / name, tmp_path)
    with np.load(fixtures / "attention.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["layer1_colmean"] = changed["layer1_colmean"] + np.float32(1e-6)
    np.savez(tmp_path / "attention.npz", **changed)
    done = report(tmp_path)
    assert done.returncode == 1, done.stderr
    failed = [line.split()[0] for line in done.stdout.splitlines() if line.endswith("FAIL")]
    assert failed == ["attention/layer1_colmean"]
