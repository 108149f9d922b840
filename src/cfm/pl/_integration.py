"""Scores of integration, method by method."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfm._core import records
from cfm._core.errors import MissingKeyError
from cfm.metrics import BASELINES, TOTALS

from ._figure import new_figure


def integration(adata: AnnData, *, key: str = records.INTEGRATION) -> Figure:
    """Show both halves of the integration score, and every score that they are made of.

    Parameters
    ----------
    adata
        After `cfm.metrics.integration`.
    key
        Key of the record.

    Returns
    -------
    The figure. Left: how well cell types are kept (up) and batches mixed (right), embeddings in blue, baselines in grey;
    a method is better than another if it lies above and to the right. Right: all scores.

    Raises
    ------
    MissingKeyError
        No scores under `key`.

    Examples
    --------
    >>> import cfm, scanpy as sc
    >>> adata = sc.read_h5ad("cells.h5ad")  # doctest: +SKIP
    >>> cfm.metrics.integration(adata, batch_key="donor", labels_key="cell_type")  # doctest: +SKIP
    >>> figure = cfm.pl.integration(adata)  # doctest: +SKIP
    """
    kept = adata.uns.get(records.UNS, {})
    if "scores" not in kept.get(key, {}):
        there = sorted(name for name, record in kept.items() if "scores" in record)
        raise MissingKeyError(
            f"uns['cfm'] has no scores under {key!r}. It has {there}; cfm.metrics.integration writes them."
        )
    scores: pd.DataFrame = kept[key]["scores"]
    both = all(half in scores for half in TOTALS[:2])
    figure = new_figure(12 if both else 7.5, 0.9 + 0.42 * max(len(scores), 6))
    if both:
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.7])
        _halves(left, scores)
    else:
        right = figure.subplots()
    _table(right, scores)
    return figure


def _colour(name: str) -> str:
    return "0.55" if name in BASELINES else "tab:blue"


def _halves(axes: Axes, scores: pd.DataFrame) -> None:
    bio, batch = (scores[half] for half in TOTALS[:2])
    for name in scores.index:
        axes.scatter(batch[name], bio[name], color=_colour(name), zorder=2)
        right = batch[name] < 0.7
        axes.annotate(
            f" {name} ",
            (batch[name], bio[name]),
            color=_colour(name),
            va="top" if name in BASELINES else "bottom",
            ha="left" if right else "right",
        )
    axes.set(xlim=(0, 1), ylim=(min(0.9, bio.min() - 0.1), 1), xlabel="batches mixed", ylabel="cell types kept")
    axes.grid(color="0.9", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _table(axes: Axes, scores: pd.DataFrame) -> None:
    axes.imshow(scores.to_numpy(), cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
    for i, row in enumerate(scores.to_numpy()):
        for j, value in enumerate(row):
            axes.text(
                j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.8 else "black"
            )
    axes.set_xticks(range(scores.shape[1]), scores.columns, rotation=40, ha="left", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(scores)), list(scores.index))
    for label in axes.get_yticklabels():
        label.set_color(_colour(label.get_text()))
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)
