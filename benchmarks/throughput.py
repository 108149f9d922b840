"""Cells per second of cfm-mini, from an object in memory to vectors, beside scanpy's way to 50 principal components.

    python benchmarks/throughput.py [--h5ad FILE] [--copies 20]

Without --h5ad the packaged blood cells are used, repeated. Both start from raw counts: the comparison is
normalize_total, log1p and pca on all genes.
"""

from __future__ import annotations

import argparse

import anndata as ad
import scanpy as sc
from side_by_side import compare

import cfm


def main() -> None:
    """Print cells/s and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--h5ad", help="real cells with raw counts in X")
    parser.add_argument("--copies", type=int, default=20)
    options = parser.parse_args()
    cfm.settings.progress = False
    cfm.settings.verbosity = "warning"
    cells = ad.read_h5ad(options.h5ad) if options.h5ad else cfm.datasets.pbmc68k()
    adata = ad.concat([ad.AnnData(cells.X, var=cells.var[[]])] * options.copies)
    adata.obs_names_make_unique()

    def principal_components() -> None:
        copy = adata.copy()
        sc.pp.normalize_total(copy, target_sum=1e4)
        sc.pp.log1p(copy)
        sc.pp.pca(copy)

    ratio = compare(principal_components, lambda: cfm.tl.embed(adata), rounds=5)
    genes = adata.X.nnz / adata.n_obs
    print(f"{adata.n_obs:,} cells, {genes:,.0f} genes each: cfm-mini {adata.n_obs / ratio.seconds[1]:,.0f} cells/s, "
          f"PCA {adata.n_obs / ratio.seconds[0]:,.0f} cells/s; {ratio}")  # fmt: skip


if __name__ == "__main__":
    main()
