"""The parity report passes on the fixtures in the repository, and notices what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
CELLS = ROOT / "tests" / "data" / "fixtures" / "cells" / "cells.h5ad"


def report(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        ROOT / "benchmarks" / "parity.py",
        "scfoundation",
        "--fixtures",
        folder,
        "--cells",
        CELLS,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_array_agrees(folder: Path) -> None:
    done = report(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("117 passed, 0 failed, ")
    assert ", 0 not looked at, " in lines[-1]
    uncovered = {line.split()[0] for line in lines if "not covered" in line}
    gears = {name for name in uncovered if name.startswith(("gears/G_", "gears/gears_"))}
    assert uncovered - gears == {"edge/float32_input_values_first3", "edge/float32_input_dtype"}
    assert len(gears) == 9


@pytest.mark.slow
def test_a_wrong_number_is_a_fail(copied: Path, folder: Path) -> None:
    """A folder with some of the files only, one number of which is off."""
    for name in ("tokens.npz", "cell_embeddings.npz"):
        with np.load(folder / name) as arrays:
            changed = {key: arrays[key] for key in arrays.files}
        if name.startswith("cell"):
            changed["rde_all_a5"] = changed["rde_all_a5"] + np.float32(1e-3)
        np.savez(copied / name, **changed)
    done = report(copied)
    assert done.returncode == 1, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line.endswith("FAIL")] == [
        "cell_embeddings/rde_all_a5"
    ]
