"""The figure of labels against known labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes

import cfm
from cfm.errors import MissingKeyError


@pytest.fixture(scope="module")
def _labelled(_pbmc: AnnData) -> AnnData:
    order = np.random.default_rng(0).permutation(_pbmc.n_obs)
    query = _pbmc[order[400:]].copy()
    cfm.tl.annotate(query, reference=_pbmc[order[:400]].copy(), labels_key="cell_type")
    return query


@pytest.fixture
def labelled(_labelled: AnnData) -> AnnData:
    """300 real cells with labels transferred from 400 others."""
    return _labelled.copy()


def ticks(axes: Axes) -> tuple[list[str], list[str]]:
    return [t.get_text() for t in axes.get_xticklabels()], [t.get_text() for t in axes.get_yticklabels()]


def test_confusion_has_the_numbers_of_the_table(labelled: AnnData) -> None:
    table = pd.crosstab(labelled.obs["cell_type"].astype(str), labelled.obs["cfm_label"].astype(str))
    left, _ = cfm.pl.annotation(labelled, truth="cell_type").axes
    assert ticks(left) == (list(table.columns), list(table.index))
    (image,) = left.images
    np.testing.assert_allclose(image.get_array(), table.div(table.sum(axis=1), axis=0))
    shown = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in left.texts}
    expected = {(row, column): str(table.iat[row, column]) for row, column in zip(*np.nonzero(table), strict=True)}
    assert shown == expected
    assert sum(int(text.replace(",", "")) for text in shown.values()) == labelled.n_obs


def test_boxes_show_the_confidence_of_each_label(labelled: AnnData) -> None:
    _, right = cfm.pl.annotation(labelled, truth="cell_type").axes
    names = sorted(set(labelled.obs["cfm_label"]) - {"unknown"})  # which have no confidence
    groups = [labelled.obs["cfm_label_confidence"][labelled.obs["cfm_label"] == name] for name in names]
    assert ticks(right)[1] == [f"{name} ({len(group):,})" for name, group in zip(names, groups, strict=True)]
    # Six lines for each label: the box, two whiskers, two caps, the median.
    lines = [np.asarray(line.get_xdata()) for line in right.lines]
    assert len(lines) == 6 * len(groups)
    np.testing.assert_allclose([line[0] for line in lines[5::6]], [np.median(group) for group in groups])
    quartiles = [np.quantile(group, [0.25, 0.75]) for group in groups]
    np.testing.assert_allclose([(line.min(), line.max()) for line in lines[0::6]], quartiles)
    # Whiskers end at the outermost cells within the percentiles, or at the box where these lie inside it.
    inside = [group[group.between(*np.quantile(group, [0.05, 0.95]))] for group in groups]
    ends = [(low.min(), high.max()) for low, high in zip(lines[1::6], lines[2::6], strict=True)]
    outer = [(min(g.min(), q[0]), max(g.max(), q[1])) for g, q in zip(inside, quartiles, strict=True)]
    np.testing.assert_allclose(ends, outer, rtol=1e-6)
    low, high = right.get_xlim()
    assert low <= 0
    assert high >= 1


def test_without_known_labels_there_is_one_panel(labelled: AnnData) -> None:
    figure = cfm.pl.annotation(labelled)
    (axes,) = figure.axes
    assert len(ticks(axes)[1]) == labelled.obs["cfm_label"].nunique() - 1  # all but unknown
    assert not axes.images


def test_figure_is_drawn_and_saved(labelled: AnnData, tmp_path: Path) -> None:
    before = labelled.obs.copy()
    cfm.pl.annotation(labelled, truth="cell_type").savefig(tmp_path / "labels.png")
    assert (tmp_path / "labels.png").stat().st_size > 10_000
    pd.testing.assert_frame_equal(labelled.obs, before)
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == [], "an open figure would be shown a second time"


def test_another_key_and_known_labels_of_other_kinds(labelled: AnnData) -> None:
    labelled.obs["mine"] = labelled.obs["cfm_label"].astype(str)
    labelled.obs["mine_confidence"] = labelled.obs["cfm_label_confidence"]
    labelled.obs["cluster"] = labelled.obs["cell_type"].cat.codes.astype(int)
    left, _ = cfm.pl.annotation(labelled, truth="cluster", key="mine").axes
    assert ticks(left)[1] == sorted(set(labelled.obs["cluster"].astype(str)))
    labelled.obs["partly"] = labelled.obs["cell_type"].where(labelled.obs["cell_type"] != "B cell")
    left, _ = cfm.pl.annotation(labelled, truth="partly").axes
    # Cells without a known label cannot be right or wrong.
    assert ticks(left)[1] == sorted(set(labelled.obs["cell_type"]) - {"B cell"})
    shown = sum(int(text.get_text().replace(",", "")) for text in left.texts)
    assert shown == labelled.obs["partly"].notna().sum()


@pytest.mark.parametrize("truth", [None, "cell_type"])
def test_no_cells(labelled: AnnData, truth: str | None) -> None:
    figure = cfm.pl.annotation(labelled[:0].copy(), truth=truth)
    figure.canvas.draw()
    assert len(figure.axes) == (1 if truth is None else 2)


def test_one_cell(labelled: AnnData) -> None:
    left, right = cfm.pl.annotation(labelled[:1].copy(), truth="cell_type").axes
    assert [text.get_text() for text in left.texts] == ["1"]
    assert ticks(right)[1][0].endswith("(1)")


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [({}, "cfm_label"), ({"key": "other"}, "other"), ({"truth": "celltype"}, "celltype")],
    ids=["not annotated", "key", "truth"],
)
def test_what_is_missing_is_named(few: AnnData, arguments: dict[str, str], missing: str) -> None:
    if missing == "celltype":
        few.obs["cfm_label"], few.obs["cfm_label_confidence"] = "B cell", 1.0
    with pytest.raises(MissingKeyError, match=f"obs has no '{missing}'. It has .*'cell_type'.*cfm.tl.annotate"):
        cfm.pl.annotation(few, **arguments)
