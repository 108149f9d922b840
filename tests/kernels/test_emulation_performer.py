"""The Performer kernels without a GPU: their numbers in the emulation, their registers from the compiler."""

from __future__ import annotations

import pytest

from cfm.kernels import compiler as nvrtc

from .building import SANITIZED, assembled, check_registers, lacking, mutants, program, run, survives

emulated = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
compiled = pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))

# Registers of a thread as NVRTC 13.0 gives them, the larger of bf16 and fp16; what the blocks meant for an SM leave room for.
REGISTERS = {
    "sm_80": {
        "performer_key_max": 80,
        "performer_keys": 166,
        "performer_norms": 16,
        "performer_queries": 159,
        "performer_summary": 56,
    },
    "sm_89": {
        "performer_key_max": 80,
        "performer_keys": 166,
        "performer_norms": 16,
        "performer_queries": 158,
        "performer_summary": 56,
    },
    "sm_90": {
        "performer_key_max": 84,
        "performer_keys": 167,
        "performer_norms": 18,
        "performer_queries": 165,
        "performer_summary": 56,
    },
    "sm_90a": {
        "performer_key_max": 84,
        "performer_keys": 167,
        "performer_norms": 18,
        "performer_queries": 165,
        "performer_summary": 56,
    },
    "sm_100a": {
        "performer_key_max": 78,
        "performer_keys": 168,
        "performer_norms": 16,
        "performer_queries": 162,
        "performer_summary": 80,
    },
    "sm_120": {
        "performer_key_max": 70,
        "performer_keys": 167,
        "performer_norms": 14,
        "performer_queries": 157,
        "performer_summary": 64,
    },
}
LIMITS = {
    "performer_key_max": 128,
    "performer_keys": 168,
    "performer_norms": 64,
    "performer_queries": 168,
    "performer_summary": 128,
}

QUICK = [("sm_80", True), ("sm_90a", True)]
THOROUGH = [
    (architecture, bf16) for architecture in REGISTERS for bf16 in (True, False) if (architecture, bf16) not in QUICK
]


@emulated
@pytest.mark.parametrize("bf16", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["bf16", "fp16"])
@pytest.mark.parametrize("words", [(), ("races",)], ids=["plain", "races"])
def test_against_float64(bf16, words):
    # 15 shapes (races: 3), both scopes of the maximum, three thread orders that agree to the bit, late copies, NaN before.
    assert run(program("test_performer.cpp", bf16), *words).count(" ok\n") == 3


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp16"])
def test_no_access_out_of_bounds(bf16):
    assert run(program("test_performer.cpp", bf16, SANITIZED)).count(" ok\n") == 3


@emulated
@pytest.mark.slow
@pytest.mark.parametrize(("file", "line", "text"), mutants("performer.cuh"))
def test_every_wait_is_needed(file, line, text, tmp_path):
    assert not survives(file, line, text, "test_performer.cpp", tmp_path)


@compiled
@pytest.mark.parametrize(
    ("architecture", "bf16"), QUICK + [pytest.param(*one, marks=pytest.mark.slow) for one in THOROUGH]
)
def test_registers(architecture, bf16):
    check_registers(assembled("performer", bf16, architecture), REGISTERS[architecture], LIMITS)
