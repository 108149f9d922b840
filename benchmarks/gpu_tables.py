"""The tables of attention: every rival on every case, forward and backward, each failure on a line of its own."""

from __future__ import annotations

import time
from functools import partial

import torch
from gpu_cases import Case, Row, cases, no_row, row
from gpu_report import Options, Progress
from gpu_rivals import RIVALS, Rival, error, inputs
from gpu_timing import copies, device, free_bytes, peak, synchronize, timed
from torch import Tensor

DTYPE = torch.bfloat16

# Outputs of normal numbers are at most about 1 and have 8 bits; a wrong mask or a wrong scale is off by far more.
_TOLERANCE = 2e-2


def table(name: str, options: Options, progress: Progress) -> None:
    """Fill a table."""
    where = device()
    for case in cases(name, options.quick):
        progress.title(f"{case.name}  ({case.tokens:,} tokens, {case.flops() / 1e12:.2f} TFLOP)")
        size = 3 * case.tokens * case.heads * 64 * DTYPE.itemsize
        sets = [inputs(case, where, DTYPE, seed) for seed in range(copies(size))]
        for rival in RIVALS:
            if progress.has(case.name, rival.name):
                continue
            why = progress.broken.get(rival.name) or rival.lacks(case, where, DTYPE)
            if not why and time.time() > options.until:
                why = "the time of this table was up"
            if why:
                progress.add(no_row(name, case.name, rival.name, "forward", why))
                continue
            with progress.trying(case.name, rival.name):
                attempt(case, rival, sets, options, progress)
        del sets


def attempt(case: Case, rival: Rival, sets: list[list[Tensor]], options: Options, progress: Progress) -> None:
    """Measure a rival; when it fails, say so. What leaves the GPU unusable is raised: another process goes on."""
    what = "forward"
    try:
        needs, free = rival.needs(case), free_bytes()
        if needs > 0.9 * free:
            why = f"would need about {needs / 2**30:,.0f} GiB, and {free / 2**30:,.0f} GiB are free"
            progress.add(no_row(case.table, case.name, rival.name, what, why))
            return
        with rival.around():
            progress.add(forward(case, rival, sets, options))
            if rival.gradients:
                what = "backward"
                progress.add(backward(case, rival, sets, options))
    except Exception as problem:  # noqa: BLE001  # of any library; the line says which
        synchronize()
        progress.add(no_row(case.table, case.name, rival.name, what, f"{type(problem).__name__}: {problem}"))


def forward(case: Case, rival: Rival, sets: list[list[Tensor]], options: Options) -> Row:
    """Time, memory and error of the forward pass."""
    with torch.no_grad():
        ready = rival.ready(case, sets)
        first = ready[0]
        wrong_by = error(case, sets[0], first.packed(first.forward()))
        ms = timed([x.forward for x in ready], options.repeats, options.seconds)
        made = row(case, rival.name, "forward", ms, peak(first.forward), options.ceiling)
    # Written so that NaN is wrong too.
    return {**made, "error": wrong_by, "wrong": not wrong_by <= _TOLERANCE}


def backward(case: Case, rival: Rival, sets: list[list[Tensor]], options: Options) -> Row:
    """Time and memory of the gradients of all three inputs, the forward pass not counted."""
    ready = rival.ready(case, sets)
    leaves = [x for one in ready for x in one.leaves]
    for x in leaves:
        x.requires_grad_()
    try:
        calls = []
        for one in ready:
            out = one.forward()
            calls.append(partial(torch.autograd.grad, out, one.leaves, torch.randn_like(out), retain_graph=True))
        ms = timed(calls, options.repeats, options.seconds)
        return row(case, rival.name, "backward", ms, peak(calls[0]), options.ceiling)
    finally:
        # The packed inputs are everybody's.
        for x in leaves:
            x.requires_grad_(False)
