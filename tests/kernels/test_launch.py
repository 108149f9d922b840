"""How kernels are started, on a driver that only writes down what it is told: no GPU here."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch

from cfm.kernels import cache, compiler, launch, ops, sources
from cfm.kernels.errors import KernelError
from cfm.kernels.plan import plan

LENGTHS = [0, 700, 3]
OFFSETS = [0, 0, 700, 703]


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
        assert code == b"code"
        return self.status, "module"

    def cuModuleGetFunction(self, module: str, name: bytes):
        return 0, name.decode()

    def cuFuncSetAttribute(self, function: str, attribute: str, value: int):
        assert attribute == "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        self.shared.append(value)
        return (0,)

    def cuTensorMapEncodeTiled(self, *given):
        self.maps.append(given)
        return 0, f"map {len(self.maps)}"

    def cuLaunchKernel(self, function, x, y, z, threads, ty, tz, shared, stream, parameters, extra):
        assert (z, ty, tz, extra, stream) == (1, 1, 1, 0, 77)
        values, types = parameters
        file = "varlen_bwd" if function.startswith("varlen_bwd") else function
        names = [name for name, _ in sources.entries(file)[function].parameters]
        self.started.append(
            SimpleNamespace(
                name=function,
                grid=(x, y),
                threads=threads,
                shared=shared,
                types=types,
                given=dict(zip(names, values, strict=True)),
            )  # fmt: skip
        )
        return (0,)


@pytest.fixture(params=[(8, 0), (9, 0)], ids=["A100", "H100"])
def driver(request, monkeypatch):
    made = Driver()
    monkeypatch.setattr(launch, "_driver", lambda: made)
    monkeypatch.setattr(cache, "cubin", lambda unit, architecture: b"code")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: request.param)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))

    class Guard:
        def __init__(self, device: object) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "device", Guard)
    made.hopper = request.param == (9, 0)
    for kept in (launch._function, launch._module, launch._architecture):
        kept.cache_clear()
    yield made
    for kept in (launch._function, launch._module, launch._architecture):
        kept.cache_clear()


def tokens(dtype: torch.dtype = torch.bfloat16):
    q, k, v = torch.randn(703, 3, 4, 64, generator=torch.Generator().manual_seed(0)).to(dtype).unbind(1)
    return q, k, v, plan(OFFSETS, None, [0, 350, 1], 703, 703, q.device, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_forward(driver, dtype):
    q, k, v, made = tokens(dtype)
    arguments = (q, k, v, made.offsets, None, made.n_known, made.tiles, made.narrow, made.n_wide, 0.125, True, "cuda")
    out, lse = ops.varlen_attention(*arguments)
    wide, narrow = driver.started
    assert (wide.grid, narrow.grid) == ((6, 4), (1, 4))
    assert narrow.name == "varlen_fwd"
    assert (narrow.threads, narrow.shared) == (128, 40 * 1024)
    if driver.hopper:
        assert (wide.name, wide.threads, wide.shared) == ("varlen_fwd_sm90", 384, 147_600)
        assert driver.shared == [147_600]
        # Sizes from the innermost on, strides in bytes, and the box.
        assert [given[3:6] for given in driver.maps] == [
            ([64, 4, 703], [128, 2 * 768], [64, 1, rows]) for rows in (64, 128, 128)
        ]
        assert [given[2] for given in driver.maps] == [x.data_ptr() for x in (q, k, v)]
        assert [given[0].split("_")[-1] for given in driver.maps] == [
            "BFLOAT16" if dtype == torch.bfloat16 else "FLOAT16"
        ] * 3
        assert wide.given["k_map"] == "map 2"
        assert wide.types[0] is None
    else:
        assert (wide.name, wide.threads, wide.shared) == ("varlen_fwd", 128, 48 * 1024)
        assert driver.shared == []
    for start, first in ((wide, 0), (narrow, 6)):
        given = start.given
        assert (given["o"], given["lse"], given["cu"]) == (out.data_ptr(), lse.data_ptr(), made.offsets.data_ptr())
        assert given["tile_cell"] == made.tiles.data_ptr() + 4 * first
        assert given["tile_row"] == made.tiles.data_ptr() + 4 * (made.tiles.shape[1] + first)
        assert (given["o_row"], given["o_head"], given["total"]) == (256, 64, 703)
        assert given["scale_log2"] == pytest.approx(0.125 * 1.4426950408889634)
        assert given["n_known"] == made.n_known.data_ptr()
    assert (narrow.given["q"], narrow.given["q_row"], narrow.given["q_head"]) == (q.data_ptr(), 768, 64)
    assert narrow.types[-1] is ctypes.c_float
    assert narrow.types[-2] is ctypes.c_longlong


def test_rows_that_are_not_aligned_are_copied(driver):
    q, k, v, made = tokens()
    odd = torch.zeros(703, 4, 65, dtype=torch.bfloat16)[..., 1:].copy_(q)
    ops.varlen_attention(
        odd, k, v, made.offsets, None, None, made.tiles, made.narrow, made.n_wide, 0.125, False, "cuda"
    )
    narrow = driver.started[-1]
    assert narrow.given["q"] % 16 == 0
    assert narrow.given["q_row"] == 256
    assert narrow.given["n_known"] == 0


def test_backward(driver):
    q, k, v, made = tokens()
    lse = torch.zeros(4, 703)
    grad = q.contiguous()
    given = (grad, q, k, v, grad.clone(), lse, made.offsets, None, made.n_known, made.narrow, 0.125, "cuda")
    found = ops.varlen_attention_backward(*given)
    delta, of_keys, of_queries = driver.started
    assert [x.name for x in driver.started] == ["varlen_bwd_delta", "varlen_bwd_dkdv", "varlen_bwd_dq"]
    assert delta.grid == (44, 4)
    assert of_keys.grid == of_queries.grid == (12, 4)
    assert of_keys.given["delta"] == of_queries.given["delta"] == delta.given["delta"]
    assert (of_queries.given["dq"], of_keys.given["dk"], of_keys.given["dv"]) == tuple(x.data_ptr() for x in found)
    assert of_keys.given["dout"] == delta.given["dout"] == grad.data_ptr()
    assert of_keys.given["do_row"] == 256
    assert of_keys.given["scale"] == 0.125


def test_gene_sums(driver):
    q, k, v, made = tokens()
    sums, counts = torch.zeros(9, 9, dtype=torch.int64), torch.zeros(9, 9, dtype=torch.int32)
    genes, bad, lse = torch.zeros(703, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), torch.zeros(4, 703)
    ops.gene_attention_sum(q, k, lse, made.offsets, None, made.narrow, genes, 0.125, sums, counts, bad, "cuda")
    (start,) = driver.started
    assert (start.grid, start.threads, start.shared) == ((12, 1), 128, 32 * 1024)
    assert (start.given["sums"], start.given["counts"], start.given["bad"]) == tuple(
        x.data_ptr() for x in (sums, counts, bad)
    )
    assert (start.given["heads"], start.given["genes"], start.given["row_of"]) == (4, 9, genes.data_ptr())


def test_nothing_starts_where_there_are_no_tokens(driver):
    q, k, v = torch.zeros(0, 3, 4, 64, dtype=torch.bfloat16).unbind(1)
    made = plan([0, 0], None, None, 0, 0, q.device, "cuda")
    out, lse = ops.varlen_attention(
        q, k, v, made.offsets, None, None, made.tiles, made.narrow, made.n_wide, 1.0, True, "cuda"
    )
    ops.varlen_attention_backward(out, q, k, v, out, lse, made.offsets, None, None, made.narrow, 1.0, "cuda")
    assert driver.started == []


def test_what_the_driver_says_is_told(driver):
    q, k, v, made = tokens()
    driver.status = 209
    with pytest.raises(KernelError, match="the driver failed at loading varlen_fwd.*: 209"):
        ops.varlen_attention(q, k, v, made.offsets, None, None, made.tiles, made.narrow, made.n_wide, 1.0, True, "cuda")


def test_a_parameter_that_nobody_gives():
    entry = sources.Entry("some", (("q", "pointer"), ("colour", "int")))
    with pytest.raises(KernelError, match="some takes colour"):
        launch.arguments(entry, {"q": None})


@pytest.mark.skipif(compiler.missing() is not None, reason="no NVRTC")
def test_threads_and_shared_memory_are_those_of_the_text(monkeypatch):
    claims = [
        f"k::FWD_THREADS == {launch.THREADS['varlen_fwd']}",
        *[f"k::fwd_smem_bytes<{rows}> == {size}" for rows, size in launch.SHARED_FORWARD.items()],
        f"k90::THREADS == {launch.THREADS['varlen_fwd_sm90']}",
        f"k90::SMEM_BYTES == {launch.SHARED['varlen_fwd_sm90']}",
        f"bwd::THREADS == {launch.THREADS['varlen_bwd_dkdv']}",
        f"bwd::DKDV_SMEM == {launch.SHARED['varlen_bwd_dkdv']}",
        f"bwd::DQ_SMEM == {launch.SHARED['varlen_bwd_dq']}",
        f"gene::THREADS == {launch.THREADS['gene_sums']}",
        f"gene::SMEM == {launch.SHARED['gene_sums']}",
    ]
    files = ("varlen_fwd_sm90.cuh", "varlen_bwd.cuh", "gene_sums.cuh")
    claim = "\n".join([f'#include "{name}"' for name in files] + [f'static_assert({c}, "{c}");' for c in claims])
    real = sources.text
    monkeypatch.setattr(compiler, "text", lambda name: claim if name == "claims.cuh" else real(name))
    monkeypatch.setattr(
        compiler,
        "included",
        lambda name: tuple(dict.fromkeys([*files, *(x for f in files for x in sources.included(f))])),
    )
    compiler.compile_unit(sources.Unit("claims", (("CFM_SM90", 1), ("CFM_BF16", 1))), "sm_90a")
