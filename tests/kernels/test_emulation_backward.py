"""The backward kernels without a GPU: their numbers in the emulation, their registers from the compiler."""

from __future__ import annotations

import pytest

from cfm.kernels import compiler as nvrtc

from .building import SANITIZED, assembled, check_registers, lacking, mutants, program, run, survives

emulated = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
compiled = pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))

# Registers of a thread as NVRTC 13.0 gives them, the larger of bf16 and fp16; what the blocks meant for an SM leave room for.
REGISTERS = {
    "sm_80": {"varlen_bwd_delta": 22, "varlen_bwd_dkdv": 254, "varlen_bwd_dq": 246},
    "sm_89": {"varlen_bwd_delta": 22, "varlen_bwd_dkdv": 254, "varlen_bwd_dq": 246},
    "sm_90": {"varlen_bwd_delta": 24, "varlen_bwd_dkdv": 252, "varlen_bwd_dq": 246},
    "sm_90a": {"varlen_bwd_delta": 24, "varlen_bwd_dkdv": 252, "varlen_bwd_dq": 246},
    "sm_100a": {"varlen_bwd_delta": 22, "varlen_bwd_dkdv": 255, "varlen_bwd_dq": 214},
    "sm_120": {"varlen_bwd_delta": 20, "varlen_bwd_dkdv": 248, "varlen_bwd_dq": 206},
}
LIMITS = {"varlen_bwd_delta": 64, "varlen_bwd_dkdv": 255, "varlen_bwd_dq": 255}

QUICK = [("sm_80", True), ("sm_90a", True)]
THOROUGH = [
    (architecture, bf16) for architecture in REGISTERS for bf16 in (True, False) if (architecture, bf16) not in QUICK
]


@emulated
@pytest.mark.parametrize("bf16", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["bf16", "fp16"])
@pytest.mark.parametrize("words", [(), ("races",)], ids=["plain", "races"])
def test_against_float64(bf16, words):
    # 19 shapes (races: 8), three thread orders that agree to the bit, late copies, gradients full of NaN before.
    assert run(program("test_bwd.cpp", bf16), *words).count(" ok\n") == 3


@emulated
@pytest.mark.slow
def test_no_access_out_of_bounds():
    # Addresses do not depend on which of the two 16-bit dtypes stands there.
    bf16 = True
    assert run(program("test_bwd.cpp", bf16, SANITIZED)).count(" ok\n") == 3


@emulated
@pytest.mark.slow
@pytest.mark.parametrize(("file", "line", "text"), mutants("varlen_bwd.cuh", "prims_more.cuh"))
def test_every_wait_is_needed(file, line, text, tmp_path):
    assert not survives(file, line, text, "test_bwd.cpp", tmp_path)


@compiled
@pytest.mark.parametrize(
    ("architecture", "bf16"), QUICK + [pytest.param(*one, marks=pytest.mark.slow) for one in THOROUGH]
)
def test_registers(architecture, bf16):
    check_registers(assembled("varlen_bwd", bf16, architecture), REGISTERS[architecture], LIMITS)
