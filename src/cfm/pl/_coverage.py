"""How much of a data set a model read."""

from __future__ import annotations

from typing import Any

from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfm._core import records
from cfm._core.errors import MissingKeyError

from ._figure import new_figure


def coverage(adata: AnnData, *, key: str = records.EMBEDDING) -> Figure:
    """Show the share of genes and counts that a model read, and the most expressed genes that it did not.

    Parameters
    ----------
    adata
        After `cfm.tl.embed`, `cfm.tl.annotate` or `cfm.pp.tokenize`.
    key
        Key of the record: that of the embedding (``"X_cfm"``) or of the tokens (``"cfm_tokens"``).

    Returns
    -------
    The figure. Left: genes of the data that the model knows, counts that they hold, and genes of the model that the
    data has. Right: the lost genes with most counts, as percent of all counts.

    Raises
    ------
    MissingKeyError
        No record under `key`.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.pbmc68k()
    >>> cfm.tl.embed(adata)
    >>> figure = cfm.pl.coverage(adata)
    """
    report = _report(adata, key)
    figure = new_figure(10, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    _shares(left, report)
    _lost(right, report)
    return figure


def _report(adata: AnnData, key: str) -> dict[str, Any]:
    kept = adata.uns.get(records.UNS, {})
    if "coverage" not in kept.get(key, {}):
        there = sorted(name for name, record in kept.items() if "coverage" in record)
        msg = f"uns['cfm'] has no coverage report under {key!r}. It has {there}; cfm.tl.embed(adata) writes one."
        raise MissingKeyError(msg)
    report: dict[str, Any] = kept[key]["coverage"]
    return report


def _shares(axes: Axes, report: dict[str, Any]) -> None:
    rows = {
        f"genes of the data\n{report['n_matched']:,} of {report['n_genes']:,}": report["n_matched"] / report["n_genes"],
        "counts of the data": report["share_of_counts"],
        f"genes of the model\n{report['n_vocabulary_matched']:,} of {report['n_vocabulary']:,}": (
            report["n_vocabulary_matched"] / report["n_vocabulary"]
        ),
    }
    shares = [100 * share for share in rows.values()]
    axes.barh(list(rows), [100] * len(rows), color="0.92")
    axes.barh(list(rows), shares, color="tab:blue")
    for position, share in enumerate(shares):
        inside = share > 20
        axes.text(share + (-2 if inside else 2), position, f"{share:.1f} %", va="center",
                  ha="right" if inside else "left", color="white" if inside else "black")  # fmt: skip
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="read by the model (%)")
    axes.spines[["top", "right"]].set_visible(False)


def _lost(axes: Axes, report: dict[str, Any]) -> None:
    names, shares = list(report["lost_genes"]), [100 * float(share) for share in report["lost_shares"]]
    axes.set_title("most expressed genes not read", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    if not names:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    axes.barh([_cut(str(name)) for name in names], shares, color="tab:orange")
    axes.invert_yaxis()
    axes.set_xlabel("share of all counts (%)")


def _cut(name: str) -> str:
    """A name that leaves room for the bars."""
    return name if len(name) <= 20 else f"{name[:19]}…"
