"""Counts to tokens of scGPT against the loop over cells with numpy's quantiles that the official code runs.

    python benchmarks/tokenise_scgpt.py [--h5ad FILE]

Prints ratios of two things timed in turns, on the cells of FILE, or on random ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import anndata as ad
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from side_by_side import compare
from tokenise import synthetic

from cfm.models.scgpt.tokenizer import ScgptTokenizer

VOCABULARY, CLS, LENGTH, EDGES = 60_697, 60_695, 1200, 50


def loop_of_cells(
    counts: sp.csr_matrix, tokens: NDArray[np.int32], random: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Tokens and bins of one cell after another."""
    draws = np.random.default_rng(0)
    for cell in range(counts.shape[0]):
        row = counts[cell].toarray()[0]
        which = np.flatnonzero((tokens >= 0) & (row != 0))
        ids, values = tokens[which], row[which]
        edges = np.quantile(values, np.linspace(0, 1, EDGES))
        bins = np.digitize(values, edges)
        if random:
            right = np.digitize(values, edges, right=True)
            bins = np.ceil(draws.random(len(values)) * (right - bins) + bins)
        if len(ids) > LENGTH - 1:
            kept = draws.permutation(len(ids))[: LENGTH - 1]
            ids, bins = ids[kept], bins[kept]
        yield np.r_[CLS, ids], np.r_[-2, bins]


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--h5ad", help="real cells with raw counts in X")
    options = parser.parse_args()
    counts, tokens = synthetic(1_000, 2_000)
    if options.h5ad:
        counts = sp.csr_matrix(ad.read_h5ad(options.h5ad).X)
        tokens = np.random.default_rng(0).permutation(VOCABULARY)[: counts.shape[1]].astype(np.int32)
    for ties in ("left", "random"):
        ours = ScgptTokenizer(tokens, VOCABULARY, CLS, -2, EDGES, LENGTH, ties=ties)
        lengths = [len(ids) for ids, _ in loop_of_cells(counts, tokens, ties == "random")]
        assert ours(counts, 0).lengths.tolist() == lengths
        ratio = compare(
            lambda ties=ties: list(loop_of_cells(counts, tokens, ties == "random")), lambda ours=ours: ours(counts, 0)
        )
        cells = counts.shape[0] / ratio.seconds[1]
        print(f"{counts.shape[0]:,} cells, ties {ties:6s}: {ratio}  {cells:,.0f} cells/s")


if __name__ == "__main__":
    main()
