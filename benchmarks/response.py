"""Does the response to a treatment survive integration? python benchmarks/response.py FILE --batch_key condition --condition_key condition --labels_key cell_type

Each cell is replaced by the mean of its 15 nearest neighbours in a space; what is left of the difference between conditions
then says whether the space still knows it. By cell type, over the genes that respond most (or those named): the share of
the difference that is left, and over all variable genes the correlation with the difference that was measured. 1 and 1 is
a response that is kept, 0 one that was taken out as if it were a batch.
"""

from __future__ import annotations

import argparse
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

import cfm
from cfm.counts import find_counts
from cfm.integration import baselines, expression, find_batches

FEWEST = 20
"""Cells of a type in each condition."""
Matrix = NDArray[np.floating]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="h5ad file with raw counts")
    parser.add_argument("--batch_key", required=True)
    parser.add_argument("--condition_key", required=True)
    parser.add_argument("--labels_key", required=True)
    parser.add_argument("--genes", nargs="*", help="genes that respond; without it the 20 with the largest difference")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    cfm.settings.progress = False
    adata = ad.read_h5ad(given.file)
    adata.var_names_make_unique()
    keys = {"batch_key": given.batch_key}
    source = find_counts(adata)
    genes = expression(source, find_batches(adata.obs, **keys))
    measured, names = genes.values.toarray(), source.var.index.to_numpy(str)[genes.columns]
    response = Response(adata, measured, names, given)
    print(f"{len(response.masks)} types; genes: {', '.join(names[response.chosen])}", flush=True)
    rows = []
    for seed in range(given.seeds):
        for condition_key in (None, given.condition_key):
            for method in ("auto", "scvi"):
                name = f"cfm {method}" + (", condition_key=" if condition_key else "")
                print(f"seed {seed}, {name}", flush=True)
                options: dict[str, Any] = {"impute": ["rna"]} if method == "scvi" else {}
                cfm.tl.integrate(
                    adata, **keys, condition_key=condition_key, method=method, seed=seed, key_added="X_own", **options
                )
                rows.append({"space": name, **response.left(neighbours(adata.obsm["X_own"], measured))})
                if method == "scvi":
                    own = pd.DataFrame(adata.layers["cfm_imputed"], columns=adata.var_names)
                    denoised = own.reindex(columns=names).fillna(0).to_numpy()
                    rows.append({"space": f"{name}: denoised", **response.left(denoised)})
        batches = find_batches(adata.obs, **keys)
        for baseline in (baselines.pca, baselines.harmony, baselines.scvi, baselines.combat):
            space = baseline(genes, batches, seed)
            rows.append({"space": baseline.__name__, **response.left(neighbours(space, measured))})
    print(pd.DataFrame(rows).groupby("space", sort=False).agg(["mean", "min", "max"]).round(3).to_string())


class Response:
    """The difference between two conditions, as it was measured.

    Parameters
    ----------
    adata
        Cells with conditions and types.
    measured
        [n_cells, n_genes]: log-normalised values.
    names
        Of the genes.
    given
        Arguments of the command.
    """

    def __init__(self, adata: ad.AnnData, measured: Matrix, names: NDArray[np.str_], given: argparse.Namespace) -> None:
        conditions = adata.obs[given.condition_key].astype("category")
        if len(conditions.cat.categories) != 2:
            raise SystemExit(
                f"{given.condition_key} has {len(conditions.cat.categories)} values; this compares two conditions."
            )
        first = (conditions.cat.codes == 0).to_numpy()
        labels = adata.obs[given.labels_key].astype(str).to_numpy()
        pairs = [((labels == label) & first, (labels == label) & ~first) for label in sorted(set(labels))]
        self.masks = [pair for pair in pairs if min(mask.sum() for mask in pair) >= FEWEST]
        self.measured = self.differences(measured)
        if given.genes:
            self.chosen = np.flatnonzero(np.isin(names, given.genes))
        else:
            self.chosen = np.argsort(-np.abs(self.measured.mean(axis=0)), kind="stable")[:20]

    def differences(self, values: Matrix) -> Matrix:
        """[types, genes]: mean of the second condition minus that of the first."""
        return np.stack([values[second].mean(axis=0) - values[first].mean(axis=0) for first, second in self.masks])

    def left(self, values: Matrix) -> dict[str, float]:
        """What is left of it, mean over types."""
        found = self.differences(values)
        own = self.measured[:, self.chosen]
        share = (found[:, self.chosen] * own).sum(axis=1) / np.square(own).sum(axis=1)
        agreement = [np.corrcoef(a, b)[0, 1] for a, b in zip(found, self.measured, strict=True)]
        return {"share left": float(share.mean()), "correlation": float(np.mean(agreement))}


def neighbours(space: Matrix, values: Matrix) -> Matrix:
    """Mean over the 15 nearest neighbours of each cell, without itself."""
    near = NearestNeighbors(n_neighbors=15).fit(space).kneighbors(return_distance=False)
    return np.stack([values[own].mean(axis=0) for own in near])


if __name__ == "__main__":
    main()
