"""Several modalities in one space, beside plain methods: python benchmarks/modalities.py FILE.h5mu [--labels_key cell_type]

With proteins: types gated by CD3, CD4, CD8, CD19, CD14 and CD56 (or given labels) in the joint space, in what each
modality alone gives and in plain components; then proteins predicted from RNA, over random halves of the cells, beside
nearest neighbours, ridge regression and totalVI. With peaks: cells whose pairing is hidden, found again in the joint
space and by canonical correlation. With three modalities: the same by share of cells that lack each.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, adjusted_rand_score, f1_score, normalized_mutual_info_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.utils.extmath import randomized_svd

import cfm
from cfm.integration import find_modalities

GATES = {
    "CD4 T": ({"CD3", "CD4"}, {"CD8", "CD19", "CD14"}),
    "CD8 T": ({"CD3", "CD8"}, {"CD4", "CD19", "CD14"}),
    "B": ({"CD19"}, {"CD3", "CD14"}),
    "monocyte": ({"CD14"}, {"CD3", "CD19"}),
    "NK": ({"CD56"}, {"CD3", "CD19", "CD14"}),
}
Matrix = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="h5mu file with raw counts")
    parser.add_argument("--labels_key", help="column of obs; without it types are gated by proteins")
    parser.add_argument("--batch_key")
    parser.add_argument("--species")
    parser.add_argument("--seeds", type=int, default=5, help="random halves")
    parser.add_argument("--spaces", type=int, default=3, help="trainings of the joint space for the table of types")
    parser.add_argument(
        "--totalvi", action=argparse.BooleanOptionalAction, default=True, help="train totalVI on the same halves"
    )
    given = parser.parse_args()
    cfm.settings.verbosity, cfm.settings.progress = "error", False
    logging.getLogger("scvi").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*var_names are not unique.*")
    mdata = md.read_h5mu(given.file)
    found = find_modalities(mdata)
    print(f"{given.file.rsplit('/', 1)[-1]}: {mdata.n_obs:,} cells, {', '.join(found.parts)}")
    options = {"batch_key": given.batch_key, "species": given.species}
    if "protein" in found.parts and "rna" in found.parts:
        agreement(mdata, found, given, options)
        imputation(mdata, found, given, options)
    if "atac" in found.parts and "rna" in found.parts:
        pairing(mdata, found, given, options)
    if len(found.parts) == 3:
        mosaic(mdata, found, given, options)


def agreement(mdata: Any, found: Any, given: argparse.Namespace, options: dict[str, Any]) -> None:
    """How well types are told apart in each space."""
    from scib_metrics import clisi_knn
    from scib_metrics.nearest_neighbors import NeighborsResults

    both = paired(found, "rna", "protein")
    labels = labels_of(mdata, found, given.labels_key)
    typed = both & (labels != "")
    rows, values = [], labels[typed]
    logs, clr = rna_values(mdata, found), protein_values(mdata, found)
    plain = {"components of RNA": components(logs, np.flatnonzero(both)), "proteins": clr - clr[both].mean(axis=0)}
    spaces = [("components of RNA", plain["components of RNA"]), ("proteins", plain["proteins"])]
    for seed in range(given.spaces):
        whole = mdata.copy()
        cfm.tl.integrate(whole, seed=seed, **options)
        spaces.append(("cfm joint", whole.obsm["X_cfm_joint"]))
        spaces += [
            (f"cfm {kind} alone", spread(whole.mod[part.name].obsm["X_cfm_joint"], part.rows, len(typed)))
            for kind, part in found.parts.items()
            if kind in ("rna", "protein")
        ]
    for name, space in spaces:
        own = np.asarray(space, np.float64)[typed]
        index = NearestNeighbors(n_neighbors=min(90, len(own) - 1)).fit(own)
        distances, indices = index.kneighbors(own)
        clusters = [KMeans(len(set(values)), n_init=10, random_state=s).fit_predict(own) for s in range(3)]
        rows.append(
            {
                "space": name,
                "NMI": np.mean([normalized_mutual_info_score(values, c) for c in clusters]),
                "ARI": np.mean([adjusted_rand_score(values, c) for c in clusters]),
                "cLISI": clisi_knn(NeighborsResults(indices, distances), pd.factorize(values)[0]),
            }
        )
    counts = dict(zip(*np.unique(values, return_counts=True), strict=True))
    print(f"\ntypes of {len(values):,} cells: { ({str(k): int(v) for k, v in counts.items()}) }")
    show(pd.DataFrame(rows), "space")


def imputation(mdata: Any, found: Any, given: argparse.Namespace, options: dict[str, Any]) -> None:
    """Proteins of half of the cells from their RNA: mean over proteins of Pearson's r over cells."""
    rna, protein = found.parts["rna"], found.parts["protein"]
    both = np.flatnonzero(paired(found, "rna", "protein"))
    logs, truth = rna_values(mdata, found), protein_values(mdata, found)
    rows = []
    for seed in range(given.seeds):
        order = np.random.default_rng(seed).permutation(len(both))
        train, test = both[order[: len(both) // 2]], both[order[len(both) // 2 :]]
        pcs = components(logs, train)
        near = NearestNeighbors(n_neighbors=15).fit(pcs[train]).kneighbors(pcs[test])[1]
        made = {
            "nearest neighbours": truth[train][near].mean(axis=1),
            "ridge": Ridge(alpha=10).fit(pcs[train], truth[train]).predict(pcs[test]),
        }
        hidden = without(mdata, protein.name, test)
        start = time.perf_counter()
        cfm.tl.integrate(hidden, impute=["protein"], seed=seed, **options)
        made["cfm"] = hidden.obsm["cfm_imputed_protein"].loc[mdata.obs_names[test], list(protein.features)].to_numpy()
        seconds = time.perf_counter() - start
        if given.totalvi:
            made["totalVI"] = totalvi(rna, protein, train, test, seed)
        rows += [{"method": name, "r": pearson(values, truth[test]).mean()} for name, values in made.items()]
    print(
        f"\nproteins from RNA, {given.seeds} halves, {len(protein.features)} proteins ({seconds:.0f} s a training of ours)"
    )
    show(pd.DataFrame(rows), "method")


def pairing(mdata: Any, found: Any, given: argparse.Namespace, options: dict[str, Any]) -> None:
    """Cells whose RNA and peaks are given as two cells: how far from each other they end, and labels carried over."""
    rna, atac = found.parts["rna"], found.parts["atac"]
    both = np.flatnonzero(paired(found, "rna", "atac"))
    labels = labels_of(mdata, found, given.labels_key)
    logs, open_ = rna_values(mdata, found), spread(atac.counts.toarray() > 0, atac.rows, mdata.n_obs)
    rows = []
    for seed in range(given.seeds):
        order = np.random.default_rng(seed).permutation(len(both))
        train, test = both[order[: len(both) // 2]], both[order[len(both) // 2 :]]
        spaces = {
            "canonical correlation": canonical(components(logs, train), latent_semantic(open_, train), train),
            "cfm": split_space(mdata, rna.name, atac.name, train, test, seed, options),
        }
        for name, (a, b) in spaces.items():
            a, b = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (a, b))
            row = {"method": name, "FOSCTTM": foscttm(a[test], b[test])}
            if labels is not None:
                guess = KNeighborsClassifier(15).fit(a[train], labels[train]).predict(b[test])
                row |= {
                    "accuracy": accuracy_score(labels[test], guess),
                    "macro-F1": f1_score(labels[test], guess, average="macro"),
                }
            rows.append(row)
    print(f"\nRNA and peaks of {len(test):,} cells each as two cells, {given.seeds} halves; chance 0.5")
    show(pd.DataFrame(rows), "method")


def mosaic(mdata: Any, found: Any, given: argparse.Namespace, options: dict[str, Any]) -> None:
    """Three modalities of which cells lack some: types told apart, by share of missing cells."""
    labels = labels_of(mdata, found, given.labels_key)
    rows = []
    for share in (0.0, 0.25, 0.5, 0.75):
        for seed in range(given.spaces):
            thin = thinned(mdata, found, share, seed)
            cfm.tl.integrate(thin, seed=seed, **options)
            space = pd.DataFrame(thin.obsm["X_cfm_joint"], thin.obs_names).loc[mdata.obs_names].to_numpy()
            typed = labels != ""
            clusters = KMeans(len(set(labels[typed])), n_init=10, random_state=0).fit_predict(space[typed])
            rows.append(
                {
                    "missing": f"{share:.0%}",
                    "NMI": normalized_mutual_info_score(labels[typed], clusters),
                    "ARI": adjusted_rand_score(labels[typed], clusters),
                    "same neighbours": neighbour_accuracy(space[typed], labels[typed]),
                }
            )
    print("\nthree modalities, by the share of cells that lack each")
    show(pd.DataFrame(rows), "missing")


def thinned(mdata: Any, found: Any, share: float, seed: int) -> Any:
    """Each modality without a random share of its cells; every cell keeps one of those that it has."""
    generator = np.random.default_rng(seed)
    order = np.where(found.measured, generator.random(found.measured.shape), -1)
    keep = found.measured & ((order >= share) | (order == order.max(axis=1, keepdims=True)))
    return md.MuData(
        {part.name: mdata.mod[part.name][keep[part.rows, i]].copy() for i, part in enumerate(found.parts.values())}
    )


def neighbour_accuracy(space: Matrix, labels: NDArray[Any]) -> float:
    """Share of cells whose 15 nearest neighbours agree with them by majority."""
    near = NearestNeighbors(n_neighbors=16).fit(space).kneighbors(space)[1][:, 1:]
    codes, names = pd.factorize(labels)
    votes = np.stack([(codes[near] == i).sum(axis=1) for i in range(len(names))], axis=1)
    return float((votes.argmax(axis=1) == codes).mean())


def paired(found: Any, *kinds: str) -> NDArray[np.bool_]:
    """Which cells have all of some modalities."""
    return np.asarray(found.measured[:, [list(found.parts).index(kind) for kind in kinds]].all(axis=1))


def labels_of(mdata: Any, found: Any, key: str | None) -> NDArray[Any]:
    """Type of each cell; empty where it has none."""
    if key is not None:
        for obs in (mdata.obs, *(mod.obs for mod in mdata.mod.values())):
            if key in obs:
                return obs[key].astype(str).reindex(mdata.obs_names).fillna("").to_numpy(str)
        raise SystemExit(f"No obs has {key!r}.")
    if "protein" not in found.parts:
        return np.full(mdata.n_obs, "all", dtype=object)
    return gated(found, protein_values(mdata, found))


def gated(found: Any, clr: Matrix) -> NDArray[Any]:
    """Types by positive and negative proteins; a protein is positive where the higher of two normal distributions is likelier."""
    part = found.parts["protein"]
    names = {
        name.split("_")[0].split(" ")[0].replace("CD8a", "CD8"): i
        for i, name in reversed(list(enumerate(part.features)))
    }
    positive = {}
    for name in {"CD3", "CD4", "CD8", "CD19", "CD14", "CD56"} & set(names):
        values = clr[part.rows][:, [names[name]]]
        mixture = GaussianMixture(2, random_state=0).fit(values)
        positive[name] = mixture.predict(values) == np.argmax(mixture.means_.ravel())
    labels = np.full(len(clr), "", dtype=object)
    for kind, (needs, lacks) in GATES.items():
        if needs <= set(positive):
            here = np.all([positive[n] for n in needs] + [~positive[n] for n in lacks & set(positive)], axis=0)
            labels[part.rows[here]] = kind
    return labels


def rna_values(mdata: Any, found: Any) -> Matrix:
    """log1p of counts per 10,000, all cells of the object."""
    part = found.parts["rna"]
    counts = part.counts.toarray().astype(np.float64)
    return spread(np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True).clip(1)), part.rows, mdata.n_obs)


def protein_values(mdata: Any, found: Any) -> Matrix:
    """log1p of counts over the geometric mean of the cell, over all proteins of the file, isotype controls too."""
    part = found.parts["protein"]
    every = mdata.mod[part.name].X
    every = every.toarray() if sp.issparse(every) else np.asarray(every)
    clr = np.log1p(every / np.exp(np.log1p(every).mean(axis=1, keepdims=True)))
    return spread(clr[:, part.columns], part.rows, mdata.n_obs)


def spread(values: NDArray[Any], rows: NDArray[np.int64], n_cells: int) -> Matrix:
    """Rows at the places of their cells."""
    out = np.zeros((n_cells, values.shape[1]))
    out[rows] = values
    return out


def components(logs: Matrix, train: NDArray[np.int64], n: int = 20) -> Matrix:
    """Principal components of the 2,000 genes that vary most in some cells."""
    seen = (logs[train] > 0).sum(axis=0) >= 3
    top = np.argsort(-np.where(seen, logs[train].var(axis=0), -1), kind="stable")[:2000]
    return np.asarray(PCA(n, svd_solver="full").fit(logs[train][:, top]).transform(logs[:, top]))


def latent_semantic(open_: Matrix, train: NDArray[np.int64], n: int = 20) -> Matrix:
    """Latent semantic indexing of open peaks, the first direction left out."""
    weight = len(train) / open_[train].sum(axis=0).clip(1)
    values = np.log1p(1e4 * open_ / open_.sum(axis=1, keepdims=True).clip(1) * weight)
    return np.asarray((values @ randomized_svd(values[train], n, random_state=0)[2].T)[:, 1:])


def canonical(
    a: Matrix, b: Matrix, train: NDArray[np.int64], n: int = 10, ridge: float = 1e-3
) -> tuple[Matrix, Matrix]:
    """Canonical correlation of paired cells, directions weighted by their correlation."""

    def whitening(x: Matrix) -> Matrix:
        covariance = x[train].T @ x[train] / len(train)
        values, vectors = np.linalg.eigh(
            covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        )
        return np.asarray(vectors @ np.diag(values**-0.5) @ vectors.T)

    a, b = a - a[train].mean(axis=0), b - b[train].mean(axis=0)
    left, right = whitening(a), whitening(b)
    u, s, v = np.linalg.svd(left @ (a[train].T @ b[train] / len(train)) @ right)
    return a @ left @ u[:, :n] * s[:n], b @ right @ v[:n].T * s[:n]


def split_space(
    mdata: Any,
    rna: str,
    atac: str,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    seed: int,
    options: dict[str, Any],
) -> tuple[Matrix, Matrix]:
    """Train on paired cells and on the test cells as two cells each; where RNA alone and peaks alone put them."""
    peaks = mdata.mod[atac][mdata.obs_names[np.concatenate([train, test])]].copy()
    hidden = set(mdata.obs_names[test])
    peaks.obs_names = [f"peaks of {name}" if name in hidden else name for name in peaks.obs_names]
    apart = md.MuData({rna: mdata.mod[rna].copy(), atac: peaks})
    cfm.tl.integrate(apart, seed=seed, **options)
    by_rna = pd.DataFrame(apart.mod[rna].obsm["X_cfm_joint"], apart.mod[rna].obs_names).loc[mdata.obs_names].to_numpy()
    by_peaks = np.zeros_like(by_rna)
    by_peaks[np.concatenate([train, test])] = apart.mod[atac].obsm["X_cfm_joint"]
    return by_rna, by_peaks


def without(mdata: Any, name: str, cells: NDArray[np.int64]) -> Any:
    """The object with some cells taken out of one modality."""
    mods = {key: mod.copy() for key, mod in mdata.mod.items()}
    mods[name] = mods[name][~mods[name].obs_names.isin(mdata.obs_names[cells])].copy()
    return md.MuData(mods)


def totalvi(rna: Any, protein: Any, train: NDArray[np.int64], test: NDArray[np.int64], seed: int) -> Matrix:
    """Proteins by totalVI, trained with those of the test cells left out (all zero means missing to it)."""
    import scvi

    from cfm.integration.joint.quiet import quiet

    scvi.settings.seed = seed
    counts = sp.csr_matrix(rna.counts)
    variance = np.asarray(counts.multiply(counts).mean(axis=0) - np.square(counts.mean(axis=0))).ravel()
    genes = np.sort(np.argsort(-variance)[:2000])
    cells = np.concatenate([train, test])
    adata = AnnData(counts[cells][:, genes], pd.DataFrame(index=[str(i) for i in range(len(cells))]))
    measured = protein.counts.toarray()[cells]
    measured[len(train) :] = 0
    adata.obsm["protein"] = measured
    adata.obs["half"] = ["train"] * len(train) + ["test"] * len(test)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of scvi-tools: about MuData, and proteins that are all 0, which here means missing
        scvi.model.TOTALVI.setup_anndata(adata, batch_key="half", protein_expression_obsm_key="protein")
        model = scvi.model.TOTALVI(adata)
        model.train(accelerator="cpu", enable_progress_bar=False)
        _, found = model.get_normalized_expression(
            indices=np.arange(len(train), len(cells)), transform_batch="train", n_samples=10, return_mean=True
        )
    return np.log1p(np.asarray(found))


def foscttm(a: Matrix, b: Matrix) -> float:
    """Share of cells that are nearer to a cell than its own other half, mean of both directions."""
    near = a @ b.T
    own = np.diag(near)
    return float(((near > own[:, None]).sum(axis=1).mean() + (near > own).sum(axis=0).mean()) / 2 / (len(a) - 1))


def pearson(a: Matrix, b: Matrix) -> Matrix:
    """Correlation of each column."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return np.asarray((a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0)).clip(1e-12))


def show(rows: pd.DataFrame, by: str) -> None:
    """Mean and standard deviation over seeds."""
    grouped = rows.groupby(by, sort=False)
    form: Callable[[pd.Series], str] = lambda x: (
        f"{x.mean():.3f} +- {x.std(ddof=0):.3f}" if len(x) > 1 else f"{x.mean():.3f}"
    )
    print(grouped.agg(form).to_string())


if __name__ == "__main__":
    main()
