"""Peak memory of embedding a backed file, for two numbers of cells.

    python benchmarks/memory.py [--cells 20000 200000]

Each file is made from the packaged blood cells, drawn again and again, and embedded in a process of its own. The
table shows the peak resident memory, that of the same process before the call, and the size of the result. What
grows with the number of cells is to be the result and ``obs``, nothing else.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

import cfm


def make(path: Path, n_cells: int, part: int = 10_000) -> None:
    """Write a file part by part, so that making it needs no memory either."""
    pbmc = cfm.datasets.pbmc68k()
    counts, rng = sp.csr_matrix(pbmc.X), np.random.default_rng(0)
    sizes = [part] * (n_cells // part) + ([n_cells % part] if n_cells % part else [])
    drawn = (counts[rng.integers(0, pbmc.n_obs, size)] for size in sizes)
    ad.AnnData(next(drawn), var=pbmc.var).write_h5ad(path)
    with h5py.File(path, "r+") as handle:
        matrix = ad.io.sparse_dataset(handle["X"])
        for rows in drawn:
            matrix.append(rows)
        index = pd.Index([f"cell{i}" for i in range(n_cells)])
        ad.io.write_elem(handle, "obs", pd.DataFrame(index=index))


def embed(path: Path) -> None:
    """Embed a backed file and print peak memory before and after, in MiB."""
    cfm.settings.progress = False
    adata = ad.read_h5ad(path, backed="r")
    cfm.tl.embed(cfm.datasets.pbmc68k())  # imports, compiled kernels and weights are there before the count begins
    before = peak()
    cfm.tl.embed(adata)
    print(before, peak(), adata.obsm["X_cfm"].nbytes / 2**20)


def peak() -> float:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Print one row per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--embed", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.embed:
        embed(options.embed)
        return
    print("| cells | file (MiB) | before (MiB) | peak (MiB) | result (MiB) |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for n_cells in options.cells:
            path = Path(folder) / f"{n_cells}.h5ad"
            make(path, n_cells)
            done = subprocess.run(
                [sys.executable, __file__, "--embed", path], check=True, capture_output=True, text=True
            )
            before, after, result = map(float, done.stdout.split())
            size = path.stat().st_size / 2**20
            print(f"| {n_cells:,} | {size:,.0f} | {before:,.0f} | {after:,.0f} | {result:,.0f} |")


if __name__ == "__main__":
    main()
