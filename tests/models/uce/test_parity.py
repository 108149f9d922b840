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
    command = [sys.executable, ROOT / "benchmarks" / "parity.py", "uce", "--fixtures", folder, "--cells", CELLS]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_array_agrees(fixtures: Path) -> None:
    done = report(fixtures)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert ", 0 failed, " in lines[-1]
    assert ", 0 not looked at, " in lines[-1]
    assert not [line for line in lines if "not covered" in line]


def test_a_wrong_number_is_a_fail(copied: Path, fixtures: Path) -> None:
    """A folder with some of the arrays only, one number of which is off."""
    with np.load(fixtures / "hidden.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["official_embedding"] = changed["official_embedding"].copy()
    changed["official_embedding"][1, 3] += 1e-4
    np.savez(copied / "hidden.npz", **changed)
    done = report(copied)
    assert done.returncode == 1, done.stderr
    failed = [line.split()[0] for line in done.stdout.splitlines() if line.endswith("FAIL")]
    assert "hidden/official_embedding" in failed
    assert "hidden/proper_embedding" not in failed
