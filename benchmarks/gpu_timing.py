"""Time and memory of calls on a GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import torch
from gpu_cases import Spread

WARM_UPS = 20
_FEWEST = 10


def device() -> torch.device:
    """The GPU that everything runs on."""
    return torch.device("cuda", torch.cuda.current_device())


def synchronize() -> None:
    """Wait for the GPU; raises what went wrong on it."""
    torch.cuda.synchronize()


def timed(calls: Sequence[Callable[[], object]], repeats: int, seconds: float) -> Spread:
    """Milliseconds of a call by events on the stream, warm-ups first.

    Parameters
    ----------
    calls
        The same call on inputs of its own each, taken in turn, so that no input is in L2 from the time before.
    repeats
        So often, if `seconds` are enough for it; ten times in any case.
    """
    calls[0]()
    torch.cuda.synchronize()
    start = time.perf_counter()
    calls[-1]()
    torch.cuda.synchronize()
    one = time.perf_counter() - start
    repeats = int(max(_FEWEST, min(repeats, seconds / one)))
    for i in range(min(WARM_UPS, repeats)):
        calls[i % len(calls)]()
    spans = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    torch.cuda.synchronize()
    # The host gets ahead of the GPU, so that short kernels are not timed with the wait for their launch.
    if hasattr(torch.cuda, "_sleep"):
        torch.cuda._sleep(20_000_000)
    for i, (begin, end) in enumerate(spans):
        begin.record()
        calls[i % len(calls)]()
        end.record()
    torch.cuda.synchronize()
    return Spread.of([begin.elapsed_time(end) for begin, end in spans])


def wall(action: Callable[[], object], rounds: int) -> Spread:
    """Milliseconds of a call with all that the host does, after one warm-up."""
    action()
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - start))
    return Spread.of(found)


def peak(action: Callable[[], object]) -> float:
    """MiB that a call needs at most on top of what is there, its result among them."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = action()
    torch.cuda.synchronize()
    del result
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def copies(size: int) -> int:
    """So many inputs of `size` bytes are together four times L2, two at least and eight at most."""
    l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 * 2**20
    return max(2, min(8, -(-4 * l2 // max(size, 1))))


def free_bytes() -> int:
    """Memory of the GPU that can be had."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def ceilings(repeats: int, seconds: float) -> dict[str, dict[str, float]]:
    """What the GPU at hand gives at most: TFLOP/s of a product of 8,192^3 in bfloat16, and GB/s of a copy of 2 GiB."""
    pairs = [[torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(3)] for _ in range(2)]
    product = timed([lambda a=a, b=b, c=c: torch.mm(a, b, out=c) for a, b, c in pairs], repeats, seconds)
    large = torch.randint(100, (2**31,), dtype=torch.int8, device="cuda")
    target = torch.empty_like(large)
    copy = timed([lambda: target.copy_(large)], repeats, seconds)
    return {
        "bf16 product, TFLOP/s": rates(2 * 8192**3 / 1e9, product),
        "copy, GB/s read and written": rates(2 * 2**31 / 1e6, copy),
    }


def rates(work: float, ms: Spread) -> dict[str, float]:
    """Work for each millisecond: the most time gives the lowest rate."""
    return {"low": work / ms.high, "median": work / ms.median, "high": work / ms.low, "repeats": ms.repeats}
