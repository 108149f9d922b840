"""The token side of the parity of scGPT: bins, preprocessing, collators, with the official draws."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from parity import Report

from cfm.models.scgpt.official import TorchWords, in_column_order
from cfm.tokens import bin_values, quantile_edges

EDGES = 50
PAD_VALUE, MASK_VALUE = -2, -1
MASKED, PROBABILITIES, TARGET_SUM = 0.4, [0.25, 0.5, 0.75], 1e4  # of the README: no array holds them
Cell = tuple[NDArray[np.int64], NDArray[np.float64]]


def compare(report: Report, cells: ad.AnnData) -> None:
    """All arrays of binning, binning_awkward, preprocessor and tokens."""
    counts = sp.csr_matrix(cells.X)
    vocabulary = json.loads((report.folder / "human" / "vocab.json").read_text())
    ids = np.array([vocabulary.get(name, -1) for name in cells.var_names], np.int32)
    if report.has("binning/digits"):
        binning(report, counts)
    if report.has("binning_awkward/row0"):
        awkward(report)
    if report.has("preprocessor/X_binned"):
        preprocessor(report, counts, ids)
    if report.has("tokens/seeds"):
        fine_tuning(report, ids, vocabulary)
        collators(report, counts, ids, vocabulary)


def binning(report: Report, counts: sp.csr_matrix) -> None:
    """Bins of whole cells, over all genes in their order."""
    rows = [counts[int(cell)] for cell in report.input("binning/cells")]
    values = np.concatenate([row.sorted_indices().data for row in rows]).astype(np.float32)
    offsets = np.cumsum([0, *(row.nnz for row in rows)])
    seeds = report.input("binning/np_seeds")
    draws = [np.random.RandomState(seed).random_sample(row.nnz) for seed, row in zip(seeds, rows, strict=True)]
    edges = quantile_edges(values, offsets, EDGES)
    rights = [np.searchsorted(e, values[a:b]) for e, a, b in zip(edges, offsets[:-1], offsets[1:], strict=True)]
    report.check("binning/indptr", offsets)
    report.check("binning/digits", bin_values(values, offsets, EDGES, np.concatenate(draws)))
    report.check("binning/edges", edges)
    report.check("binning/left", bin_values(values, offsets, EDGES))
    report.check("binning/right", np.concatenate(rights))
    report.check("binning/draws_first_cell", draws[0])


def awkward(report: Report) -> None:
    """Rows of ties, negatives, zeros, doubles."""
    for name in report.names("binning_awkward/row"):
        n = name.removeprefix("binning_awkward/row")
        row, draws = report.input(name), report.input(f"binning_awkward/draws{n}")
        binned = row != 0 if row.min() <= 0 else np.ones(len(row), bool)
        offsets = np.array([0, binned.sum()])
        bins = np.zeros(len(row))
        bins[binned] = bin_values(row[binned], offsets, EDGES, draws)
        report.check(f"binning_awkward/bins{n}", bins)
        if report.has(f"binning_awkward/edges{n}"):
            report.check(f"binning_awkward/edges{n}", quantile_edges(row[binned], offsets, EDGES)[0])


def preprocessor(report: Report, counts: sp.csr_matrix, ids: NDArray[np.int32]) -> None:
    """Genes with 3 counts, log-normalised cells, bins over what is left."""
    kept = np.flatnonzero((ids >= 0) & (np.asarray(counts.sum(0)).ravel() >= 3))
    report.check("preprocessor/kept_gene_index", kept)
    rows = counts[:, kept].sorted_indices()
    sums = np.repeat(np.asarray(rows.sum(1)).ravel(), np.diff(rows.indptr))
    logs = sp.csr_matrix((np.log1p(rows.data * (TARGET_SUM / sums)).astype(np.float32), rows.indices, rows.indptr))
    logs.resize(rows.shape)
    draws = np.random.RandomState(report.input("preprocessor/np_seed")).random_sample(logs.nnz)
    offsets = logs.indptr.astype(np.int64)
    bins = sp.csr_matrix((bin_values(logs.data, offsets, EDGES, draws), logs.indices, logs.indptr), logs.shape)
    report.check("preprocessor/X_binned", bins.toarray())
    some = len(report.all["preprocessor/bin_edges"])
    edges = quantile_edges(logs.data, offsets, EDGES)[:some]
    report.check("preprocessor/bin_edges", np.hstack([np.zeros((some, 1)), edges]), 1e-6, by="scale")
    for name in report.names("preprocessor/X_normed_first") + report.names("preprocessor/X_log1p_first"):
        report.check(name, logs[: len(report.all[name])].toarray(), 1e-6, by="scale")


def fine_tuning(report: Report, ids: NDArray[np.int32], vocabulary: dict[str, int]) -> None:
    """tokenize_and_pad_batch and random_mask_value, whose draws are numpy's."""
    genes = ids[report.all["preprocessor/kept_gene_index"]]
    bins = report.all["preprocessor/X_binned"]
    cls, pad, seeds = vocabulary["<cls>"], vocabulary["<pad>"], _seeds(report)
    for tag, chosen, zeros, with_cls in (
        ("nz60", "cells_nz60", False, True),
        ("nz60_nocls", "cells_other", False, False),
        ("zero90", "cells_other", True, True),
    ):
        width = report.all[f"tokens/tok_{tag}_genes"].shape[1]
        cells = []
        for row in bins[report.input(f"tokens/{chosen}")]:
            which = np.arange(len(row)) if zeros else np.flatnonzero(row)
            cells.append((np.r_[[cls] * with_cls, genes[which]], np.r_[[0] * with_cls, row[which]]))
        state = np.random.RandomState(seeds["np tokenize"])

        def sample(n: int, k: int, state: np.random.RandomState = state) -> NDArray[np.int64]:
            return state.choice(n, k, replace=False)

        found = [_fitted(cell, width, sample, keep_first=with_cls) for cell in cells]
        tokens, values = _padded(found, width, pad)
        report.check(f"tokens/tok_{tag}_genes", tokens)
        report.check(f"tokens/tok_{tag}_values", values)
        state = np.random.RandomState(seeds["np random_mask_value"])
        for row in values:
            candidates = np.flatnonzero(row != PAD_VALUE)
            row[state.choice(candidates, int(len(candidates) * MASKED), replace=False)] = MASK_VALUE
        report.check(f"tokens/mask_{tag}", values)


