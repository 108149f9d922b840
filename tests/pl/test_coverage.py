"""The coverage figure shows the numbers of the record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from matplotlib.figure import Figure

import cfm
from cfm.errors import MissingKeyError


def widths(figure: Figure) -> tuple[list[float], list[float]]:
    """Lengths of the coloured bars, in percent: shares on the left, lost genes on the right."""
    left, right = figure.axes
    return [bar.get_width() for bar in left.containers[1]], [bar.get_width() for bar in right.containers[0]]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_bars_have_the_lengths_of_the_record(few: AnnData) -> None:
    cfm.tl.embed(few)
    report = few.uns["cfm"]["X_cfm"]["coverage"]
    figure = cfm.pl.coverage(few)
    left, right = figure.axes
    shares, lost = widths(figure)
    expected = [
        100 * report["n_matched"] / report["n_genes"],
        100 * report["share_of_counts"],
        100 * report["n_vocabulary_matched"] / report["n_vocabulary"],
    ]
    np.testing.assert_allclose(shares, expected)
    assert texts(figure) == [f"{share:.1f} %" for share in expected]
    assert [label.get_text() for label in left.get_yticklabels()] == [
        f"genes of the data\n{report['n_matched']} of 765",
        "counts of the data",
        f"genes of the model\n{report['n_vocabulary_matched']} of {report['n_vocabulary']:,}",
    ]
    np.testing.assert_allclose(lost, 100 * report["lost_shares"])
    assert [label.get_text() for label in right.get_yticklabels()] == list(report["lost_genes"])
    # Counted by hand: the lost genes are the unmatched ones with most counts.
    totals = np.asarray(few.X.sum(axis=0)).ravel()
    first = few.var_names.get_loc(report["lost_genes"][0])
    np.testing.assert_allclose(lost[0], 100 * totals[first] / totals.sum())


def test_figure_is_drawn_and_saved(few: AnnData, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    cfm.tl.embed(few)
    before = plt.get_fignums()
    figure = cfm.pl.coverage(few)
    figure.savefig(tmp_path / "coverage.png")
    assert (tmp_path / "coverage.png").stat().st_size > 5_000
    assert plt.get_fignums() == before, "an open figure would be shown a second time"


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_from_a_file(few: AnnData, tmp_path: Path, kind: str) -> None:
    cfm.tl.embed(few)
    path = tmp_path / f"cells.{kind}"
    getattr(few, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    assert widths(cfm.pl.coverage(back)) == widths(cfm.pl.coverage(few))


def test_of_tokens_and_of_other_keys(few: AnnData) -> None:
    cfm.pp.tokenize(few)
    cfm.tl.embed(few[:, ::2].copy())
    cfm.tl.embed(few, key_added="X_mine")
    assert widths(cfm.pl.coverage(few, key="cfm_tokens")) == widths(cfm.pl.coverage(few, key="X_mine"))


@pytest.mark.parametrize("kind", ["memory", "h5ad"])
def test_nothing_is_lost(few: AnnData, tmp_path: Path, kind: str) -> None:
    from cfm.genes import match

    tokens = match(few.var, cfm.models.load("cfm-mini", device="cpu").vocabulary).tokens
    known = few[:, tokens >= 0].copy()
    cfm.tl.embed(known)
    if kind == "h5ad":
        known.write_h5ad(tmp_path / "cells.h5ad")
        known = ad.read_h5ad(tmp_path / "cells.h5ad")
    figure = cfm.pl.coverage(known)
    assert [bar.get_width() for bar in figure.axes[0].containers[1]][:2] == [100, 100]
    assert "none" in texts(figure)
    assert not figure.axes[1].containers


def test_cells_without_counts(few: AnnData, emptied: Callable[[AnnData, list[int]], AnnData]) -> None:
    nothing = emptied(few, list(range(60)))
    cfm.tl.embed(nothing)
    figure = cfm.pl.coverage(nothing)
    assert [bar.get_width() for bar in figure.axes[0].containers[1]][1] == 0
    figure.canvas.draw()


def test_what_is_missing_is_named(few: AnnData) -> None:
    with pytest.raises(MissingKeyError, match=r"no coverage report under 'X_cfm'\. It has \[\]; cfm\.tl\.embed"):
        cfm.pl.coverage(few)
    cfm.tl.annotate(few)
    with pytest.raises(MissingKeyError, match=r"under 'cfm_label'\. It has \['X_cfm'\]"):
        cfm.pl.coverage(few, key="cfm_label")
    with pytest.raises(MissingKeyError, match=r"under 'X_other'"):
        cfm.pl.coverage(few, key="X_other")
