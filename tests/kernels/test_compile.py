"""The kernels compile for every architecture that they are for, into what their text promises. Needs no GPU and no driver."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import harness
import pytest

from cfm.kernels import compiler, sources
from cfm.kernels.sources import Unit, entries, forward_unit, included, text, units

pytestmark = pytest.mark.skipif(compiler.missing() is not None, reason=str(compiler.missing()))

ARCHITECTURES = (*sources.ARCHITECTURES, "sm_100a")
QUICK = ("sm_80", "sm_90a")
RECORDED = "13.0"
"""Version of the compiler that the recorded registers are of."""

# Registers of a thread, by kernel and architecture, the larger of bf16 and fp16, as CUDA 13.0 gave them out. More than this should
# be a decision: what the blocks meant for a multiprocessor leave room for stands first.
REGISTERS = {
    "varlen_fwd 64": (168, {"sm_80": 168, "sm_89": 168, "sm_90a": 168, "sm_100a": 168, "sm_120": 168}),
    "varlen_fwd 128": (255, {"sm_80": 255, "sm_89": 255, "sm_100a": 255, "sm_120": 255}),
    # At the launch; the warpgroups then trade theirs for 24 and 240.
    "varlen_fwd_sm90": (168, {"sm_90a": 168}),
    "varlen_bwd_delta": (64, {"sm_80": 22, "sm_89": 22, "sm_90a": 24, "sm_100a": 22, "sm_120": 20}),
    "varlen_bwd_dkdv": (255, {"sm_80": 254, "sm_89": 254, "sm_90a": 252, "sm_100a": 255, "sm_120": 248}),
    "varlen_bwd_dq": (255, {"sm_80": 246, "sm_89": 246, "sm_90a": 246, "sm_100a": 214, "sm_120": 206}),
    "gene_sums": (168, {"sm_80": 168, "sm_89": 168, "sm_90a": 168, "sm_100a": 162, "sm_120": 165}),
    "performer_key_max": (128, {"sm_80": 80, "sm_89": 80, "sm_90a": 84, "sm_100a": 78, "sm_120": 70}),
    "performer_keys": (168, {"sm_80": 166, "sm_89": 166, "sm_90a": 167, "sm_100a": 168, "sm_120": 168}),
    "performer_norms": (64, {"sm_80": 16, "sm_89": 16, "sm_90a": 18, "sm_100a": 16, "sm_120": 14}),
    "performer_queries": (168, {"sm_80": 159, "sm_89": 158, "sm_90a": 165, "sm_100a": 162, "sm_120": 157}),
    "performer_summary": (128, {"sm_80": 56, "sm_89": 56, "sm_90a": 56, "sm_100a": 80, "sm_120": 64}),
}  # fmt: skip
ALIKE = {"sm_86": "sm_89", "sm_100": "sm_100a"}
"""Architectures that get the code of another one, as far as these kernels go."""

PRODUCTS = (r"HMMA\.16816\.F32{kind}", r"LDSM\.16\.M88\.4", r"LDGSTS\.E\.BYPASS(\.LTC128B)?\.128")
"""What a kernel with matrix products is made of where there is no wgmma: products, their operands, copies to shared memory."""

TURNED = r"LDSM\.16\.MT88\.4"
INSTRUCTIONS = {
    "varlen_fwd": (*PRODUCTS, TURNED, r"MUFU\.EX2"),
    "varlen_fwd_sm90": (r"HGMMA\.64x128x16\.F32{kind}", r"HGMMA\.64x64x16\.F32{kind}", r"UTMALDG\.3D",
                        r"USETMAXREG[\s\S]*USETMAXREG", "SYNCS", r"MUFU\.EX2"),
    "varlen_bwd_delta": (r"LDG\.E\.128",),
    "varlen_bwd_dkdv": (*PRODUCTS, TURNED, r"MUFU\.EX2"),
    "varlen_bwd_dq": (*PRODUCTS, TURNED, r"MUFU\.EX2"),
    # Additions without an answer: nothing waits for them.
    "gene_sums": (*PRODUCTS, r"MUFU\.EX2", r"RED[A-Z]*\.E\.ADD\.64", r"RED[A-Z]*\.E\.ADD\.(?!64)"),
    "performer_key_max": (*PRODUCTS, r"RED[A-Z]*\.E\.MAX"),
    "performer_keys": (*PRODUCTS, TURNED, r"MUFU\.EX2"),
    "performer_norms": (r"LDG\.E\.128",),
    "performer_queries": (*PRODUCTS, TURNED, r"MUFU\.EX2"),
    "performer_summary": (r"STG\.E\.U16",),
}  # fmt: skip
"""Instructions that each kernel has to have."""


@cache
def compiled(unit: Unit, architecture: str) -> tuple[bytes, str]:
    """Machine code and the log, kept between runs for as long as the text stays as it is."""
    names = (f"{unit.file}.cuh", *included(f"{unit.file}.cuh"))
    parts = [architecture, compiler.version(), *compiler.OPTIONS, *unit.options, *map(text, names)]
    path = harness.cache_folder() / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}.cubin"
    log = path.with_suffix(".log")
    if not (path.exists() and log.exists()):
        cubin, said = compiler.compile_unit(unit, architecture)
        for target, content in ((log, said.encode()), (path, cubin)):
            scratch = target.with_name(f"{target.name}-{id(content)}")
            scratch.write_bytes(content)
            scratch.replace(target)
    return path.read_bytes(), log.read_text()


def tool(name: str) -> str:
    """A program of the CUDA toolkit, from its package on PyPI or from the path."""
    found = [str(path) for folder in map(Path, sys.path) for path in folder.glob(f"nvidia/*/bin/{name}")]
    path = next(iter(found), None) or shutil.which(name)
    if path is None:
        pytest.skip(f"no {name}: pip install nvidia-cuda-{name}")
    return path


def disassembled(unit: Unit, architecture: str, tmp_path: Path) -> dict[str, str]:
    """Instructions of each kernel of a unit, one a line."""
    path = tmp_path / "kernel.cubin"
    path.write_bytes(compiled(unit, architecture)[0])
    done = subprocess.run([tool("nvdisasm"), "-c", str(path)], capture_output=True, text=True, check=True)
    parts = re.split(r"^//-+ \.text\.(\w+)", done.stdout, flags=re.MULTILINE)
    found = zip(parts[1::2], parts[2::2], strict=True)
    return {name: "\n".join(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", part)) for name, part in found}


def check_registers(unit: Unit, architecture: str, log: str) -> None:
    """No spills, and no more registers than recorded (with the compiler of the record) or than a block may have."""
    reports = compiler.reports(log)
    assert reports.keys() == entries(unit.file).keys()
    for name, report in reports.items():
        tile = dict(unit.macros).get("CFM_TILE")
        limit, recorded = REGISTERS[name if tile is None else f"{name} {tile}"]
        assert report.spilled == 0, name
        most = recorded[ALIKE.get(architecture, architecture)] if compiler.version() == RECORDED else limit
        assert report.registers <= most, name


def variants() -> list[object]:
    """All units of all architectures; those outside the quick ones are slow together."""
    return [
        pytest.param(
            architecture,
            one,
            id=f"{architecture}-{one}",
            marks=() if architecture in QUICK and ("CFM_BF16", 1) in one.macros else pytest.mark.slow,
        )
        for architecture in ARCHITECTURES
        for one in units(architecture)
    ]


@pytest.mark.parametrize(("architecture", "unit"), variants())
def test_registers_spills_and_instructions(architecture: str, unit: Unit, tmp_path: Path) -> None:
    if architecture.rstrip("a") not in compiler.architectures():
        pytest.skip(f"NVRTC {compiler.version()} does not know {architecture}")
    code, log = compiled(unit, architecture)
    assert code.startswith(b"\x7fELF")
    check_registers(unit, architecture, log)
    # ptxas says so when it cannot keep products in flight.
    assert "serialized" not in log
    assert "Performance Loss" not in log
    kind = r"\.BF16" if ("CFM_BF16", 1) in unit.macros else r"(?!\.BF16)"
    kernels = disassembled(unit, architecture, tmp_path)
    assert kernels.keys() == entries(unit.file).keys()
    for name, sass in kernels.items():
        assert not re.search(r"\b(LDL|STL)\b", sass), f"{name} uses local memory"
        for pattern in INSTRUCTIONS[name]:
            assert re.search(pattern.replace("{kind}", kind), sass), f"{name} has no {pattern}"


def test_exponentials_run_over_the_product_with_values(tmp_path: Path) -> None:
    # The point of the Hopper kernel: between the wait for the scores and the wait for P V lie all exponentials of a tile.
    (sass,) = disassembled(forward_unit("bfloat16", 128, "sm_90a"), "sm_90a", tmp_path).values()
    (between,) = re.findall(r"DEPBAR\.LE gsb0, 0x1\b(.*?)DEPBAR\.LE gsb0, 0x0\b", sass, re.DOTALL)
    assert between.count("MUFU.EX2") >= 64
    assert "HGMMA" not in between


def test_resources_as_the_machine_code_says(tmp_path: Path) -> None:
    path = tmp_path / "kernel.cubin"
    path.write_bytes(compiled(forward_unit("bfloat16", 64, "sm_80"), "sm_80")[0])
    done = subprocess.run([tool("cuobjdump"), "-res-usage", str(path)], capture_output=True, text=True, check=True)
    (registers,) = re.findall(r"REG:(\d+)", done.stdout)
    assert int(registers) <= REGISTERS["varlen_fwd 64"][1]["sm_80"]
    assert "STACK:0" in done.stdout
    assert "LOCAL:0" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "unit"),
    [("sm_80", one) for one in units("sm_80") if ("CFM_BF16", 1) in one.macros]
    + [("sm_90a", forward_unit("bfloat16", 128, "sm_90a"))],
    ids=str,
)
def test_nvcc_agrees(architecture: str, unit: Unit, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    command = [nvcc, "-std=c++17", "-O3", "-Xptxas", "-v", f"-arch={architecture}", "-cubin", *unit.options]
    command += ["-x", "cu", str(harness.SOURCES / f"{unit.file}.cuh"), "-o", str(tmp_path / "out.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    check_registers(unit, architecture, done.stderr)
    assert "serialized" not in done.stderr
