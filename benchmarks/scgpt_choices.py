"""Which choices of scGPT's tokeniser give the steadier vector: ties left or random, genes random or top.

    python benchmarks/scgpt_choices.py FOLDER --h5ad FILE [--max-length N]

FOLDER is a checkpoint, FILE has raw counts. Prints, for each choice, the mean cosine of a cell's vectors

- under two seeds, and
- before and after 10 % of its counts are thrown away at random,

each after the mean vector of all cells is taken off (else all cosines are near 1), and how many cells are closest to
their own thinned self among all thinned cells.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

import cfm

KEPT = 0.9
SEEDS = 3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--h5ad", type=Path, required=True)
    parser.add_argument("--max-length", type=int, help="most tokens of a cell; short ones show the choice of genes")
    options = parser.parse_args()
    cfm.settings.progress, cfm.settings.verbosity = False, "error"
    cells = ad.read_h5ad(options.h5ad)
    cells = cells[np.asarray(cells.X.sum(1)).ravel() > 0].copy()
    print("| ties | select | two seeds | 10 % thinned | finds itself |\n| --- | --- | --- | --- | --- |")
    for ties, select in product(("left", "random"), ("random", "top")):
        chosen = {"model": options.folder, "max_length": options.max_length, "ties": ties, "select": select}
        whole = [vectors(cells, seed=seed, **chosen) for seed in range(SEEDS)]
        thin = [vectors(thinned(cells, seed), seed=0, **chosen) for seed in range(SEEDS)]
        seeds = np.mean([cosine(whole[0], other) for other in whole[1:]])
        depth = np.mean([cosine(whole[0], other) for other in thin])
        found = np.mean([((whole[0] @ other.T).argmax(1) == np.arange(len(other))).mean() for other in thin])
        print(f"| {ties} | {select} | {seeds:.3f} | {depth:.3f} | {found:.0%} |")


def vectors(cells: ad.AnnData, **options: object) -> NDArray[np.float32]:
    """Vectors of length 1, the mean of all cells taken off."""
    cfm.tl.embed(cells, device="cpu", **options)
    found = cells.obsm["X_cfm"] - cells.obsm["X_cfm"].mean(0)
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12)


def thinned(cells: ad.AnnData, seed: int) -> ad.AnnData:
    """The cells with each count kept with a chance of 90 %."""
    other = cells.copy()
    counts = sp.csr_matrix(other.X)
    counts.data = np.random.default_rng(seed).binomial(counts.data.astype(np.int64), KEPT).astype(np.float32)
    counts.eliminate_zeros()
    other.X = counts
    return other


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Mean cosine of rows."""
    return float((a * b).sum(1).mean())


if __name__ == "__main__":
    main()
