"""Starting the kernels of ``cuda/`` through the driver, on torch's current stream.

What a kernel is called with is read from its own declaration, so a name that is missing here is an error and not a
wrong address. Nothing here waits for the GPU. This file is reached only after `torch.cuda.is_available()` said yes.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import cache
from .errors import KernelError
from .sources import Entry, Unit, architecture_of, entries, forward_unit, unit

KIB = 1024
LOG2_E = math.log2(math.e)

THREADS = {"varlen_fwd": 128, "varlen_fwd_sm90": 384, "varlen_bwd_delta": 128, "varlen_bwd_dkdv": 128, "varlen_bwd_dq": 128,
           "gene_sums": 128, "performer_norms": 128, "performer_key_max": 128, "performer_keys": 192,
           "performer_summary": 256, "performer_queries": 128}  # fmt: skip
"""Threads of a block of each kernel."""

SHARED = {"varlen_fwd_sm90": 147_600, "varlen_bwd_delta": 0, "varlen_bwd_dkdv": 33 * KIB, "varlen_bwd_dq": 32 * KIB,
          "gene_sums": 32 * KIB}  # fmt: skip
"""Bytes of shared memory of a block."""

SHARED_FORWARD = {64: 40 * KIB, 128: 48 * KIB}
"""The same of ``varlen_fwd``, by rows of a tile."""

_CTYPES = {
    "pointer": ctypes.c_void_p,
    "int": ctypes.c_int,
    "i64": ctypes.c_longlong,
    "float": ctypes.c_float,
    "map": None,
}


def forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, n_known: Tensor | None, tiles: Tensor,
    n_wide: int, scale: float,
) -> None:  # fmt: skip
    """Fill `out` and `lse`; parameters as in `cfm.kernels.ops.varlen_attention`."""
    q, k, v = (aligned(x) for x in (q, k, v))
    architecture = _architecture(q.device)
    given = {**tokens(q=q, k=k, v=v, o=out), **cells(offsets, n_known), "lse": lse, "total": len(q),
             "scale_log2": scale * LOG2_E}  # fmt: skip
    for size, part in ((128, tiles[:, :n_wide]), (64, tiles[:, n_wide:])):
        if not part.shape[1]:
            continue
        made = forward_unit(dtype_of(q), size, architecture)
        maps = {}
        if made.file == "varlen_fwd_sm90":
            maps = {"q_map": _map(q, 64), "k_map": _map(k, 128), "v_map": _map(v, 128)}
        shared = SHARED.get(made.file, SHARED_FORWARD[size])
        start(made, made.file, (part.shape[1], q.shape[1]), shared, q.device, {**given, **maps, **rows(part)})


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, n_known: Tensor | None,
    narrow: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v; parameters as in `cfm.kernels.ops.varlen_attention_backward`."""
    grad, q, k, v, out = (aligned(x) for x in (grad, q, k, v, out))
    d_q, d_k, d_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    if not narrow.shape[1]:
        return d_q, d_k, d_v
    delta = torch.empty_like(lse)
    made, heads = unit("varlen_bwd", dtype_of(q)), q.shape[1]
    given = {**tokens(q=q, k=k, v=v, o=out, do=grad, dq=d_q, dk=d_k, dv=d_v), **cells(offsets, n_known),
             **rows(narrow), "lse": lse, "delta": delta, "total": len(q), "scale": scale}  # fmt: skip
    given["dout"] = given.pop("do")
    start(made, "varlen_bwd_delta", (-(-len(q) // 16), heads), SHARED["varlen_bwd_delta"], q.device, given)
    for name in ("varlen_bwd_dkdv", "varlen_bwd_dq"):
        start(made, name, (narrow.shape[1], heads), SHARED[name], q.device, given)
    return d_q, d_k, d_v


def gene_sums(
    q: Tensor, k: Tensor, lse: Tensor, offsets: Tensor, n_known: Tensor | None, narrow: Tensor, genes: Tensor, scale: float,
    sums: Tensor, counts: Tensor, bad: Tensor,
) -> None:  # fmt: skip
    """Add to `sums`, `counts` and `bad`; parameters as in `cfm.kernels.ops.gene_attention_sum`."""
    if not narrow.shape[1]:
        return
    q, k = (aligned(x) for x in (q, k))
    given = {**tokens(q=q, k=k), **cells(offsets, n_known), **rows(narrow), "lse": lse.contiguous(), "row_of": genes,
             "sums": sums, "counts": counts, "bad": bad, "total": len(q), "heads": q.shape[1], "splits": 1,
             "genes": len(sums), "scale": scale}  # fmt: skip
    start(unit("gene_sums", dtype_of(q)), "gene_sums", (narrow.shape[1], 1), SHARED["gene_sums"], q.device, given)


def arguments(entry: Entry, given: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Values and C types of an entry's parameters, in its order; tensors become addresses, None the address 0.

    Parameters
    ----------
    entry
        The kernel.
    given
        Values by name; those that it does not take are left out.

    Raises
    ------
    KernelError
        It takes a parameter that nobody gives.
    """
    if lacking := [name for name, _ in entry.parameters if name not in given]:
        raise KernelError(f"{entry.name} takes {', '.join(lacking)}, and nobody gives it.")
    values = tuple(_value(given[name], kind) for name, kind in entry.parameters)
    return values, tuple(_CTYPES[kind] for _, kind in entry.parameters)


def _value(value: Any, kind: str) -> Any:
    if kind == "pointer":
        return 0 if value is None else value.data_ptr()
    return value


def start(
    made: Unit, name: str, grid: tuple[int, int], shared: int, device: torch.device, given: dict[str, Any]
) -> None:
    """Start a kernel on torch's current stream.

    Parameters
    ----------
    made
        The unit that it is in.
    name
        Its name.
    grid
        Blocks in x and y.
    shared
        Bytes of shared memory of a block.
    device
        Where.
    given
        As in `arguments`.
    """
    driver = _driver()
    parameters = arguments(entries(made.file)[name], given)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        function = _function(made, name, device, shared)
        _check(
            driver.cuLaunchKernel(function, *grid, 1, THREADS[name], 1, 1, shared, stream, parameters, 0),
            f"starting {name}",
        )


@lru_cache
def _function(made: Unit, name: str, device: torch.device, shared: int) -> Any:
    driver = _driver()
    function = _check(driver.cuModuleGetFunction(_module(made, device), name.encode()), f"finding {name}")
    if shared > 48 * KIB:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _check(driver.cuFuncSetAttribute(function, attribute, shared), f"asking for {shared:,} bytes of shared memory")
    return function


@lru_cache
def _module(made: Unit, device: torch.device) -> Any:
    code = cache.cubin(made, _architecture(device))
    return _check(_driver().cuModuleLoadData(code), f"loading {made}")


@lru_cache
def _architecture(device: torch.device) -> str:
    return architecture_of(torch.cuda.get_device_capability(device))


def tokens(**tensors: Tensor) -> dict[str, Any]:
    """Addresses and strides of tokens, as kernels call them."""
    given: dict[str, Any] = dict(tensors)
    for name, x in tensors.items():
        given |= {f"{name}_row": x.stride(0), f"{name}_head": x.stride(1)}
    return given


def cells(offsets: Tensor, n_known: Tensor | None) -> dict[str, Any]:
    """Where cells begin and what is known of them, as kernels call it."""
    return {"cu": offsets, "n_known": n_known}


def rows(tiles: Tensor) -> dict[str, Any]:
    """Cell and first row of each tile, as kernels call them."""
    return {"tile_cell": tiles[0], "tile_row": tiles[1]}


def aligned(x: Tensor) -> Tensor:
    """Rows have to begin at multiples of 16 bytes: copied when they do not."""
    fits = x.data_ptr() % 16 == 0 and all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:2])
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def _map(x: Tensor, rows: int) -> Any:
    """What the copying unit of Hopper knows of a tensor: [tokens, heads, 64], in boxes of 64 x 1 x `rows`."""
    driver = _driver()
    kinds = driver.CUtensorMapDataType
    kind = (
        kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 if dtype_of(x) == "bfloat16" else kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16
    )
    word, half = driver.cuuint64_t, driver.cuuint32_t
    return _check(
        driver.cuTensorMapEncodeTiled(
            kind,
            3,
            x.data_ptr(),
            [word(n) for n in (x.shape[2], x.shape[1], x.shape[0])],
            [word(x.stride(i) * x.element_size()) for i in (1, 0)],
            [half(n) for n in (64, 1, rows)],
            [half(1)] * 3,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ),
        "describing a tensor",
    )


def dtype_of(x: Tensor) -> str:
    """Its dtype without ``torch.``."""
    return str(x.dtype).removeprefix("torch.")


def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _check(result: tuple[Any, ...], doing: str) -> Any:
    """What a call of the driver gave after its status, which has to be good."""
    status, *values = result
    if int(status):
        raise KernelError(f"the driver failed at {doing}: {status!s}")
    return values[0] if values else None
