"""scFoundation beside the official numbers; run through parity.py. Tokens and cells here, networks in modules beside."""

from __future__ import annotations

import re
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import parity_scfoundation_full
import parity_scfoundation_networks
import scipy.sparse as sp
from parity import Report
from parity_scfoundation_bench import Bench, depths_of, padded, tokenizer_of

import cfm
from cfm import models
from cfm.genes import match
from cfm.models.scfoundation.tokenizer import SCALE, sums
from cfm.tokens import gene_rows

DEPTHS, VECTORS = 1e-12, 1e-5
# What the names of the arrays say: weights, pool, kind of input and depth; or bulk, kind of input and pool.
CELLS = re.compile(r"(cell|gene|rde)_(all|max)_(?:([TA])_)?([tfa][\d.]+)")
BULK = re.compile(r"bulk_([FT])_(all|max)(_first_half_only)?")


def compare(report: Report, cells: ad.AnnData) -> None:
    """Every array of a scFoundation fixture folder."""
    bench = Bench(report, *selected(report, cells))
    tokens(bench)
    cell_vectors(bench)
    if report.has("edge/t0_rows"):
        edge(bench)
    parity_scfoundation_networks.compare(bench)
    if report.has("full19264/cell_all_t4"):
        parity_scfoundation_full.compare(report, cells)


def selected(report: Report, cells: ad.AnnData) -> tuple[ad.AnnData, ad.AnnData]:
    """Counts over the genes of the list, and the same normalised, of the cells that are not empty."""
    model = models.load(report.folder, device="cpu", compat="official")
    symbols, n_genes = model.vocabulary.symbols, len(model.vocabulary)
    tokens = model.tokenizer(match(cells.var, model.vocabulary, gene_column="var_names", min_genes=1)).tokens
    rows = gene_rows(sp.csr_array(cells.X), tokens, n_genes)
    at = "tokens/selected_counts_"
    report.check(at + "data", rows.counts)
    report.check(at + "cols", rows.ids)
    report.check(at + "indptr", rows.offsets)
    report.check("tokens/fill_mask", ~np.isin(np.arange(n_genes), tokens))
    filled = np.flatnonzero(np.diff(rows.offsets))
    report.check("tokens/nonempty_rows", filled)
    var = pd.DataFrame(index=pd.Index(symbols))
    total = np.repeat(sums(rows.counts, rows.offsets), np.diff(rows.offsets))
    obs = pd.DataFrame({"total": sums(rows.counts, rows.offsets)[filled]}, index=cells.obs_names[filled])
    found = []
    for values in (rows.counts, np.log1p(rows.counts / total * SCALE)):
        matrix = sp.csr_matrix((values, rows.ids, rows.offsets), shape=(cells.n_obs, n_genes))[filled]
        found.append(ad.AnnData(matrix, var=var, obs=obs))
    return found[0], found[1]


