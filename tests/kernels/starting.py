"""Drivers in the place of CUDA's: one writes down what it is told, the other runs the kernels on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as kept
from types import SimpleNamespace

import harness
import torch

from cfm.kernels import cache, launch, sources

STREAM = 77


class Driver:
    """Notes starts of kernels and descriptions of tensors."""

    def __init__(self) -> None:
        self.started: list[SimpleNamespace] = []
        self.maps: list[tuple] = []
        self.shared: list[int] = []
        self.status = 0
        names = ("CUtensorMapDataType", "CUtensorMapInterleave", "CUtensorMapSwizzle", "CUtensorMapL2promotion",
                 "CUtensorMapFloatOOBfill", "CUfunction_attribute")  # fmt: skip
        for name in names:
            setattr(self, name, type(name, (), {"__getattr__": lambda _, key: key})())
        self.cuuint64_t = self.cuuint32_t = int

    def cuModuleLoadData(self, code: bytes):
        return self.status, code.decode()

    def cuModuleGetFunction(self, module: str, name: bytes):
        return 0, (module, name.decode())

    def cuFuncSetAttribute(self, function: tuple[str, str], attribute: str, value: int):
        assert attribute == "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        self.shared.append(value)
        return (0,)

    def cuTensorMapEncodeTiled(self, *given):
        self.maps.append(given)
        return 0, f"map {len(self.maps)}"

    def cuLaunchKernel(self, function, x, y, z, threads, ty, tz, shared, stream, parameters, extra):
        assert (z, ty, tz, extra, stream) == (1, 1, 1, 0, STREAM)
        (unit, name), (values, types) = function, parameters
        names = [name for name, _ in sources.entries(unit.split("(")[0])[name].parameters]
        given = dict(zip(names, values, strict=True))
        start = SimpleNamespace(
            unit=unit, name=name, grid=(x, y), threads=threads, shared=shared, types=types, given=given
        )
        self.started.append(start)
        self.run(start, values)
        return (0,)

    def run(self, start: SimpleNamespace, values: tuple) -> None:
        """Nothing runs here."""


class Emulated(Driver):
    """Runs what is started: the kernels' own text, built for the CPU, on tensors of the CPU."""

    def run(self, start: SimpleNamespace, values: tuple) -> None:
        held = [kind(value) for kind, value in zip(start.types, values, strict=True)]
        addresses = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
        mode = harness.Mode("random")
        error = _starter(start.unit)(
            start.name.encode(), ctypes.byref(mode), *start.grid, start.threads, start.shared, addresses
        )
        assert error is None, error.decode()


@kept
def _starter(unit: str) -> Callable:
    macros = [macro for macro in unit.split("(")[1].rstrip(")").split(", ") if not macro.startswith("CFM_SM90")]
    function = ctypes.CDLL(str(harness.build("start.cpp", macros))).emu_start
    function.restype = ctypes.c_char_p
    return function


@contextmanager
def in_the_place_of_the_driver(monkeypatch, made: Driver, capability: tuple[int, int]) -> Iterator[Driver]:
    """As if there were a GPU of a compute capability, whose driver is `made`."""

    class Guard:
        def __init__(self, device: object) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(launch, "_driver", lambda: made)
    # The name of the unit stands for its code.
    monkeypatch.setattr(cache, "cubin", lambda unit, architecture: str(unit).encode())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr(torch.cuda, "device", Guard)
    for remembered in (launch._function, launch._module, launch._architecture):
        remembered.cache_clear()
    yield made
    for remembered in (launch._function, launch._module, launch._architecture):
        remembered.cache_clear()
