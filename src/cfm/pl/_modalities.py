"""Several modalities in one space, and what they predict of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cfm._core import records
from cfm._core.errors import MissingKeyError, OptionError
from cfm.integration.pairing import rows_of

from ._figure import new_figure
from ._measured import Pair, default_features, find_pair

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442", "#8C564B", "#7F7F7F",
            "#BCBD22", "#9467BD", "#17BECF", "#000080", "#F08080", "#006400")  # fmt: skip
"""Those of Okabe and Ito first, which colour-blind readers can tell apart."""
_NOTHING = "0.85"
_KINDS = {"rna": "#56B4E9", "protein": "#E69F00", "atac": "#009E73"}
_FEWEST = 10


def modalities(mdata: Any, *, color: str | None = None, key: str = records.JOINT, seed: int = 0) -> Figure:
    """Show the space of all modalities beside that of each alone, and what each contributes to a cell.

    Parameters
    ----------
    mdata
        A MuData object after `cfm.tl.integrate`.
    color
        Column of ``obs``, of `mdata` or of a modality (``"rna:cell_type"`` names one), or a modality (``"rna"``,
        ``"protein"``, ``"atac"``) for its weight. None is the weight of the first modality.
    key
        Key of the vectors.
    seed
        Of the UMAP.

    Returns
    -------
    The figure. Above: a UMAP of the vectors of all modalities, then one for each modality alone, which has the cells that were
    measured in it. Below: the weights of the modalities, a column for each cell, in order of the first modality's weight. If
    `color` has groups, each has the same width, whatever its number of cells.

    Raises
    ------
    MissingKeyError
        No such vectors, weights or column.
    OptionError
        No MuData object, or fewer than 10 cells.

    Examples
    --------
    >>> import cfm, mudata
    >>> mdata = mudata.read("cells.h5mu")  # doctest: +SKIP
    >>> cfm.tl.integrate(mdata)  # doctest: +SKIP
    >>> figure = cfm.pl.modalities(mdata, color="cell_type")  # doctest: +SKIP
    """
    if not hasattr(mdata, "mod"):
        raise OptionError(
            f"Expected a MuData object, got {type(mdata).__name__}. One modality is drawn by scanpy: "
            f"sc.pp.neighbors(adata, use_rep={records.INTEGRATED!r}), then sc.tl.umap and sc.pl.umap."
        )
    weights = _weights(mdata, key)
    vectors = np.asarray(mdata.obsm[key])
    # Cells in which nothing was measured have zeros, which say nothing of where they belong.
    there = np.flatnonzero(weights.to_numpy().sum(axis=1) > 0)
    if len(there) < _FEWEST:
        raise OptionError(f"{len(there)} cells with vectors are too few for a UMAP: take {_FEWEST} or more.")
    values, title = _values(mdata, color, weights)
    panels = [("all modalities", vectors[there], there)]
    for name in mdata.mod:
        if key in mdata.mod[name].obsm:
            panels.append((f"{name} alone", np.asarray(mdata.mod[name].obsm[key]), rows_of(mdata, name)))
    figure = new_figure(3.4 * len(panels) + 2, 5.6)
    grid = figure.add_gridspec(2, len(panels), height_ratios=[1.6, 1])
    above = [figure.add_subplot(grid[0, i]) for i in range(len(panels))]
    groups = _groups(values)
    # One scale for all panels, which need not have the same cells.
    known = values.iloc[there].dropna().to_numpy(float) if groups is None else np.zeros(1)
    norm = Normalize(float(known.min()), float(known.max())) if len(known) else Normalize(0, 1)
    for axes, (name, points, rows) in zip(above, panels, strict=True):
        _umap(axes, f"{name}\n{len(rows):,} cells", points, values.iloc[rows], groups, norm, seed)
    _shares(figure.add_subplot(grid[1, :]), weights.iloc[there], values.iloc[there], groups)
    if groups is None:
        figure.colorbar(ScalarMappable(norm, colormaps["viridis"]), ax=above[-1], label=title)
    else:
        marks = [Line2D([], [], marker="o", linestyle="", color=c, label=name) for name, c in groups.items()]
        if values.isna().any():
            marks.append(Line2D([], [], marker="o", linestyle="", color=_NOTHING, label="no value"))
        figure.legend(handles=marks, loc="outside right upper", frameon=False, title=title, ncols=1 + len(marks) // 20)
    return figure


def imputation(
    data: Any,
    modality: str | None = None,
    *,
    features: Sequence[str] | str | None = None,
    layer: str | None = None,
) -> Figure:
    """Show what was measured against what was predicted, feature by feature.

    Parameters
    ----------
    data
        A MuData object after `cfm.tl.integrate` with `impute`, or an AnnData object after ``method="scvi"`` with `impute`.
    modality
        The modality: its key in ``mdata.mod``, or ``"rna"``, ``"protein"``, ``"atac"``. None takes the only one that was
        predicted.
    features
        Names out of ``var_names``. None takes the six that vary most in what was measured, however well they were predicted.
    layer
        Layer with the counts, if not where `cfm.tl.integrate` looks by itself.

    Returns
    -------
    The figure: one panel for each feature, with Pearson's r over the cells of the modality in its title. Points are cells, and
    lines reach one standard deviation of the prediction up and down; the grey line is where both are equal. What was measured stands on the scale of what was
    predicted: proteins log1p of counts over the geometric mean of the cell, RNA log1p of counts per 10,000. Peaks are open or
    not, so these have two violins, with the mean and the mean standard deviation inside.

    Raises
    ------
    MissingKeyError
        Nothing was predicted, or no such modality, layer or feature.
    OptionError
        Several modalities were predicted, and none is named; or a feature was not in use.
    CountsError
        The counts are not where they were.

    Notes
    -----
    A cell that has other modalities is predicted from these, any other cell from the modality itself. And the model was trained
    on the very values that are shown here, so r says how well it fits, not how well it predicts. For a test, leave the modality
    out for some cells, as in the tutorial on CITE-seq, and compare ``mdata.obsm["cfm_imputed_protein"]`` with what was left out.

    Examples
    --------
    >>> import cfm, mudata
    >>> mdata = mudata.read("cells.h5mu")  # doctest: +SKIP
    >>> cfm.tl.integrate(mdata, impute=["protein"])  # doctest: +SKIP
    >>> figure = cfm.pl.imputation(mdata, "protein", features=["CD3", "CD19"])  # doctest: +SKIP
    """
    pair = find_pair(data, modality, layer)
    columns = default_features(pair) if features is None else _columns(pair, features)
    width = min(3, len(columns))
    height = -(-len(columns) // width)
    figure = new_figure(3.2 * width, 3.2 * height)
    panels = figure.subplots(height, width, squeeze=False).ravel()
    for axes, column in zip(panels, columns, strict=False):
        _feature(axes, pair, column)
    for axes in panels[len(columns) :]:
        axes.remove()
    return figure


def _weights(mdata: Any, key: str) -> pd.DataFrame:
    if key not in mdata.obsm or records.WEIGHTS not in mdata.obsm:
        # Every modality has a mask in obsm, which is no result.
        there = sorted(str(name) for name in mdata.obsm if name not in mdata.mod)
        absent = key if key not in mdata.obsm else records.WEIGHTS
        raise MissingKeyError(
            f"mdata.obsm has no {absent!r}. It has {there}; cfm.tl.integrate(mdata) with method='scvi' writes vectors and weights."
        )
    weights = mdata.obsm[records.WEIGHTS]
    return pd.DataFrame(weights).fillna(0)


def _values(mdata: Any, color: str | None, weights: pd.DataFrame) -> tuple[pd.Series, str]:
    """What the cells are coloured by, in the order of ``mdata.obs``, and its name."""
    name = str(weights.columns[0]) if color is None else color
    found = None if color is None else _column(mdata, name)
    if found is not None:
        return found, name
    if name in weights:
        return pd.Series(weights[name].to_numpy()), f"weight of {name}"
    columns = {key: list(map(str, mdata.mod[key].obs.columns)) for key in mdata.mod}
    raise MissingKeyError(
        f"No {name!r} in mdata.obs, which has {list(map(str, mdata.obs.columns))}, nor in obs of the modalities, which have "
        f"{columns}. Type color= with one of these, or with one of {list(map(str, weights.columns))} for its weight."
    )


def _column(mdata: Any, name: str) -> pd.Series | None:
    """A column of ``mdata.obs``; values that it lacks, and columns that it lacks, come from the modalities."""
    found = pd.Series(mdata.obs[name].to_numpy(), dtype=object) if name in mdata.obs else None
    for key in mdata.mod:
        own = name.removeprefix(f"{key}:")
        obs = mdata.mod[key].obs
        if own in obs and (own == name or name not in mdata.obs):
            values = pd.Series(None, index=range(mdata.n_obs), dtype=object)
            values.iloc[rows_of(mdata, key)] = obs[own].to_numpy(dtype=object)
            found = values if found is None else found.where(found.notna(), values)
    return None if found is None else found.infer_objects()


def _groups(values: pd.Series) -> dict[str, str] | None:
    """Colours by group, or None for numbers."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return None
    names = sorted(values.dropna().astype(str).unique())
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}