def options_of(bench: Bench, name: str) -> tuple[dict[str, Any], ad.AnnData] | None:
    """The options and the cells of a mode; None for a name of another form."""
    if found := CELLS.fullmatch(name):
        weights, pool, kind, depth = found.groups()
        options = {"weights": weights, "pool": pool, "depth": depth}
        if kind is None:
            return options, bench.counts
        return options | {"input": "normalized"} | ({"total_key": "total"} if kind == "A" else {}), bench.normalized
    if found := BULK.fullmatch(name):
        kind, pool, half = found.groups()
        options = {"weights": "cell", "pool": pool, "bulk": True}
        if kind == "T":
            return options | {"input": "normalized"}, bench.normalized
        file = bench.counts[: bench.counts.n_obs // 2] if half else bench.counts
        # The official code looks at the whole file for this number; here the user gives it.
        return options | {"target_sum": float(np.median(file.obs["total"]))}, file
    return None


def cell_vectors(bench: Bench) -> None:
    """What a user types, in every mode."""
    report, start = bench.report, "cell_embeddings/"
    subset = report.input(start + "rows_subset")
    for name in report.names(start):
        if (mode := options_of(bench, name.removeprefix(start))) is None:
            continue
        options, cells = mode
        n = len(report.all[name])
        rows = np.arange(n) if n not in (len(subset), cells.n_obs) else subset if n == len(subset) else np.arange(n)
        adata = cells[rows].copy()
        cfm.tl.embed(adata, model=report.folder, device="cpu", compat="official", gene_column="var_names", **options)
        report.check(name, adata.obsm["X_cfm"], VECTORS)


def tokens(bench: Bench) -> None:
    """Values and positions, and both depths in double precision."""
    report = bench.report
    for name, options in (("cell_t4", {}), ("bulk_F", options_of(bench, "bulk_F_all")[0])):
        found = bench.tokens(bench.model(**options), bench.counts)
        report.check(f"tokens/{name}_values", found.values)
        report.check(f"tokens/{name}_positions", found.ids)
        report.check(f"tokens/{name}_offsets", found.offsets)
    model = bench.model()
    first = bench.counts[:3]
    rows = gene_rows(sp.csr_array(first.X), tokenizer_of(model, first).tokens, len(model.vocabulary))
    values, depths = tokenizer_of(model, first).values(rows), depths_of(model, first)
    parts = [np.append(values[a:b], ts) for a, b, ts in zip(rows.offsets, rows.offsets[1:], depths, strict=False)]
    report.check("tokens/cell_t4_values64_first3", np.concatenate(parts), DEPTHS)
    for name in report.names("tokens/TS|"):
        if mode := options_of(bench, name.removeprefix("tokens/TS|")):
            report.check(name, depths_of(bench.model(**mode[0]), mode[1]), DEPTHS)
    batch(bench)


def batch(bench: Bench) -> None:
    """Some cells padded to one length, as the official code hands them over."""
    report, at = bench.report, "tokens/batch5_"
    model = bench.model(depth="f1")
    rows = report.input(at + "rows").astype(int)
    found = bench.tokens(model, bench.counts, rows)
    pad, last = bench.pad, model.networks["cell"].shape.positions
    report.check(at + "values", padded(found, found.values, pad))
    report.check(at + "padmask", padded(found, np.zeros(len(found.ids), bool), True))
    report.check(at + "positions_getEncoerDecoderData", padded(found, found.ids, last))
    report.check(at + "positions_gatherData", padded(found, found.ids, pad))


def edge(bench: Bench) -> None:
    """Depths of 0 and less, which the official code drops, and values that are ids of tokens."""
    report = bench.report
    rows = report.input("edge/t0_rows").astype(int)
    for option in sorted({name.split("/")[1].split("_")[0] for name in report.names("edge/") if "_ntokens" in name}):
        model = bench.model(depth=option)
        n = len(report.all[f"edge/{option}_ntokens"])
        found = bench.tokens(model, bench.counts, slice(0, n))
        kept = found.values > 0
        lengths = np.add.reduceat(kept, found.offsets[:-1])
        report.check(f"edge/{option}_ntokens", lengths)
        if report.has(name := f"edge/{option}_last_positions"):
            ends = np.cumsum(lengths)
            report.check(name, np.stack([found.ids[kept][ends - 2], found.ids[kept][ends - 1]], axis=1))
        if report.has(name := f"edge/{option}_T"):
            report.check(name, depths_of(model, bench.counts[:n])[:, 0], DEPTHS)
        adata = bench.counts[rows].copy()
        cfm.tl.embed(adata, model=report.folder, device="cpu", compat="official", depth=option)
        report.check(f"edge/{option}_cell_all", adata.obsm["X_cfm"], VECTORS)
    why = "always float64 here; the official arithmetic follows the dtype of the file where no gene is missing"
    for name in ("edge/float32_input_values_first3", "edge/float32_input_dtype"):
        report.not_covered(name, why)
