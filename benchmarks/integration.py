"""Integration of batches, scored beside plain methods: python benchmarks/integration.py FILE --batch_key batch --labels_key cell_type

Each row is a method, each column a score of scib-metrics, mean over seeds with the smallest and the largest total.
`auto` is meant to be at or above the baselines in both halves, and the random projection shows what a total is worth.
"""

from __future__ import annotations

import argparse
import time

import anndata as ad
import pandas as pd

import cfm

METHODS = ("auto", "harmony", "scvi", "zero_shot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="+", help="h5ad files with raw counts; several are joined by their common genes")
    parser.add_argument("--batch_key", required=True)
    parser.add_argument("--labels_key", help="leave out to score batches alone")
    parser.add_argument("--condition_key")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--baselines", nargs="*", default=cfm.metrics.BASELINES, choices=cfm.metrics.BASELINES)
    parser.add_argument("--out", help="CSV with all rows of all seeds")
    given = parser.parse_args()
    cfm.settings.progress = False
    adata = read(given.file)
    tables = []
    for seed in range(given.seeds):
        keys = []
        for method in given.methods:
            keys.append(f"cfm {method}")
            start = time.perf_counter()
            cfm.tl.integrate(
                adata,
                batch_key=given.batch_key,
                condition_key=given.condition_key,
                method=method,
                seed=seed,
                key_added=keys[-1],
            )
            print(f"seed {seed}, {keys[-1]}: {time.perf_counter() - start:.1f} s", flush=True)
        scores = cfm.metrics.integration(
            adata,
            batch_key=given.batch_key,
            labels_key=given.labels_key,
            embeddings=keys,
            baselines=given.baselines,
            seed=seed,
        )
        tables.append(scores.assign(seed=seed))
    every = pd.concat(tables).rename_axis("method").reset_index()
    if given.out:
        every.to_csv(given.out, index=False)
    show(every)


def read(files: list[str]) -> ad.AnnData:
    """Cells of one or several files."""
    parts = [ad.read_h5ad(file) for file in files]
    for part in parts:
        part.var_names_make_unique()
    return parts[0] if len(parts) == 1 else ad.concat(parts, join="inner", index_unique="-")


def show(every: pd.DataFrame) -> None:
    """Print means over seeds, and the range of what is to be compared."""
    compared = [name for name in cfm.metrics.TOTALS if name in every] or ["Batch correction"]
    grouped = every.drop(columns="seed").groupby("method", sort=False)
    means, low, high = grouped.mean(), grouped.min(), grouped.max()
    for name in compared:
        means[name] = [f"{m:.3f} ({a:.3f}-{b:.3f})" for m, a, b in zip(means[name], low[name], high[name], strict=True)]
    print(means.round(3).to_string())


if __name__ == "__main__":
    main()
