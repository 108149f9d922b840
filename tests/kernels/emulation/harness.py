"""Builds the kernels for the CPU and calls them; numpy only, so that a mutant can be tried in a light process.

The kernels' own source is compiled by a C++ compiler over `emu.hpp`, with the same -D as for a GPU, into one shared library a
variant. Libraries are kept in a folder of the user and named by a hash of all that went into them.
"""

from __future__ import annotations

import ctypes
import functools
import getpass
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
SOURCES = Path(os.environ.get("CFM_KERNEL_SOURCES", HERE.parents[2] / "src" / "cfm" / "kernels" / "cuda"))
"""Where the kernels lie; a mutated copy is tried by naming its folder in the environment."""

D = 64
Bits = NDArray[np.uint16]


def compiler() -> str | None:
    """A C++ compiler: CXX, g++ or clang++; None if there is none."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))), None)


def cache_folder() -> Path:
    """Outlives a test run: the kernels are built again only when their text changes."""
    folder = Path(tempfile.gettempdir()) / f"cfm-kernel-tests-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def included(driver: Path, sources: Path) -> list[Path]:
    """A file and all of ours that it includes, directly or not."""
    found = [driver]
    for path in found:  # grows on the way
        for name in re.findall(r'^\s*#include "(.+)"', path.read_text(), re.MULTILINE):
            found += [one for folder in (HERE, sources) if (one := folder / name).exists() and one not in found]
    return found


def build(driver: str, defines: Sequence[str], *, sources: Path | None = None, flags: Sequence[str] = ()) -> Path:
    """Compile a driver of this folder with the kernels that it includes; path of the shared library."""
    sources = sources or SOURCES
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("no C++ compiler")
    command = ["-std=c++17", "-O2", "-Wall", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    command += [*flags, *(f"-D{define}" for define in defines)]
    key = hashlib.sha256("\0".join([cxx, driver, *command]).encode())
    for path in included(HERE / driver, sources):
        key.update(hashlib.sha256(path.read_bytes()).digest())
    library = cache_folder() / f"{Path(driver).stem}-{key.hexdigest()[:24]}.so"
    if not library.exists():
        with tempfile.NamedTemporaryFile(dir=library.parent, suffix=".so", delete=False) as scratch:
            pass
        full = [cxx, *command, f"-I{HERE}", f"-I{sources}", "-o", scratch.name, str(HERE / driver)]
        done = subprocess.run(full, capture_output=True, text=True, check=False)
        if done.returncode:
            Path(scratch.name).unlink()
            raise RuntimeError(f"{' '.join(full)}\n{done.stderr}")
        os.replace(scratch.name, library)
    return library


class Mode(ctypes.Structure):
    """How a launch is run: which thread goes first, whether copies land late, whether accesses are checked for races."""

    _fields_ = [(name, ctypes.c_int) for name in ("order", "late", "races")] + [
        ("seed", ctypes.c_uint),
        ("withheld", ctypes.c_int),
    ]

    def __init__(self, order: str, races: bool = False, seed: int = 1, withheld: int = 0) -> None:
        super().__init__(ORDERS.index(order), order != "first", races, seed, withheld)


ORDERS = ("first", "last", "random")
"""Thread orders. In the first one asynchronous copies land at once, in the others as late as they may."""


class EmulationError(Exception):
    """What the emulation found wrong with a launch."""


class _View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_int64), ("first", ctypes.c_int64)] + [
        (name, ctypes.c_int64) for name in ("row", "head")
    ]

    def __init__(self, view: Bits) -> None:
        base = view
        while isinstance(base.base, np.ndarray):
            base = base.base
        first = (view.ctypes.data - base.ctypes.data) // 2
        super().__init__(base.ctypes.data, base.size, first, view.strides[0] // 2, view.strides[1] // 2)


def pointer(array: NDArray | None) -> ctypes.c_void_p:
    """Address of an array, null for None."""
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def to_bits(x: NDArray, bf16: bool) -> Bits:
    """16-bit numbers as integers, rounded to the nearest even."""
    if not bf16:
        with np.errstate(over="ignore"):
            return x.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def to_float(bits: Bits, bf16: bool) -> NDArray[np.float64]:
    """The value of 16-bit numbers, exactly."""
    if not bf16:
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Variant:
    """A forward kernel as it is compiled: macros, format, and query rows of a block."""

    name: str
    defines: tuple[str, ...]
    bf16: bool
    rows: int

    @property
    def unit(self) -> float:
        """Twice the largest relative error of one rounding to 16 bits."""
        return 2.0**-8 if self.bf16 else 2.0**-11


def _variants() -> dict[str, Variant]:
    made = []
    for kind, bf16 in (("bf16", True), ("f16", False)):
        for rows in (64, 128):
            made.append(Variant(f"{kind}_m{rows}", (f"CFM_BF16={bf16:d}", f"CFM_TILE={rows}"), bf16, rows))
        made.append(Variant(f"{kind}_sm90", (f"CFM_BF16={bf16:d}", "CFM_SM90"), bf16, 128))
    return {variant.name: variant for variant in made}


VARIANTS = _variants()


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def forward(
    variant: Variant,
    q: Bits,
    k: Bits,
    v: Bits,
    lengths: Sequence[int],
    n_known: Sequence[int] | None = None,
    *,
    order: str = "first",
    races: bool = False,
    seed: int = 1,
    scale: float = 0.125,
    withheld: int = 0,
    out: Bits | None = None,
    library: Path | None = None,
) -> tuple[Bits, NDArray[np.float32]]:
    """One launch over all cells: outputs (16-bit numbers as integers) and log-sum-exp, both filled with NaN before.

    `q`, `k`, `v`, `out` are views [tokens, heads, 64] with any stride of token and head. `withheld`: bytes of shared memory that
    the launch lacks.
    """
    run = _library(library or build("forward.cpp", variant.defines)).emu_forward
    run.restype = ctypes.c_char_p
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tiles = [(cell, row) for cell, n in enumerate(lengths) for row in range(0, n, variant.rows)]
    tiles.sort(key=lambda tile: -lengths[tile[0]])
    cell_of, row_of = (np.array([tile[i] for tile in tiles], np.int32) for i in range(2))
    known = None if n_known is None else np.array(n_known, np.int32)
    total, heads = int(cu[-1]), q.shape[1]
    o = np.full(q.shape, 0xFFFF, np.uint16) if out is None else out
    lse = np.full((heads, total), np.nan, np.float32)
    if tiles:
        error = run(
            ctypes.byref(Mode(order, races, seed, withheld)),
            *(ctypes.byref(_View(x)) for x in (q, k, v, o)),
            *(pointer(lse), pointer(cu), len(lengths), pointer(known), pointer(cell_of), pointer(row_of), len(tiles)),
            *(heads, ctypes.c_int64(total), ctypes.c_int64(len(q)), ctypes.c_float(scale)),
        )
        if error:
            raise EmulationError(error.decode())
    return o, lse


class Exact(NamedTuple):
    """Attention in float64."""

    o: NDArray[np.float64]
    lse: NDArray[np.float64]
    size: NDArray[np.float64]
    """Weighted mean of the absolute values: what the rounding of weights acts on."""


def reference(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    lengths: Sequence[int],
    n_known: Sequence[int] | None = None,
    scale: float = 0.125,
) -> Exact:
    """The formula written out: query i of a cell sees key j when j is known, or j == i."""
    made = Exact(np.zeros(q.shape), np.zeros((q.shape[1], int(np.sum(lengths)))), np.zeros(q.shape))
    begin = 0
    for cell, n in enumerate(lengths):
        rows = slice(begin, begin + n)
        begin += n
        known = n if n_known is None else n_known[cell]
        sees = (np.arange(n) < known) | np.eye(n, dtype=bool)
        for head in range(q.shape[1] if n else 0):
            s = np.where(sees, q[rows, head] @ k[rows, head].T * scale, -np.inf)
            top = s.max(axis=1, keepdims=True)
            p = np.exp(s - top)
            total = p.sum(axis=1, keepdims=True)
            made.o[rows, head] = p @ v[rows, head] / total
            made.size[rows, head] = p @ abs(v[rows, head]) / total
            made.lse[head, rows] = (top + np.log(total))[:, 0]
    return made


def compare(variant: Variant, o: Bits, lse: NDArray[np.float32], exact: Exact) -> tuple[float, float]:
    """Largest errors of output and lse. Fails beyond twice what rounding the weights and the output may cost.

    Weights below 6e-5 are coarser in float16, hence the constant.
    """
    error = np.abs(to_float(o, variant.bf16) - exact.o)
    allowed = variant.unit * (np.abs(exact.o) + exact.size) + (0 if variant.bf16 else 1e-4)
    assert (error <= allowed).all(), f"outputs are off by {error.max()}"  # nor does NaN pass
    error_lse = np.abs(lse - exact.lse)
    assert (error_lse <= 2e-5 * np.maximum(1, np.abs(exact.lse))).all(), f"lse is off by {error_lse.max()}"
    return float(error.max(initial=0)), float(error_lse.max(initial=0))


@dataclass(frozen=True)
class Case:
    """Cells to attend over; `n_known` None: all tokens are known."""

    lengths: tuple[int, ...]
    n_known: tuple[int, ...] | None = None
    heads: int = 1

    @property
    def name(self) -> str:
        """For the name of a test."""
        shown = "+".join(map(str, self.lengths)) if len(self.lengths) < 9 else f"{len(self.lengths)}cells"
        known = "" if self.n_known is None else "-known-" + "+".join(map(str, self.n_known[:8]))
        return f"{shown}{known}-h{self.heads}"

    def inputs(self, seed: int, bf16: bool, spare: int = 0) -> list[Bits]:
        """Queries, keys and values, standard normal, and `spare` rows of NaN after the last cell."""
        rng = np.random.default_rng(seed)
        total = sum(self.lengths)
        made = [rng.standard_normal((total + spare, self.heads, D), np.float32) for _ in range(3)]
        for x in made:
            x[total:] = np.nan
        return [to_bits(x, bf16) for x in made]


def check(
    variant: Variant,
    case: Case,
    seed: int,
    *,
    races: bool = False,
    orders: Sequence[str] = ORDERS,
    library: Path | None = None,
) -> tuple[float, float]:
    """Run a case in several thread orders: all equal to the bit, and near float64; the largest errors of output and lse."""
    q, k, v = case.inputs(seed, variant.bf16, spare=3)
    total = sum(case.lengths)
    results = [
        forward(variant, q, k, v, case.lengths, case.n_known, order=order, races=races, seed=seed, library=library)
        for order in orders
    ]
    o, lse = results[0]
    for other_o, other_lse in results[1:]:
        assert np.array_equal(o, other_o), "outputs depend on the order of the threads"
        assert np.array_equal(lse, other_lse), "lse depends on the order of the threads"
    assert (o[total:] == 0xFFFF).all(), "rows past the last cell were written"
    exact = reference(*(to_float(x[:total], variant.bf16) for x in (q, k, v)), case.lengths, case.n_known)
    return compare(variant, o[:total], lse, exact)


CASES = (
    Case((1, 2, 7)),
    Case((63, 64, 65)),
    Case((127, 128, 129)),
    Case((191, 192, 193)),
    Case((255, 256, 257)),
    Case((130, 64, 17), heads=2),
    Case((520, 3)),  # nine key tiles of 64: more than twice the two stages
    Case((0, 5, 0, 0, 70, 0)),
    Case((0, 0)),
    Case(()),
    Case(tuple(np.random.default_rng(5).integers(0, 40, 200).tolist())),
    Case((100, 70), (0, 0)),
    Case((100, 70), (1, 1)),
    Case((200, 200, 200), (63, 64, 65)),
    Case((300, 300, 300), (127, 128, 129)),
    Case((129, 65, 90), (128, 64, 89)),
    Case((129, 65, 90), (129, 65, 90)),
    Case((200,), (130,)),  # the diagonal inside and outside the known range
    Case((400, 90, 1, 1), (10, 90, 0, 1)),
)
"""What every kernel has to get right, in all orders."""

LONG = Case((1100,))
"""Nine key tiles of 128: more than twice the four stages of the Hopper kernel."""

RACES = (
    Case((130, 64, 17)),
    Case((330,)),
    Case((700,)),
    Case((200, 70), (65, 0)),
    Case((300,), (10,)),
)
"""Run with the race clocks too, which are slow."""


def cases(variant: Variant) -> list[tuple[Case, bool]]:
    """All cases of a variant, and whether the race clocks run. The second format repeats a part of them."""
    if not variant.bf16:
        return [(case, False) for case in CASES[::3]] + [(RACES[0], True)]
    long = [(LONG, False)] if "CFM_SM90" in variant.defines else []
    return [(case, False) for case in CASES] + [(case, True) for case in RACES] + long
