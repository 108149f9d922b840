"""Attention summed over cells without a GPU: its numbers in the emulation, its registers from the compiler."""

from __future__ import annotations

import pytest

from cfm.kernels import compiler as nvrtc

from .building import SANITIZED, assembled, check_registers, lacking, mutants, program, run, survives

emulated = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
compiled = pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))

# Registers of a thread as NVRTC 13.0 gives them, the larger of bf16 and fp16; what the blocks meant for an SM leave room for.
REGISTERS = {
    "sm_80": {"gene_sums": 168},
    "sm_89": {"gene_sums": 168},
    "sm_90": {"gene_sums": 168},
    "sm_90a": {"gene_sums": 168},
    "sm_100a": {"gene_sums": 162},
    "sm_120": {"gene_sums": 165},
}
LIMITS = {"gene_sums": 168}

QUICK = [("sm_80", True), ("sm_90a", True)]
THOROUGH = [
    (architecture, bf16) for architecture in REGISTERS for bf16 in (True, False) if (architecture, bf16) not in QUICK
]


@emulated
@pytest.mark.parametrize("bf16", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["bf16", "fp16"])
@pytest.mark.parametrize("words", [(), ("races",)], ids=["plain", "races"])
def test_against_float64(bf16, words):
    # 15 shapes (races: 6), three thread orders and two splits of the keys that agree to the bit, rows that sum to 1.
    assert run(program("test_gene_sums.cpp", bf16), *words).count(" ok\n") == 4


@emulated
@pytest.mark.slow
def test_no_access_out_of_bounds():
    # Addresses do not depend on which of the two 16-bit dtypes stands there.
    bf16 = True
    assert run(program("test_gene_sums.cpp", bf16, SANITIZED)).count(" ok\n") == 4


@emulated
@pytest.mark.slow
@pytest.mark.parametrize(("file", "line", "text"), mutants("gene_sums.cuh"))
def test_every_wait_is_needed(file, line, text, tmp_path):
    assert not survives(file, line, text, "test_gene_sums.cpp", tmp_path)


@compiled
@pytest.mark.parametrize(
    ("architecture", "bf16"), QUICK + [pytest.param(*one, marks=pytest.mark.slow) for one in THOROUGH]
)
def test_registers(architecture, bf16):
    check_registers(assembled("gene_sums", bf16, architecture), REGISTERS[architecture], LIMITS)