def _umap(
    axes: Axes,
    title: str,
    points: NDArray[np.float32],
    values: pd.Series,
    groups: dict[str, str] | None,
    norm: Normalize,
    seed: int,
) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", box_aspect=1)
    axes.spines[["top", "right"]].set_visible(False)
    flat = _two_dimensions(points, seed)
    order = np.random.default_rng(0).permutation(len(flat))  # so that no group lies on top of the others
    flat, values = flat[order], values.iloc[order]
    size = float(np.clip(4000 / max(len(flat), 1), 3, 16))
    if groups is None:
        shades = colormaps["viridis"].with_extremes(bad=_NOTHING)(norm(np.ma.masked_invalid(values.to_numpy(float))))
    else:
        shades = [_NOTHING if pd.isna(value) else groups[str(value)] for value in values]
    axes.scatter(flat[:, 0], flat[:, 1], c=shades, s=size, linewidths=0)


def _two_dimensions(points: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """A UMAP; of fewer cells than it can take, the first two principal axes."""
    if len(points) < _FEWEST:
        centred = points - points.mean(axis=0)
        axes = np.linalg.svd(np.vstack([centred, np.zeros((2, points.shape[1]), points.dtype)]), full_matrices=False)[2]
        return np.asarray(centred @ axes[:2].T)
    import scanpy as sc

    cells = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(points))]))
    cells.obsm["X"] = points
    sc.pp.neighbors(cells, n_neighbors=min(15, len(points) - 1), use_rep="X", random_state=seed)
    sc.tl.umap(cells, random_state=seed)
    return np.asarray(cells.obsm["X_umap"])