def collators(report: Report, counts: sp.csr_matrix, ids: NDArray[np.int32], vocabulary: dict[str, int]) -> None:
    """DataCollator of both releases: bins by numpy's draws, samples and masks by torch's."""
    genes, values, offsets = in_column_order(counts[report.input("tokens/cells_collator")], ids)
    spans = [slice(a, b) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    cls, pad, seeds = vocabulary["<cls>"], vocabulary["<pad>"], _seeds(report)

    def cells_of(numbers: NDArray[np.generic]) -> list[Cell]:
        return [(np.r_[cls, genes[span]], np.r_[PAD_VALUE, numbers[span]]) for span in spans]

    draws = np.random.RandomState(seeds["np mlm"]).random_sample(len(values))
    words = TorchWords(int(seeds["torch mlm"]))
    width = report.all["tokens/mlm_gene"].shape[1]
    binned = cells_of(bin_values(values, offsets, EDGES, draws))
    tokens, targets = _padded([_fitted(cell, width, _torch(words)) for cell in binned], width, pad)
    report.check("tokens/mlm_gene", tokens)
    report.check("tokens/mlm_expr", targets)
    chances = np.where(targets == PAD_VALUE, 0, MASKED)  # <cls> has the padding value too
    masked = _bernoulli(words, chances)
    report.check("tokens/mlm_masked", np.where(masked, MASK_VALUE, targets))

    width = report.all["tokens/trunc_gene"].shape[1]
    tokens, targets = _padded([(g[:width], v[:width]) for g, v in cells_of(values)], width, pad)
    report.check("tokens/trunc_gene", tokens)
    report.check("tokens/trunc_expr", targets)

    left = cells_of(bin_values(values, offsets, EDGES))
    for tag, share in (("both", None), ("both50", 0.5)):
        if share is None:
            share = np.random.RandomState(seeds["np both"]).choice(PROBABILITIES)
        widths = [report.all[f"tokens/{tag}_{part}_gene"].shape[1] for part in ("pcpt", "gen")]
        known, unknown = _split(left, share, widths, TorchWords(int(seeds["torch both"])))
        for part, cells, width, name in (
            ("pcpt", known, widths[0], "expr"),
            ("gen", unknown, widths[1], "expr_target"),
        ):
            tokens, targets = _padded(cells, width, pad)
            report.check(f"tokens/{tag}_{part}_gene", tokens)
            report.check(f"tokens/{tag}_{part}_{name}", targets)


def _split(cells: list[Cell], share: float, widths: list[int], words: TorchWords) -> tuple[list[Cell], list[Cell]]:
    """Each cell's known and unknown tokens. The sample of the unknown ones keeps their first: so does the official."""
    known, unknown = [], []
    for tokens, values in cells:
        order = 1 + words.permutation(len(tokens) - 1)
        n_unknown = int((len(tokens) - 1) * share)
        asked, rest = order[:n_unknown], np.r_[0, order[n_unknown:]]
        known.append(_fitted((tokens[rest], values[rest]), widths[0], _torch(words)))
        unknown.append(_fitted((tokens[asked], values[asked]), widths[1], _torch(words)))
    return known, unknown


def _fitted(cell: Cell, width: int, sample, keep_first: bool = True) -> Cell:
    """At most so many tokens of a cell, by ``sample(n, k)``."""
    tokens, values = cell
    if len(tokens) <= width:
        return cell
    kept = np.r_[0, 1 + sample(len(tokens) - 1, width - 1)] if keep_first else sample(len(tokens), width)
    return tokens[kept], values[kept]


def _torch(words: TorchWords):
    return lambda n, k: words.permutation(n)[:k]


def _bernoulli(words: TorchWords, chances: NDArray[np.float64]) -> NDArray[np.bool_]:
    """What ``torch.bernoulli`` gives for float32: 24 bits of each word."""
    low = words.words(chances.size) & np.uint32(2**24 - 1)
    return (low.reshape(chances.shape) * 2.0**-24) < chances.astype(np.float32)


def _padded(cells: list[Cell], width: int, pad: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    tokens, values = np.full((len(cells), width), pad), np.full((len(cells), width), float(PAD_VALUE))
    for i, (ids, numbers) in enumerate(cells):
        tokens[i, : len(ids)], values[i, : len(ids)] = ids, numbers
    return tokens, values


def _seeds(report: Report) -> dict[str, int]:
    return dict(zip(report.input("tokens/seed_names").tolist(), report.input("tokens/seeds").tolist(), strict=True))
