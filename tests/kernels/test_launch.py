"""How kernels are started, on a driver that only writes down what it is told: no GPU here."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch

from cfm.kernels import compiler, launch, launch_performer, ops, sources
from cfm.kernels.errors import KernelError
from cfm.kernels.plan import plan

from .starting import Driver, in_the_place_of_the_driver

LENGTHS = [0, 700, 3]
OFFSETS = [0, 0, 700, 703]


@pytest.fixture(params=[(8, 0), (9, 0)], ids=["A100", "H100"])
def driver(request, monkeypatch):
    with in_the_place_of_the_driver(monkeypatch, Driver(), request.param) as made:
        made.hopper = request.param == (9, 0)
        yield made


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


PADDED = 96


def favor(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scope: str, features: int = 40) -> torch.Tensor:
    w = torch.randn(features, 64, generator=torch.Generator().manual_seed(1))
    return launch_performer.attend(q, k, v, OFFSETS, w, scope, 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_performer(driver, dtype):
    q, k, v, _ = tokens(dtype)
    out = favor(q, k, v, "cell")
    norms_q, norms_k, highest, of_keys, summary, of_queries = driver.started
    kib, bf16 = 1024, dtype == torch.bfloat16
    assert [(x.name, x.grid, x.threads, x.shared) for x in driver.started] == [
        ("performer_norms", (44, 4), 128, 0),
        ("performer_norms", (44, 4), 128, 0),
        ("performer_key_max", (12, 4), 128, (24 if bf16 else 16) * kib),
        ("performer_keys", (2, 4), 192, 33_280),
        ("performer_summary", (2, 4), 256, 4 * (96 + 256)),
        ("performer_queries", (12, 4), 128, (40 if bf16 else 32) * kib),
    ]
    assert driver.shared == []
    assert (norms_q.given["x"], norms_k.given["x"]) == (q.data_ptr(), k.data_ptr())
    assert (of_queries.given["norm"], of_keys.given["norm"]) == (norms_q.given["norm"], norms_k.given["norm"])
    assert (of_queries.given["o"], of_queries.given["o_row"]) == (out.data_ptr(), 256)
    for one, other in itertools.pairwise([highest, of_keys, summary, of_queries]):
        for name in one.given.keys() & other.given.keys():
            assert one.given[name] == other.given[name] or name == "norm", name
    assert of_keys.given["scale"] == pytest.approx(64**-0.25)
    assert (of_keys.given["features"], of_keys.given["padded"], of_keys.given["split_rows"]) == (40, 96, 1024)
    assert summary.given["cells"] == 2, "the empty one is left out"


@pytest.mark.parametrize(("scope", "steps"), [("head", (4, 1)), ("cell", (1, 0)), ("batch", (0, 0))])
def test_performer_in_groups_of_cells(driver, monkeypatch, scope, steps):
    # Room for two sums over keys: a cell of one split, and its whole.
    monkeypatch.setattr(launch_performer, "_ROOM", 2 * 4 * PADDED * 64 * 4)
    q, k, v, _ = tokens()
    favor(q, k, v, scope)
    names = [x.name.removeprefix("performer_") for x in driver.started]
    assert names == ["norms", "norms", "key_max", "key_max", *["keys", "summary", "queries"] * 2]
    first, second = driver.started[2:4]
    assert (first.given["top_cell"], first.given["top_head"]) == steps
    assert second.given["top"] - first.given["top"] == 4 * steps[0]
    assert (first.grid, second.grid) == ((11, 4), (1, 4))
    assert driver.started[4].given["top"] == first.given["top"]
    assert driver.started[7].given["cu"] == second.given["cu"]


def test_the_projection_in_parts_of_16_bits():
    w = torch.randn(266, 64, generator=torch.Generator().manual_seed(1))
    for dtype, parts, error in ((torch.bfloat16, 3, 2**-24), (torch.float16, 2, 2**-22)):
        found = launch_performer.split(w, 288, parts, dtype)
        assert (found.shape, found.dtype) == ((parts, 288, 64), dtype)
        assert not found[:, 266:].any()
        whole = found.double().sum(0)[:266]
        # float16 has no numbers below 2^-24, so its last part is off by half of that.
        assert ((whole - w.double()).abs() <= error * w.abs() + (dtype == torch.float16) * 2**-25).all()


def test_nothing_starts_where_there_are_no_tokens(driver):
    q, k, v = torch.zeros(0, 3, 4, 64, dtype=torch.bfloat16).unbind(1)
    made = plan([0, 0], None, None, 0, 0, q.device, "cuda")
    out, lse = ops.varlen_attention(
        q, k, v, made.offsets, None, None, made.tiles, made.narrow, made.n_wide, 1.0, True, "cuda"
    )
    ops.varlen_attention_backward(out, q, k, v, out, lse, made.offsets, None, None, made.narrow, 1.0, "cuda")
    assert driver.started == []
    assert launch_performer.attend(q, k, v, [0, 0], torch.ones(40, 64), "cell", 1e-4).shape == q.shape
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
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_threads_and_shared_memory_are_those_of_the_text(monkeypatch, dtype):
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
        f"performer::TERMS == {launch_performer.PARTS[dtype]}",
        f"performer::FEATURES == {launch_performer.PADDED_TO}",
        f"{launch_performer.SPLIT_ROWS} % performer::BM == 0",
    ]
    shared, threads = launch_performer.SHARED[dtype], launch.THREADS
    for kernel, claimed, memory in [("key_max", "THREADS", "MAX_SMEM"), ("keys", "KEY_THREADS", "KEY_SMEM"),
                                    ("queries", "THREADS", "QUERY_SMEM")]:  # fmt: skip
        claims.append(f"performer::{claimed} == {threads[f'performer_{kernel}']}")
        claims.append(f"performer::{memory} == {shared[f'performer_{kernel}']}")
    claims.append(f"performer::SUM_THREADS == {threads['performer_summary']}")
    files = ("varlen_fwd_sm90.cuh", "varlen_bwd.cuh", "gene_sums.cuh", "performer.cuh")
    claim = "\n".join([f'#include "{name}"' for name in files] + [f'static_assert({c}, "{c}");' for c in claims])
    real = sources.text
    monkeypatch.setattr(compiler, "text", lambda name: claim if name == "claims.cuh" else real(name))
    monkeypatch.setattr(
        compiler,
        "included",
        lambda name: tuple(dict.fromkeys([*files, *(x for f in files for x in sources.included(f))])),
    )
    compiler.compile_unit(sources.Unit("claims", (("CFM_SM90", 1), ("CFM_BF16", int(dtype == "bfloat16")))), "sm_90a")
