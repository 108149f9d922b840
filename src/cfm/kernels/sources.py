"""The kernels of ``cuda/``: which text, which macros, which entries, and what an entry is called with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
"""What `build` makes where nothing is asked for: A100; RTX 30 and 40; H100 and H200; B200; RTX 50."""

_TYPES = {"int": "int", "i64": "i64", "float": "float"}


def architecture_of(capability: tuple[int, int]) -> str:
    """What kernels are compiled for on a GPU of a compute capability."""
    major, minor = capability
    # Only with an ``a`` are the instructions of Hopper there.
    return "sm_90a" if capability == (9, 0) else f"sm_{major}{minor}"


@dataclass(frozen=True)
class Unit:
    """What is compiled at once.

    Attributes
    ----------
    file
        Name in ``cuda/``, without its ending.
    macros
        Name and value of each macro.
    """

    file: str
    macros: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.file}({', '.join(f'{name}={value}' for name, value in self.macros)})"

    @property
    def options(self) -> tuple[str, ...]:
        """The macros as options of a compiler."""
        return tuple(f"-D{name}={value}" for name, value in self.macros)


@dataclass(frozen=True)
class Entry:
    """A kernel that can be started, as its text declares it.

    Attributes
    ----------
    name
        Its name.
    parameters
        Name and kind of each parameter, in order: ``"pointer"``, ``"map"``, ``"int"``, ``"i64"`` or ``"float"``.
    """

    name: str
    parameters: tuple[tuple[str, str], ...]


def forward_unit(dtype: str, rows: int, architecture: str) -> Unit:
    """The forward kernel for tiles of 64 or 128 rows; Hopper has one of its own for the large ones."""
    bf16 = int(dtype == "bfloat16")
    if architecture == "sm_90a" and rows == 128:
        return Unit("varlen_fwd_sm90", (("CFM_SM90", 1), ("CFM_BF16", bf16)))
    return Unit("varlen_fwd", (("CFM_BF16", bf16), ("CFM_TILE", rows)))


def unit(file: str, dtype: str) -> Unit:
    """A unit that differs by dtype only."""
    return Unit(file, (("CFM_BF16", int(dtype == "bfloat16")),))


def units(architecture: str) -> list[Unit]:
    """All that an architecture has."""
    dtypes = ("bfloat16", "float16")
    forward = [forward_unit(dtype, rows, architecture) for dtype in dtypes for rows in (64, 128)]
    return forward + [unit(file, dtype) for file in ("varlen_bwd", "gene_sums", "performer") for dtype in dtypes]


@lru_cache
def text(file: str) -> str:
    """The text of a file of ``cuda/``, by its whole name."""
    return (files(__package__) / "cuda" / file).read_text(encoding="utf-8")


@lru_cache
def included(file: str) -> tuple[str, ...]:
    """Names of the files that a file includes, directly or not, each once."""
    found: dict[str, None] = {}
    waiting = [file]
    while waiting:
        for name in re.findall(r'^#include "(\w+\.cuh)"', text(waiting.pop()), re.MULTILINE):
            if name not in found:
                found[name] = None
                waiting.append(name)
    return tuple(found)


@lru_cache
def entries(file: str) -> dict[str, Entry]:
    """The kernels that a file declares, by name."""
    # Comments first: they speak of parameters too.
    plain = re.sub(r"//[^\n]*", "", text(f"{file}.cuh"))
    found = {}
    for name, declared in re.findall(r"^KERNEL\([^\n]*\)\s+(\w+)\(([^{]*?)\)\s*\{", plain, re.MULTILINE):
        parameters = []
        for part in declared.split(","):
            words = part.replace("*", " * ").split()
            kind = "pointer" if "*" in words else "map" if "TensorMap" in words else _TYPES[words[-2]]
            parameters.append((words[-1], kind))
        found[name] = Entry(name, tuple(parameters))
    return found
