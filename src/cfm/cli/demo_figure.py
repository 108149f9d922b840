"""The picture of ``cfm demo``: two UMAPs that share their colours."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

_UNKNOWN = "unknown"
_GREY = (0.78, 0.78, 0.78, 1.0)
_OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
_MORE = (
    "tab:brown",
    "tab:olive",
    "tab:purple",
    "tab:cyan",
    "tab:pink",
    "navy",
    "lightcoral",
    "darkgreen",
    "tan",
    "lime",
)

Colour = tuple[float, float, float, float]


def figure_of(adata: AnnData, *, ours: str, known: str) -> Figure:
    """UMAP of the labels in ``obs[ours]`` beside those in ``obs[known]``, one colour per label."""
    labels = {key: pd.Series(adata.obs[key]).astype(str) for key in (ours, known)}
    agree = (labels[ours] == labels[known]).mean()
    order = _order(labels[known], labels[ours])
    colours = _colours(order)
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    umap = np.asarray(adata.obsm["X_umap"])
    _scatter(
        axes[0], umap, labels[ours], colours, f"labels from cfm.tl.annotate\n{agree:.0%} agree with the known ones"
    )
    _scatter(axes[1], umap, labels[known], colours, f"known labels\n{adata.n_obs:,} blood cells (Zheng et al. 2017)")
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=8, color=colours[label], label=label) for label in order
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=11, handletextpad=0.2)
    return figure


def _order(known: pd.Series, ours: pd.Series) -> list[str]:
    """Known labels by number of cells, then the others by theirs, and unknown last."""
    first = list(known.value_counts().index)
    other = [label for label in ours.value_counts().index if label not in first]
    return [str(label) for label in sorted([*first, *other], key=lambda label: label == _UNKNOWN)]


def _colours(order: list[str]) -> dict[str, Colour]:
    """Colours that colour-blind readers can tell apart first (Okabe and Ito), then more; grey is kept for unknown."""
    palette = [to_rgba(name) for name in (*_OKABE_ITO, *_MORE)]
    named = [label for label in order if label != _UNKNOWN]
    return {label: palette[i % len(palette)] for i, label in enumerate(named)} | {_UNKNOWN: _GREY}


def _scatter(
    axes: Axes, points: NDArray[np.float32], labels: pd.Series, colours: dict[str, Colour], title: str
) -> None:
    # Drawn in one random order, so that no label lies on top of the others.
    order = np.random.default_rng(0).permutation(len(points))
    shades = [colours[label] for label in labels.iloc[order]]
    axes.scatter(points[order, 0], points[order, 1], c=shades, s=14, linewidths=0)
    axes.set_title(title, fontsize=12)
    axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", box_aspect=1)
    axes.spines[["top", "right"]].set_visible(False)
