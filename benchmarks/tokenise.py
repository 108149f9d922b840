"""The rank encoder against numpy's stable argsort, its threads, and the way from CSR to tokens against a loop.

    python benchmarks/tokenise.py [--h5ad FILE]

Prints ratios of two things timed in turns. With --h5ad the last one also runs on that file's cells.
"""

from __future__ import annotations

import argparse

import anndata as ad
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from side_by_side import compare

import cfm
from cfm.tokens import TokenBatch, gene_rows, rank_ids, rank_order

VOCABULARY = 20_000


def ranks(non_zeros: int, n_cells: int = 100) -> None:
    """rank_order on one thread against np.argsort(-row, kind='stable') row by row."""
    rng = np.random.default_rng(0)
    offsets = np.arange(n_cells + 1) * non_zeros
    kinds = {"distinct": rng.random((n_cells, non_zeros)), "counts": rng.poisson(1.5, (n_cells, non_zeros)) + 1.0}
    for kind, values in kinds.items():
        rows = values.astype(np.float32)

        def loop(rows: NDArray[np.float32] = rows) -> None:
            for row in rows:
                np.argsort(-row, kind="stable")

        with cfm.settings.override(threads=1):
            found = rank_order(rows.ravel(), offsets).reshape(rows.shape)
            assert (found == np.argsort(-rows.astype(np.float64), axis=1, kind="stable")).all()
            ratio = compare(loop, lambda rows=rows: rank_order(rows.ravel(), offsets))
        print(f"rank, {non_zeros:,} non-zeros, {kind:8s}: {ratio}")


def threads(n_cells: int = 2_000, non_zeros: int = 2_000) -> None:
    """Two threads against one, on the whole way from CSR rows to tokens in rank order."""
    counts, tokens = synthetic(n_cells, non_zeros)

    def work(n: int) -> None:
        with cfm.settings.override(threads=n):
            encode(counts, tokens)

    print(f"two threads against one      : {compare(lambda: work(1), lambda: work(2))}")


def path(counts: sp.csr_matrix, tokens: NDArray[np.int32], name: str) -> None:
    """CSR to TokenBatch in rank order, all threads, against the per-cell loop that people write."""
    batch = encode(counts, tokens)
    for cell, ids in enumerate(loop_of_cells(counts, tokens)):
        assert np.array_equal(ids, batch.ids[batch.offsets[cell] : batch.offsets[cell + 1]])
    ratio = compare(lambda: list(loop_of_cells(counts, tokens)), lambda: encode(counts, tokens), rounds=7)
    cells = counts.shape[0] / ratio.seconds[1]
    print(f"CSR to TokenBatch, {name:10s}: {ratio}  {cells:,.0f} cells/s")


def encode(counts: sp.csr_matrix, tokens: NDArray[np.int32]) -> TokenBatch:
    """Known genes of each cell, highest count first, ties by token id."""
    rows = gene_rows(counts, tokens, VOCABULARY)
    ids = rank_ids(rows.ids, rows.counts, rows.offsets)
    return TokenBatch(ids, None, rows.offsets, np.arange(counts.shape[0]))


def loop_of_cells(counts: sp.csr_matrix, tokens: NDArray[np.int32]):
    """The same cell by cell with numpy."""
    for cell in range(counts.shape[0]):
        row = counts[cell]
        ids, values = tokens[row.indices], row.data
        known = ids >= 0
        ids, values = ids[known], values[known]
        ascending = np.argsort(ids)
        ids, values = ids[ascending], values[ascending]
        yield ids[np.argsort(-values, kind="stable")]


def synthetic(n_cells: int, non_zeros: int) -> tuple[sp.csr_matrix, NDArray[np.int32]]:
    """Random cells over 30,000 genes, two thirds of which the vocabulary knows."""
    rng = np.random.default_rng(0)
    indices = np.concatenate([np.sort(rng.choice(30_000, non_zeros, replace=False)) for _ in range(n_cells)])
    data = (rng.poisson(1.5, n_cells * non_zeros) + 1).astype(np.float32)
    counts = sp.csr_matrix((data, indices, np.arange(n_cells + 1) * non_zeros), shape=(n_cells, 30_000))
    tokens = np.full(30_000, -1, np.int32)
    tokens[rng.permutation(30_000)[:VOCABULARY]] = np.arange(VOCABULARY)
    return counts, tokens


def main() -> None:
    """Print all ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--h5ad", help="real cells with raw counts in X")
    options = parser.parse_args()
    for non_zeros in (2_000, 6_000):
        ranks(non_zeros)
    threads()
    path(*synthetic(1_000, 2_000), "2,000 genes")
    if options.h5ad:
        counts = sp.csr_matrix(ad.read_h5ad(options.h5ad).X)
        tokens = np.random.default_rng(0).permutation(counts.shape[1]).astype(np.int32)
        tokens[tokens >= VOCABULARY] = -1
        path(counts, tokens, "real cells")


if __name__ == "__main__":
    main()
