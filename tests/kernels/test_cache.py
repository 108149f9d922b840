"""Compiling without a GPU, and keeping what was compiled."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import cfm
from cfm.kernels import cache, compiler, sources
from cfm.kernels.errors import KernelError

UNIT = sources.unit("varlen_bwd", "bfloat16")
needs_compiler = pytest.mark.skipif(compiler.missing() is not None, reason="no NVRTC")


@pytest.fixture(autouse=True)
def folder(tmp_path):
    with cfm.settings.override(cache_dir=tmp_path / "cache"):
        cache._told.clear()
        yield tmp_path / "cache" / "kernels"


@pytest.fixture
def messages():
    """What the logger of the package says."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logging.getLogger("cfm").addHandler(handler)
    yield found
    logging.getLogger("cfm").removeHandler(handler)


@pytest.fixture
def fake(monkeypatch):
    """A compiler that counts its calls."""
    calls: list[tuple[sources.Unit, str]] = []

    def compile_unit(unit, architecture):
        calls.append((unit, architecture))
        return b"machine code", ""

    monkeypatch.setattr(compiler, "compile_unit", compile_unit)
    monkeypatch.setattr(compiler, "version", lambda: "13.0")
    return calls


def test_compiled_once_and_said_once(fake, messages, folder):
    assert cache.cubin(UNIT, "sm_80") == b"machine code"
    assert cache.cubin(UNIT, "sm_80") == b"machine code"
    assert len(fake) == 1
    (said,) = messages
    assert said.startswith("compiled varlen_bwd(CFM_BF16=1) for sm_80 in ")
    assert [path.suffix for path in folder.iterdir() if not path.name.startswith(".")] == [".cubin"]


def test_another_unit_architecture_compiler_or_text_is_another_file(fake, monkeypatch):
    names = {cache.digest(UNIT, "sm_80", "13.0"), cache.digest(UNIT, "sm_90a", "13.0"), cache.digest(UNIT, "sm_80", "13.1"),
             cache.digest(sources.unit("varlen_bwd", "float16"), "sm_80", "13.0")}  # fmt: skip
    real = sources.text
    monkeypatch.setattr(cache, "text", lambda name: real(name) + ("// changed" if name == "prims.cuh" else ""))
    names.add(cache.digest(UNIT, "sm_80", "13.0"))
    monkeypatch.setattr(compiler, "OPTIONS", (*compiler.OPTIONS, "--fmad=false"))
    names.add(cache.digest(UNIT, "sm_80", "13.0"))
    assert len(names) == 6


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:-1] + b"?", lambda b: b"", lambda b: b"junk" + b], ids=range(4)
)
def test_a_damaged_file_is_made_again(fake, messages, folder, damage):
    cache.cubin(UNIT, "sm_80")
    (path,) = folder.glob("*.cubin")
    path.write_bytes(damage(path.read_bytes()))
    assert cache.cubin(UNIT, "sm_80") == b"machine code"
    assert len(fake) == 2
    assert any("is damaged" in said for said in messages)
    assert cache.cubin(UNIT, "sm_80") == b"machine code"
    assert len(fake) == 2


def test_a_folder_that_cannot_be_written_to_is_one_warning(fake, messages, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with cfm.settings.override(cache_dir=tmp_path / "file"):
        for architecture in ("sm_80", "sm_90a"):
            assert cache.cubin(UNIT, architecture) == b"machine code"
    assert len(fake) == 2
    assert sum("cannot be written to" in said for said in messages) == 1
    assert "CFM_CACHE_DIR" in next(said for said in messages if "cannot be written to" in said)


def test_two_processes_at_once_compile_once(tmp_path):
    code = textwrap.dedent(
        """
        import sys, time
        import cfm
        from cfm.kernels import cache, compiler, sources
        def compile_unit(unit, architecture):
            time.sleep(1)
            print("compiled", flush=True)
            return b"machine code" * 100_000, ""
        compiler.compile_unit, compiler.version = compile_unit, lambda: "13.0"
        cfm.settings.cache_dir = sys.argv[1]
        assert cache.cubin(sources.unit("varlen_bwd", "float16"), "sm_80") == b"machine code" * 100_000
        """
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ends
    assert sum(out.count("compiled") for out, _ in ends) == 1
    assert not [path for path in (tmp_path / "kernels").iterdir() if path.is_dir()]


def test_a_text_that_does_not_compile_leaves_nothing(monkeypatch, folder):
    def refuse(unit, architecture):
        raise KernelError("no")

    monkeypatch.setattr(compiler, "compile_unit", refuse)
    monkeypatch.setattr(compiler, "version", lambda: "13.0")
    with pytest.raises(KernelError):
        cache.cubin(UNIT, "sm_80")
    assert not list(folder.glob("*.cubin"))


# --- the compiler itself


@needs_compiler
def test_what_the_compiler_refuses_is_told(monkeypatch):
    real = sources.text
    monkeypatch.setattr(compiler, "text", lambda name: real(name) + ("\nnonsense;" if name == "varlen_bwd.cuh" else ""))
    with pytest.raises(KernelError, match=r"(?s)varlen_bwd\(CFM_BF16=1\) does not compile for sm_80.*nonsense"):
        compiler.compile_unit(UNIT, "sm_80")


@needs_compiler
def test_an_architecture_that_is_none():
    with pytest.raises(KernelError, match="sm_10"):
        compiler.compile_unit(UNIT, "sm_10")


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(compiler, "missing", lambda: "cuda-bindings is not installed: pip install 'cfm-tools[cuda]'")
    with pytest.raises(KernelError, match=r"pip install 'cfm-tools\[cuda\]'"):
        cache.cubin(UNIT, "sm_80")


def test_every_text_ships_and_includes_only_what_ships():
    for architecture in sources.ARCHITECTURES:
        for unit in sources.units(architecture):
            assert sources.entries(unit.file), unit
            assert "prims.cuh" in sources.included(f"{unit.file}.cuh")
    there = {path.name for path in (Path(cfm.__file__).parent / "kernels" / "cuda").iterdir()}
    used = {f"{unit.file}.cuh" for unit in sources.units("sm_90a")}
    assert used | {name for file in used for name in sources.included(file)} <= there
