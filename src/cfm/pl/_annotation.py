"""Labels against known labels, and how sure they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfm._core import records
from cfm._core.errors import MissingKeyError

from ._figure import new_figure


def annotation(adata: AnnData, *, truth: str | None = None, key: str = records.LABEL) -> Figure:
    """Show labels against known labels, and the confidence of each label.

    Parameters
    ----------
    adata
        After `cfm.tl.annotate`.
    truth
        Column of obs with known labels; None leaves out the confusion matrix.
    key
        Column of obs with the labels to look at.

    Returns
    -------
    The figure. Left, with `truth`: share of the cells of each known label (row) that got each label (column), and
    their number. Right: confidence of the cells of each label, box from the first to the third quartile, whiskers
    from the 5th to the 95th percentile.

    Raises
    ------
    MissingKeyError
        A column does not exist.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.pbmc68k()
    >>> cfm.tl.annotate(adata)
    >>> figure = cfm.pl.annotation(adata, truth="cell_type")
    """
    confidence = f"{key}{records.CONFIDENCE_SUFFIX}"
    for column in (key, confidence, *([truth] if truth else [])):
        if column not in adata.obs:
            msg = f"obs has no {column!r}. It has {[str(c) for c in adata.obs.columns]}; cfm.tl.annotate writes labels."
            raise MissingKeyError(msg)
    labels, sureness = pd.Series(adata.obs[key]).astype(str), pd.Series(adata.obs[confidence])
    names = sorted(labels.unique())
    sure = [name for name in names if sureness[(labels == name).to_numpy()].notna().any()]  # unknown cells have none
    width = max(3.5, 2.5 + 0.45 * len(names))
    if truth is None:
        figure = new_figure(5, 1.5 + 0.3 * len(names))
        _confidence(figure.subplots(), labels, sureness, sure)
        return figure
    known = pd.Series(adata.obs[truth]).astype(str)
    height = 2.2 + 0.32 * max(len(names), known.nunique())
    figure = new_figure(2 * width + 1, height)
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    _confusion(left, known, labels, names)
    _confidence(right, labels, sureness, sure)
    return figure


def _confusion(axes: Axes, known: pd.Series, labels: pd.Series, names: list[str]) -> None:
    counts = pd.crosstab(known, labels).reindex(columns=names, fill_value=0)
    shares = counts.div(counts.sum(axis=1), axis=0).to_numpy()
    if counts.size:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in zip(*np.nonzero(counts.to_numpy()), strict=True):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts.iat[row, column]), ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(counts)), counts.index.astype(str).tolist())
    axes.set(xlabel="label", ylabel="known label", title="cells (shade: share of the row)")


def _confidence(axes: Axes, labels: pd.Series, confidence: pd.Series, names: list[str]) -> None:
    values = [confidence[(labels == name).to_numpy()].to_numpy() for name in names]
    if values:
        axes.boxplot(values, orientation="horizontal", whis=(5, 95), showfliers=False, widths=0.6)
    axes.set_yticks(range(1, len(names) + 1), [f"{n} ({len(v):,})" for n, v in zip(names, values, strict=True)])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel="confidence (share of neighbours)", title="confidence")
    axes.spines[["top", "right"]].set_visible(False)
