"""The kernel in Triton, in its interpreter: needs no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def errors() -> dict[str, list[float]]:
    """Largest errors of the cases of interpreted.py: ours, plain torch's, and of the log-sum-exp."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("interpreted.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("known", ["none", "half", "edges", "zero"])
@pytest.mark.parametrize(("dtype", "least"), [("float32", 1e-6), ("float16", 5e-4), ("bfloat16", 1e-2)])
def test_against_float64(errors, dtype, least, known):
    # bfloat16 goes through float32 there, and the interpreter cuts where a GPU rounds.
    ours, plain, lse = errors[f"torch.{dtype} {known}"]
    assert ours <= max(2 * plain, least)
    assert lse < 2e-5


def test_through_the_setting(errors):
    whole, firsts = errors["through nn"]
    assert max(whole, firsts) < 2e-6


def test_what_is_in_one_cell_stays_there(errors):
    assert errors["neighbours unchanged"] == [1.0]