def _shares(axes: Axes, weights: pd.DataFrame, values: pd.Series, groups: dict[str, str] | None) -> None:
    """A stack for each cell; groups of any size have the same width."""
    if groups is None:
        parts = {f"{len(weights):,} cells": weights}
    else:
        names = values.astype(object).where(values.notna(), "no value").astype(str).to_numpy()
        order = [*groups, *({"no value"} & set(names) - set(groups))]
        parts = {f"{name} ({(names == name).sum():,})": weights[names == name] for name in order}
        parts = {name: part for name, part in parts.items() if len(part)}
    for place, part in enumerate(parts.values()):
        ordered = part.sort_values(str(part.columns[0]), kind="stable").to_numpy()
        # Each cell is a step, so that one cell has a width too.
        x = np.linspace(place + 0.03, place + 0.97, len(ordered) + 1)
        top = np.zeros(len(ordered) + 1)
        for column, kind in enumerate(part.columns):
            bottom = top
            top = bottom + np.append(ordered[:, column], ordered[-1:, column])
            axes.fill_between(x, bottom, top, step="post", color=_KINDS.get(str(kind), "0.5"), linewidth=0,
                              label=str(kind) if place == 0 else None)  # fmt: skip
    turned = len(parts) > 6
    axes.set_xticks(
        np.arange(len(parts)) + 0.5, list(parts), rotation=35 if turned else 0, ha="right" if turned else "center"
    )
    axes.tick_params(axis="x", length=0)
    axes.set(xlim=(0, len(parts)), ylim=(0, 1), ylabel="weight of the modality")
    axes.axhline(1 / weights.shape[1], color="white", linestyle=":", linewidth=1)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _columns(pair: Pair, features: Sequence[str] | str) -> list[int]:
    names = pd.Index(pair.names)
    asked = [features] if isinstance(features, str) else list(features)
    if not asked:
        raise OptionError("features=[] shows nothing. Leave it out for those that vary most.")
    if unknown := [name for name in asked if name not in names]:
        raise MissingKeyError(
            f"{pair.place}.var_names has no {unknown}. It has {names[:5].tolist()}, ...: type features=."
        )
    if unused := [name for name in asked if np.isnan(pair.imputed[:, names.get_loc(name)]).all()]:
        raise OptionError(
            f"{unused} were not predicted: isotype controls, genes that vary little and peaks of few cells are not in use. Some "
            f"that are: {names[default_features(pair)].tolist()}."
        )
    return [int(column) for column in names.get_indexer(pd.Index(asked))]


def _feature(axes: Axes, pair: Pair, column: int) -> None:
    x, y, sd = pair.of(column)
    known = np.isfinite(x) & np.isfinite(y)
    varies = known.sum() > 1 and np.ptp(x[known]) > 0 and np.ptp(y[known]) > 0
    r = f"r = {np.corrcoef(x[known], y[known])[0, 1]:.2f}" if varies else "r undefined"
    axes.set_title(f"{pair.names[column]}\n{r}", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    if pair.kind == "atac":
        _violins(axes, x > 0, y, sd)
        return
    both = np.concatenate([x, y])
    ends = [float(both.min()), float(both.max())]
    axes.plot(ends, ends, color="0.8", linewidth=1, zorder=0)
    axes.vlines(x, y - sd, y + sd, color="tab:blue", alpha=0.25, linewidth=1, rasterized=True)
    axes.scatter(x, y, s=8, color="tab:blue", linewidths=0, rasterized=True)
    scale = "log1p(count / geometric mean)" if pair.kind == "protein" else "log1p(count per 10,000)"
    axes.set(xlabel=f"measured, {scale}", ylabel="predicted")
    axes.xaxis.label.set_fontsize("small")


def _violins(axes: Axes, opened: NDArray[np.bool_], y: NDArray[np.float32], sd: NDArray[np.float32]) -> None:
    labels = []
    for place, (name, cells) in enumerate((("not open", ~opened), ("open", opened))):
        labels.append(f"{name} ({cells.sum():,})")
        if cells.any():
            axes.violinplot([y[cells]], positions=[place], widths=0.8, showextrema=False)
            axes.errorbar([place], [y[cells].mean()], yerr=[sd[cells].mean()], fmt="o", color="black", capsize=3)
    axes.set_xticks([0, 1], labels)
    axes.set(
        xlim=(-0.6, 1.6), ylim=(0, 1.1 * max(float(y.max()), 0.01)), xlabel="measured", ylabel="predicted to be open"
    )
