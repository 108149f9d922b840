"""Attention summed over cells without a GPU: its numbers in the emulation."""

from __future__ import annotations

import pytest

from .building import SANITIZED, lacking, mutants, program, run, survives

pytestmark = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))


@pytest.mark.parametrize("bf16", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["bf16", "fp16"])
@pytest.mark.parametrize("words", [(), ("races",)], ids=["plain", "races"])
def test_against_float64(bf16, words):
    # 15 shapes (races: 6), three thread orders and two splits of the keys that agree to the bit, rows that sum to 1.
    assert run(program("test_gene_sums.cpp", bf16), *words).count(" ok\n") == 4


@pytest.mark.slow
def test_no_access_out_of_bounds():
    # Addresses do not depend on which of the two 16-bit dtypes stands there.
    bf16 = True
    assert run(program("test_gene_sums.cpp", bf16, SANITIZED)).count(" ok\n") == 4


@pytest.mark.slow
@pytest.mark.parametrize(("file", "line", "text"), mutants("gene_sums.cuh"))
def test_every_wait_is_needed(file, line, text, tmp_path):
    assert not survives(file, line, text, "test_gene_sums.cpp", tmp_path)
