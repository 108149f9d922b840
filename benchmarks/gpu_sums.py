"""Attention summed over genes beside matrices of all tokens by all tokens, and Performer beside the formula written out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from gpu_cases import WIDTH, Case, Row, Spread, no_row
from gpu_report import Options, Progress
from gpu_rivals import SCALE, inputs, matrices, padded_mask, square
from gpu_timing import device, free_bytes, peak, synchronize, timed
from torch import Tensor

from cfm.kernels import backends, ops, performer
from cfm.kernels.plan import plan

N_GENES = 5_000
EPS = 1e-4
FEATURES = 266
PERFORMERS = ((16_907, 10), (19_266, 8))
"""Genes and heads of scBERT, and of the decoder of scFoundation."""


# -- Gene by gene -------------------------------------------------------------------------------------------------------


def gene_ids(case: Case, n_genes: int, device: torch.device, seed: int = 0) -> Tensor:
    """A row for each token, other genes within a cell; int32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randperm(n_genes, generator=generator)[:n] for n in case.lengths]).int().to(device)


Calls = dict[str, tuple[int, Callable[[], Callable[[], object]]]]
"""By name: bytes that a rival needs, roughly, and what makes its call."""


def summed(
    backend: str, case: Case, qkv: list[Tensor], genes: Tensor, n_genes: int
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Our operator, after a forward pass that kept its log-sum-exp. The tables are made in the call."""
    device = qkv[0].device
    q, k, v = qkv
    made = plan(case.offsets, None, case.known, case.tokens, case.tokens, device, backend)
    with torch.no_grad():
        _, lse = ops.varlen_attention(q, k, v, made.offsets, None, made.n_known, made.tiles, made.narrow, made.n_wide,
                                      SCALE, True, backend)  # fmt: skip

    def call() -> tuple[Tensor, Tensor]:
        sums = torch.zeros(n_genes, n_genes, dtype=torch.int64, device=device)
        counts = torch.zeros(n_genes, n_genes, dtype=torch.int32, device=device)
        bad = torch.zeros(1, dtype=torch.int64, device=device)
        ops.gene_attention_sum(q, k, lse, made.offsets, made.n_known, made.narrow, genes, SCALE, sums, counts, bad,
                               backend)  # fmt: skip
        return sums, counts

    return call


def materialised(
    case: Case, qkv: list[Tensor], genes: Tensor, n_genes: int, at_once: int | None = None
) -> tuple[Tensor, Tensor]:
    """What is done with matrices that a model gives away: cells padded, their mean over heads, added up gene by gene."""
    at_once = at_once or len(case.lengths)
    sums = torch.zeros(n_genes * n_genes, device=genes.device)
    counts = torch.zeros(n_genes * n_genes, dtype=torch.int32, device=genes.device)
    for first in range(0, len(case.lengths), at_once):
        some = replace(case, lengths=case.lengths[first : first + at_once])
        tokens = slice(case.offsets[first], case.offsets[first] + some.tokens)
        mask = padded_mask(some, genes.device)
        q, k = (square(some, x[tokens]) for x in qkv[:2])
        weights = matrices(q, k, mask).mean(1)
        for i, n in enumerate(some.lengths):
            rows = genes[tokens][some.offsets[i] : some.offsets[i + 1]].long()
            places = (rows[:, None] * n_genes + rows[None]).flatten()
            one = weights[i, :n, :n]
            seen = torch.ones_like(one, dtype=torch.bool) if mask is None else mask[i, 0, :n, :n].expand_as(one)
            sums.index_add_(0, places, one.float().flatten())
            counts.index_add_(0, places, seen.int().flatten())
    return sums.view(n_genes, n_genes), counts.view(n_genes, n_genes)


def gene_rivals(case: Case, qkv: list[Tensor]) -> Calls:
    """Our operator on its two backends, and the matrices of 16 cells or of all at a time."""
    device = qkv[0].device
    genes = gene_ids(case, N_GENES, device)

    def bytes_of(cells: int) -> int:
        return 8 * min(cells, len(case.lengths)) * case.heads * case.longest**2

    found: Calls = {}
    if backends.lacks("cuda", backends.Call(device, qkv[0].dtype, WIDTH)) is None:
        found["cfm cuda"] = 0, partial(summed, "cuda", case, qkv, genes, N_GENES)
    found["cfm sdpa"] = 0, partial(summed, "sdpa", case, qkv, genes, N_GENES)
    for name, cells in (("matrices, 16 cells", 16), ("matrices, all cells", len(case.lengths))):
        call = partial(materialised, case, qkv, genes, N_GENES, cells)
        found[name] = bytes_of(cells), partial(partial, call)
    return found


def genes_table(options: Options, progress: Progress) -> None:
    """Time and peak memory of a table of genes by genes, the table itself among it."""
    where = device()
    random = np.random.default_rng(0)
    for cells in (64,) if options.quick else (64, 512):
        name = f"{cells} cells of 300 to 2,048, 12 heads, {N_GENES:,} genes"
        case = Case("genes", name, tuple(random.integers(300, 2049, cells).tolist()), 12)
        qkv = inputs(case, where, torch.bfloat16)
        progress.title(f"{name}  (the tables alone are {12 * N_GENES**2 / 2**20:,.0f} MiB)")
        measure("genes", name, gene_rivals(case, qkv), options, progress)


# -- Performer ----------------------------------------------------------------------------------------------------------


def unfused(q: Tensor, k: Tensor, v: Tensor, projection: Tensor, eps: float) -> Tensor:
    """The published code of FAVOR+ for softmax: [cells, heads, tokens, width], all features in memory at once."""

    def projected(x: Tensor) -> tuple[Tensor, Tensor]:
        dashed = torch.einsum("bhnd,md->bhnm", x * x.shape[-1] ** -0.25, projection.to(x.dtype))
        return dashed, x.square().sum(-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5)

    ratio = len(projection) ** -0.5
    dashed, half = projected(q)
    asked = ratio * ((dashed - half - dashed.amax(-1, keepdim=True)).exp() + eps)
    dashed, half = projected(k)
    seen = ratio * ((dashed - half - dashed.amax()).exp() + eps)
    context = torch.einsum("bhnm,bhnd->bhmd", seen, v)
    return (
        torch.einsum("bhmd,bhnm->bhnd", context, asked) / torch.einsum("bhnm,bhm->bhn", asked, seen.sum(2))[..., None]
    )


def directions(features: int, device: torch.device) -> Tensor:
    """Random directions; real ones are orthogonal in blocks, which costs nobody anything."""
    return torch.randn(features, WIDTH, generator=torch.Generator().manual_seed(1)).to(device)


def performer_rivals(case: Case, qkv: list[Tensor]) -> Calls:
    """As `gene_rivals`; cells are equally long, and the largest feature is taken over all of them."""
    device = qkv[0].device
    w = directions(FEATURES, device)
    needs = 20 * case.tokens * case.heads * FEATURES
    packed_q, packed_k, packed_v = qkv
    q, k, v = (square(case, x) for x in qkv)
    wide_q, wide_k, wide_v = (x.float() for x in (q, k, v))
    ours: Calls = {
        "cfm sdpa": (0, lambda: partial(performer.attend, packed_q, packed_k, packed_v, case.offsets, w, "batch", EPS))
    }
    if backends.lacks("cuda", backends.Call(device, qkv[0].dtype, WIDTH, features=True)) is None:
        from cfm.kernels import launch_performer

        # Not through the operator, which would go on with another backend when a kernel fails.
        ours["cfm cuda"] = (
            0,
            lambda: partial(launch_performer.attend, packed_q, packed_k, packed_v, case.offsets, w, "batch", EPS),
        )
    return {
        **ours,
        "unfused, float32": (needs, lambda: partial(unfused, wide_q, wide_k, wide_v, w, EPS)),
        "unfused, bfloat16": (needs, lambda: partial(unfused, q, k, v, w, EPS)),
    }


def performer_table(options: Options, progress: Progress) -> None:
    """Time and peak memory of Performer attention at published sizes, two cells."""
    where = device()
    for genes, heads in PERFORMERS[:1] if options.quick else PERFORMERS:
        name = f"2 cells of {genes:,}, {heads} heads, {FEATURES} features"
        case = Case("performer", name, (genes, genes), heads)
        progress.title(name)
        measure("performer", name, performer_rivals(case, inputs(case, where, torch.bfloat16)), options, progress)


# -- Both ---------------------------------------------------------------------------------------------------------------


def measure(table: str, case: str, rivals: Calls, options: Options, progress: Progress) -> None:
    """Fill the rows of a case. Inputs are far larger than L2, so one set of them is enough."""
    for rival, (needs, make) in rivals.items():
        if progress.has(case, rival):
            continue
        why = progress.broken.get(rival)
        if not why and needs > 0.9 * (free := free_bytes()):
            why = f"would need about {needs / 2**30:,.0f} GiB, and {free / 2**30:,.0f} GiB are free"
        if not why and time.time() > options.until:
            why = "the time of this table was up"
        if why:
            progress.add(no_row(table, case, rival, "forward", why))
            continue
        with progress.trying(case, rival):
            try:
                with torch.no_grad():
                    call = make()
                    mib = peak(call)
                    ms: Spread = timed([call], options.repeats, options.seconds)
                made: Row = {
                    "table": table,
                    "case": case,
                    "rival": rival,
                    "what": "forward",
                    "ms": ms.asdict(),
                    "MiB": mib,
                }
                progress.add(made)
            except Exception as problem:  # noqa: BLE001  # of any library; the line says which
                synchronize()
                progress.add(no_row(table, case, rival, "forward", f"{type(problem).__name__}: {problem}"))
