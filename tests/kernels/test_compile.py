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

from cfm.kernels import compiler
from cfm.kernels.sources import Unit, forward_unit, included, text

pytestmark = pytest.mark.skipif(compiler.missing() is not None, reason=str(compiler.missing()))

ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120")
DTYPES = ("bfloat16", "float16")
QUICK = {("sm_80", "bfloat16"), ("sm_90a", "bfloat16")}

# Registers of a thread, by file, query rows of a block, and architecture, as ptxas of CUDA 13.0 gave them out. More than this
# costs a block per multiprocessor (64 rows: three blocks of 168, 128 rows: two of 255), and should be a decision.
CEILINGS = {
    ("varlen_fwd", 64): {"sm_80": 168, "sm_89": 168, "sm_90a": 168, "sm_100a": 168, "sm_120": 168},
    ("varlen_fwd", 128): {"sm_80": 255, "sm_89": 255, "sm_100a": 255, "sm_120": 255},
    # At the launch; the warpgroups then trade theirs for 24 and 240.
    ("varlen_fwd_sm90", 128): {"sm_90a": 168},
}


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


def disassembled(unit: Unit, architecture: str, tmp_path: Path) -> str:
    """Instructions of a unit, one a line."""
    path = tmp_path / "kernel.cubin"
    path.write_bytes(compiled(unit, architecture)[0])
    done = subprocess.run([tool("nvdisasm"), "-c", str(path)], capture_output=True, text=True, check=True)
    return "\n".join(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", done.stdout))


def variants() -> list[object]:
    """All forward kernels on all architectures; those outside the quick ones are slow together."""
    made = []
    for architecture in ARCHITECTURES:
        for dtype in DTYPES:
            for rows in (64, 128):
                marks = () if (architecture, dtype) in QUICK else (pytest.mark.slow,)
                made.append(pytest.param(architecture, dtype, rows, id=f"{architecture}-{dtype}-{rows}", marks=marks))
    return made


@pytest.mark.parametrize(("architecture", "dtype", "rows"), variants())
def test_registers_and_spills(architecture: str, dtype: str, rows: int) -> None:
    unit = forward_unit(dtype, rows, architecture)
    _, log = compiled(unit, architecture)
    (report,) = compiler.reports(log).values()
    assert report.spilled == 0
    assert report.registers <= CEILINGS[unit.file, rows][architecture]
    # ptxas says so when it cannot keep products in flight.
    assert "serialized" not in log
    assert "Performance Loss" not in log


@pytest.mark.parametrize(("architecture", "dtype", "rows"), variants())
def test_instructions(architecture: str, dtype: str, rows: int, tmp_path: Path) -> None:
    unit = forward_unit(dtype, rows, architecture)
    sass = disassembled(unit, architecture, tmp_path)
    assert not re.search(r"\b(LDL|STL)\b", sass), "local memory"
    kind = r"\.BF16" if dtype == "bfloat16" else r"(?!\.BF16)"
    if unit.file == "varlen_fwd_sm90":
        assert re.search(rf"HGMMA\.64x128x16\.F32{kind}", sass)
        assert re.search(rf"HGMMA\.64x64x16\.F32{kind}", sass)
        assert "UTMALDG.3D" in sass
        assert len(re.findall("USETMAXREG", sass)) >= 2
        assert "SYNCS" in sass
    else:
        assert re.search(rf"HMMA\.16816\.F32{kind}", sass)
        assert "LDSM.16.M88.4" in sass
        assert "LDSM.16.MT88.4" in sass
        assert re.search(r"LDGSTS\.E\.BYPASS(\.LTC128B)?\.128", sass)


def test_exponentials_run_over_the_product_with_values(tmp_path: Path) -> None:
    # The point of the Hopper kernel: between the wait for the scores and the wait for P V lie all exponentials of a tile.
    sass = disassembled(forward_unit("bfloat16", 128, "sm_90a"), "sm_90a", tmp_path)
    (between,) = re.findall(r"DEPBAR\.LE gsb0, 0x1\b(.*?)DEPBAR\.LE gsb0, 0x0\b", sass, re.DOTALL)
    assert between.count("MUFU.EX2") >= 64
    assert "HGMMA" not in between


def test_resources_as_the_machine_code_says(tmp_path: Path) -> None:
    path = tmp_path / "kernel.cubin"
    path.write_bytes(compiled(forward_unit("bfloat16", 64, "sm_80"), "sm_80")[0])
    done = subprocess.run([tool("cuobjdump"), "-res-usage", str(path)], capture_output=True, text=True, check=True)
    (registers,) = re.findall(r"REG:(\d+)", done.stdout)
    assert int(registers) <= CEILINGS["varlen_fwd", 64]["sm_80"]
    assert "STACK:0" in done.stdout
    assert "LOCAL:0" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "rows"), [("sm_80", 64), ("sm_80", 128), ("sm_90a", 128)])
def test_nvcc_agrees(architecture: str, rows: int, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    unit = forward_unit("bfloat16", rows, architecture)
    command = [nvcc, "-std=c++17", "-O3", "-Xptxas", "-v", f"-arch={architecture}", "-cubin", *unit.options]
    command += ["-x", "cu", str(harness.SOURCES / f"{unit.file}.cuh"), "-o", str(tmp_path / "out.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (report,) = compiler.reports(done.stderr).values()
    assert report.spilled == 0
    assert report.registers <= CEILINGS[unit.file, rows][architecture]
    assert "serialized" not in done.stderr
