"""The Performer kernels without a GPU: their numbers in the emulation."""

from __future__ import annotations

import pytest

from .building import SANITIZED, lacking, mutants, program, run, survives

pytestmark = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))


@pytest.mark.parametrize("bf16", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["bf16", "fp16"])
@pytest.mark.parametrize("words", [(), ("races",)], ids=["plain", "races"])
def test_against_float64(bf16, words):
    # 17 shapes (races: 4), all scopes of the maximum, three thread orders that agree to the bit, late copies, NaN before.
    assert run(program("test_performer.cpp", bf16), *words).count(" ok\n") == 3


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp16"])
def test_no_access_out_of_bounds(bf16):
    assert run(program("test_performer.cpp", bf16, SANITIZED)).count(" ok\n") == 3


@pytest.mark.slow
@pytest.mark.parametrize(("file", "line", "text"), mutants("performer.cuh"))
def test_every_wait_is_needed(file, line, text, tmp_path):
    assert not survives(file, line, text, "test_performer.cpp", tmp_path)
