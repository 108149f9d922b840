"""Attention on a GPU: right against float64, then fast against its rivals, in one run and one table.

    python benchmarks/gpu.py [--out report.json] [--repeats 100]

Prints the machine; the largest errors of each backend and whether twenty runs agree to the bit; the rates of a large
matrix product and of a copy, as ceilings; then milliseconds (median, and the range of the middle half) and useful TFLOP/s
(4 * 64 * heads * sum of squared lengths; no padding counted) of each backend. On a machine without a GPU it says so and
ends with code 2. Clocks and power are left alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import cfm
from cfm.kernels import backends, cache, compiler, composite, gene_sums, ops
from cfm.kernels.plan import plan

WIDTH = 64
OURS = ("cuda", "triton", "sdpa")
SHAPES = {
    "edges": [1, 0, 2, 63, 64, 65, 127, 128, 129, 520, 0, 640, 700],
    "one": [1000],
    "many": [7] * 200,
}


def tokens(lengths: list[int], heads: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Queries, keys and values as views of one product, normal numbers."""
    generator = torch.Generator("cuda").manual_seed(seed)
    packed = torch.randn(sum(lengths), 3, heads, WIDTH, generator=generator, device="cuda")
    return list(packed.to(dtype).unbind(1))


def call(
    backend: str, qkv: list[Tensor], lengths: list[int], known: list[int] | None
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A call of our operator with its plan made ahead."""
    offsets = np.cumsum([0, *lengths]).tolist()
    made = plan(offsets, None, known, offsets[-1], offsets[-1], qkv[0].device, backend)
    scale = composite.default_scale(WIDTH)
    rest = (made.offsets, made.q_offsets, made.n_known, made.tiles, made.narrow, made.n_wide, scale, True, backend)
    return lambda: ops.varlen_attention(*qkv, *rest)


def check(backend: str, dtype: torch.dtype, heads: int = 4) -> dict[str, float | bool]:
    """Largest errors of results, log-sum-exp and gradients over all shapes, and whether twenty runs have the same bits."""
    worst = {"out": 0.0, "torch": 0.0, "lse": 0.0, "gradients": 0.0}
    same = True
    for lengths in SHAPES.values():
        offsets = np.cumsum([0, *lengths]).tolist()
        for share in (None, 0.0, 0.5, 1.0):
            known = None if share is None else [int(share * n) for n in lengths]
            qkv = tokens(lengths, heads, dtype)
            exact = [x.cpu().double() for x in qkv]
            right, right_lse = composite.by_hand(*exact, offsets, offsets, known, WIDTH**-0.5)
            run = call(backend, qkv, lengths, known)
            out, lse = run()
            plain = composite.by_sdpa(*qkv, offsets, offsets, known, WIDTH**-0.5)
            for name, found, expected in (("out", out, right), ("torch", plain, right), ("lse", lse, right_lse)):
                worst[name] = max(worst[name], float((found.cpu().double() - expected).abs().max()))
            same &= all(torch.equal(run()[0], out) for _ in range(20))
            if backend != "triton":
                leaves = [x.detach().requires_grad_() for x in qkv]
                grad = torch.randn_like(out)
                found = torch.autograd.grad(call(backend, leaves, lengths, known)()[0], leaves, grad)
                expected = composite.backward(
                    grad.cpu().double(), *exact, right, right_lse, offsets, offsets, known, WIDTH**-0.5
                )
                for mine, theirs in zip(found, expected, strict=True):
                    error = (mine.cpu().double() - theirs).abs().max() / theirs.abs().max().clamp_min(1)
                    worst["gradients"] = max(worst["gradients"], float(error))
    return {**worst, "same bits": same}


def check_sums() -> dict[str, float | bool]:
    """Gene sums of the kernel against those of torch's operations, and whether two runs have the same bits."""
    lengths, n_genes = [300, 64, 1, 700], 1000
    offsets = np.cumsum([0, *lengths]).tolist()
    qkv = tokens(lengths, 8, torch.bfloat16)
    _, lse = call("sdpa", qkv, lengths, None)()
    genes = torch.cat([torch.randperm(n_genes, device="cuda")[:n] for n in lengths]).int()
    found = []
    for backend in ("cuda", "cuda", "sdpa"):
        sums = torch.zeros(n_genes, n_genes, dtype=torch.int64, device="cuda")
        counts, bad = sums.int(), sums[0, :1].clone()
        made = plan(offsets, None, None, offsets[-1], offsets[-1], lse.device, backend)
        ops.gene_attention_sum(
            *qkv[:2], lse, made.offsets, None, made.narrow, genes, WIDTH**-0.5, sums, counts, bad, backend
        )
        found.append((sums, counts))
    error = float((found[0][0] - found[2][0]).abs().max()) * gene_sums.UNIT
    return {
        "error": error,
        "same counts": torch.equal(found[0][1], found[2][1]),
        "same bits": torch.equal(found[0][0], found[1][0]),
    }


def timed(action: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of milliseconds, after twenty warm-ups; L2 is emptied before each."""
    spoil = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    for _ in range(20):
        action()
    spans = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, stop in spans:
        spoil.zero_()
        start.record()
        action()
        stop.record()
    torch.cuda.synchronize()
    low, middle, high = np.quantile([start.elapsed_time(stop) for start, stop in spans], [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def rivals(qkv: list[Tensor], lengths: list[int], known: list[int] | None) -> dict[str, Callable[[], object]]:
    """Everybody who can compute this, by name."""
    asked = backends.Call(qkv[0].device, qkv[0].dtype, WIDTH, known is not None)
    found: dict[str, Callable[[], object]] = {
        name: call(name, qkv, lengths, known) for name in OURS if backends.lacks(name, asked) is None
    }
    offsets = np.cumsum([0, *lengths]).tolist()
    if backends.lacks("varlen", asked) is None:
        from torch.nn.attention.varlen import varlen_attn

        starts = torch.tensor(offsets, dtype=torch.int32, device="cuda")
        found["torch varlen"] = lambda: varlen_attn(*qkv, starts, starts, max(lengths), max(lengths), scale=WIDTH**-0.5)
    longest, n = max(lengths), len(lengths)
    if n * longest * longest < 2**31:
        padded = [torch.zeros(n, x.shape[1], longest, WIDTH, dtype=x.dtype, device="cuda") for x in qkv]
        mask = torch.zeros(n, 1, longest, longest, dtype=torch.bool, device="cuda")
        for i, (start, length) in enumerate(zip(offsets, lengths, strict=False)):
            for into, x in zip(padded, qkv, strict=True):
                into[i, :, :length] = x[start : start + length].transpose(0, 1)
            mask[i, 0, :, : length if known is None else known[i]] = True
        mask |= torch.eye(longest, dtype=torch.bool, device="cuda")
        same = known is None and len(set(lengths)) == 1
        found["padded SDPA"] = lambda: F.scaled_dot_product_attention(*padded, attn_mask=None if same else mask)
    return found


def table(name: str, lengths: list[int], heads: int, share: float | None, repeats: int) -> list[dict[str, object]]:
    """Times of all rivals for one set of cells; prints a line for each."""
    known = None if share is None else [int(share * n) for n in lengths]
    qkv = tokens(lengths, heads, torch.bfloat16)
    squares = sum(n * n for n in lengths) if known is None else sum(n * k for n, k in zip(lengths, known, strict=True))
    rows = []
    for rival, action in rivals(qkv, lengths, known).items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        low, middle, high = timed(action, repeats)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        rate = 4 * WIDTH * heads * squares / middle / 1e9
        print(f"{name:<34}{rival:<14}{middle:9.3f} ms  ({low:.3f} to {high:.3f}){rate:8.0f} TFLOP/s{peak:9.0f} MiB")
        rows.append({"case": name, "backend": rival, "ms": [low, middle, high], "tflops": rate, "MiB": peak})
    return rows


def ceilings(repeats: int) -> dict[str, float]:
    """TFLOP/s of a matrix product of 8,192^3 in bfloat16, and GB/s of a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    into = torch.empty_like(a)
    product = timed(lambda: torch.mm(a, b, out=into), repeats)[1]
    large = torch.empty(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(large)
    copy = timed(lambda: target.copy_(large), repeats)[1]
    return {"matrix product, TFLOP/s": 2 * 8192**3 / product / 1e9, "copy, GB/s": 2 * 2**30 / copy / 1e6}


def main() -> int:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write all numbers as JSON")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here: torch.cuda.is_available() is False. Nothing was measured.", file=sys.stderr)
        return 2
    cfm.settings.progress = False
    report: dict[str, object] = {
        "GPU": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "NVRTC": compiler.version(),
        "triton": version("triton") if backends._no_package("triton", "triton") is None else None,
        "cache": str(cache.folder()),
    }
    for key, value in report.items():
        print(f"{key:<12}{value}")
    wrong = False
    for dtype in (torch.bfloat16, torch.float16):
        for backend in OURS:
            if why := backends.lacks(backend, backends.Call(torch.device("cuda:0"), dtype, WIDTH)):
                print(f"{backend}: {why}")
                continue
            found = check(backend, dtype)
            report[f"errors {backend} {dtype}"] = found
            # Against float64 at most twice torch's own error in the same dtype.
            bad = found["out"] > 2 * found["torch"] + 1e-6 or not found["same bits"]
            wrong |= bad
            numbers = ", ".join(f"{key} {x if isinstance(x, bool) else f'{x:.1e}'}" for key, x in found.items())
            print(f"{backend:<8}{dtype}  {numbers}{'   WRONG' if bad else ''}")
    report["gene sums"] = sums = check_sums()
    wrong |= not (sums["same bits"] and sums["same counts"])
    print(f"gene sums  {sums}")
    report["ceilings"] = ceilings(options.repeats)
    print(report["ceilings"], "\n")
    random = np.random.default_rng(0)
    rows = []
    for length in (512, 1024, 2048, 4096):
        rows += table(
            f"{16_384 // length} cells of {length}, 32 heads", [length] * (16_384 // length), 32, None, options.repeats
        )
    for heads, cells in ((8, 64), (12, 64), (18, 64), (20, 64), (8, 512)):
        lengths = random.integers(300, 2049, cells).tolist()
        rows += table(f"{cells} cells of 300 to 2,048, {heads} heads", lengths, heads, None, options.repeats)
    for share in (0.25, 0.5, 0.75):
        lengths = random.integers(300, 2049, 64).tolist()
        rows += table(f"64 cells, {share:.0%} known, 8 heads", lengths, 8, share, options.repeats)
    report["times"] = rows
    if options.out:
        options.out.write_text(json.dumps(report, indent=1, default=str))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
