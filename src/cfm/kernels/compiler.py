"""From the text of a kernel to machine code, with the compiler that torch brings. No GPU and no driver is needed."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

from .errors import KernelError
from .sources import Unit, included, text

OPTIONS = ("-std=c++17", "--ptxas-options=-v")


@dataclass(frozen=True)
class Report:
    """What the assembler says of a kernel.

    Attributes
    ----------
    registers
        Registers of a thread.
    spilled
        Bytes that found no register and go through memory.
    """

    registers: int
    spilled: int


def missing() -> str | None:
    """What is missing to compile; None when nothing is."""
    try:
        found = importlib.util.find_spec("cuda.bindings.nvrtc")
    except ModuleNotFoundError:
        found = None
    return None if found else "cuda-bindings is not installed: pip install 'cfm-tools[cuda]'"


def version() -> str:
    """Version of the compiler, such as ``"13.0"``."""
    return "{}.{}".format(*_check(_nvrtc().nvrtcVersion(), "asking for its version"))


def architectures() -> list[str]:
    """Architectures that this compiler knows, such as ``"sm_90"``; those from 90 also have an ``a`` at the end."""
    return [f"sm_{number}" for number in _check(_nvrtc().nvrtcGetSupportedArchs(), "asking what it knows")]


def compile_unit(unit: Unit, architecture: str) -> tuple[bytes, str]:
    """Machine code of a unit, and the log of the compiler.

    Parameters
    ----------
    unit
        What to compile.
    architecture
        Such as ``"sm_80"`` or ``"sm_90a"``.

    Raises
    ------
    KernelError
        There is no compiler, it does not know the architecture, or it refuses the text.
    """
    nvrtc = _nvrtc()
    name, headers = f"{unit.file}.cuh", included(f"{unit.file}.cuh")
    program = _check(
        nvrtc.nvrtcCreateProgram(
            text(name).encode(),
            name.encode(),
            len(headers),
            [text(header).encode() for header in headers],
            [header.encode() for header in headers],
        ),
        f"reading {name}",
    )
    try:
        options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}", *unit.options)]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = bytearray(_check(nvrtc.nvrtcGetProgramLogSize(program), "reading its log"))
        _check(nvrtc.nvrtcGetProgramLog(program, log), "reading its log")
        said = log.rstrip(b"\0").decode(errors="replace")
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(f"{unit} does not compile for {architecture} with NVRTC {version()}:\n{said or result}")
        cubin = bytearray(_check(nvrtc.nvrtcGetCUBINSize(program), f"making code for {architecture}"))
        _check(nvrtc.nvrtcGetCUBIN(program, cubin), f"making code for {architecture}")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(cubin), said


def reports(log: str) -> dict[str, Report]:
    """Registers and spills of each kernel in a log."""
    found = {}
    pattern = (
        r"Function properties for (\w+)\s*\n[^\n]*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r"[\s\S]*?Used (\d+) registers"
    )
    for name, stores, loads, registers in re.findall(pattern, log):
        found[name] = Report(int(registers), int(stores) + int(loads))
    return found


def _nvrtc() -> Any:
    if why := missing():
        raise KernelError(why)
    from cuda.bindings import nvrtc

    return nvrtc


def _check(result: tuple[Any, ...], doing: str) -> Any:
    """What a call gave after its status, which has to be good."""
    status, *values = result
    if int(status):
        raise KernelError(f"NVRTC failed at {doing}: {status!s}")
    return values[0] if len(values) == 1 else values
