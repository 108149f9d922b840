"""Figures of several modalities show what was written, on the scales that were promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from mudata import MuData

import cfm
from cfm.errors import CountsError, MissingKeyError, OptionError
from cfm.pl import _modalities

KINDS = {"rna": "rna", "protein": "prot", "atac": "atac"}


@pytest.fixture(scope="module")
def measured(_pbmc: AnnData) -> dict[str, AnnData]:
    """RNA, proteins and peaks, each made of other genes of 60 real cells; some cells lack some."""
    cells = _pbmc[::11][:60].copy()
    order = np.argsort(-np.asarray((cells.X > 0).sum(axis=0)).ravel(), kind="stable")
    columns = {"prot": order[:8], "rna": order[8:308], "atac": order[308:328]}
    rows = {"rna": slice(0, 50), "prot": slice(0, 55), "atac": slice(10, 60)}
    found = {name: cells[rows[name], columns[name]].copy() for name in KINDS.values()}
    for name, part in found.items():
        if name != "rna":  # genes keep their names, for a model to know them
            part.var_names = [f"{name}{i}" for i in range(part.n_vars)]
    return found


@pytest.fixture
def mdata(measured: dict[str, AnnData]) -> MuData:
    """As `cfm.tl.integrate` leaves it; what was predicted is made up, since training takes seconds."""
    mdata = MuData({name: part.copy() for name, part in measured.items()})
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.1, 1, (mdata.n_obs, 3))
    for i, (name, part) in enumerate(mdata.mod.items()):
        absent = ~mdata.obs_names.isin(part.obs_names)
        shares[absent, i] = 0
        part.obsm["X_cfm_joint"] = rng.normal(size=(part.n_obs, 20)).astype(np.float32)
        part.layers["cfm_imputed"] = rng.uniform(0, 1, part.shape).astype(np.float32)
        part.layers["cfm_imputed_sd"] = np.full(part.shape, 0.1, np.float32)
        del name
    shares /= shares.sum(axis=1, keepdims=True)
    mdata.obsm["X_cfm_joint"] = rng.normal(size=(mdata.n_obs, 20)).astype(np.float32)
    mdata.obsm["cfm_modality_weights"] = pd.DataFrame(shares.astype(np.float32), mdata.obs_names, list(KINDS))
    mdata.uns["cfm"] = {"X_cfm_joint": {"function": "cfm.tl.integrate", "modalities": KINDS, "time": "2026"}}
    return mdata


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two columns of the vectors in the place of a UMAP, whose points can be foretold."""
    monkeypatch.setattr(_modalities, "_two_dimensions", lambda points, seed: points[:, :2])


def shown(axes: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Positions and colours of the cells of a panel, in the order of the data."""
    (points,) = axes.collections
    order = np.random.default_rng(0).permutation(len(points.get_offsets()))
    back = np.argsort(order)
    return np.asarray(points.get_offsets())[back], np.asarray(points.get_facecolors())[back]


@pytest.mark.usefixtures("flat")
def test_panels_have_the_vectors_of_all_and_of_each(mdata: MuData) -> None:
    figure = cfm.pl.modalities(mdata, color="rna:cell_type")
    joint, *alone, shares = figure.axes
    assert [axes.get_title() for axes in (joint, *alone)] == [
        "all modalities\n60 cells",
        "rna alone\n50 cells",
        "prot alone\n55 cells",
        "atac alone\n50 cells",
    ]
    np.testing.assert_array_equal(shown(joint)[0], mdata.obsm["X_cfm_joint"][:, :2])
    for axes, part in zip(alone, mdata.mod.values(), strict=True):
        np.testing.assert_array_equal(shown(axes)[0], part.obsm["X_cfm_joint"][:, :2])
    assert shares.get_ylim() == (0, 1)


@pytest.mark.usefixtures("flat")
def test_a_cell_has_one_colour_in_all_panels_and_the_legend_says_which(mdata: MuData) -> None:
    figure = cfm.pl.modalities(mdata, color="rna:cell_type")
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    names = sorted(mdata.mod["rna"].obs["cell_type"].astype(str).unique())
    assert texts == [*names, "no value"]
    colours = dict(zip(texts, [to_rgba(h.get_color()) for h in legend.legend_handles], strict=True))
    assert len(set(colours.values())) == len(colours)
    known = mdata.mod["rna"].obs["cell_type"].astype(str).reindex(mdata.obs_names).fillna("no value")
    np.testing.assert_allclose(shown(figure.axes[0])[1], [colours[name] for name in known])
    atac = known[mdata.mod["atac"].obs_names]
    np.testing.assert_allclose(shown(figure.axes[3])[1], [colours[name] for name in atac])


@pytest.mark.usefixtures("flat")
def test_a_column_that_all_modalities_have_is_put_together(mdata: MuData) -> None:
    for column in [name for name in mdata.obs if "cell_type" in name]:
        del mdata.obs[column]
    figure = cfm.pl.modalities(mdata, color="cell_type")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "no value" not in texts
    assert set(texts) == {str(v) for part in mdata.mod.values() for v in part.obs["cell_type"]}


@pytest.mark.usefixtures("flat")
def test_without_a_column_the_weight_of_the_first_modality_is_shown(mdata: MuData) -> None:
    figure = cfm.pl.modalities(mdata)
    assert not figure.legends
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "weight of rna"
    weights = mdata.obsm["cfm_modality_weights"]["rna"]
    np.testing.assert_allclose(bar.get_ylim(), (weights.min(), weights.max()))
    joint, prot = shown(figure.axes[0])[1], shown(figure.axes[2])[1]
    np.testing.assert_array_equal(prot, joint[mdata.obs_names.get_indexer(mdata.mod["prot"].obs_names)])
    assert len(np.unique(joint[weights == 0], axis=0)) == 1
    assert "weight of atac" in [axes.get_ylabel() for axes in cfm.pl.modalities(mdata, color="atac").axes]


@pytest.mark.usefixtures("flat")
def test_numbers_with_gaps_are_grey_where_there_is_none(mdata: MuData) -> None:
    mdata.obs["depth"] = np.where(np.arange(60) < 5, np.nan, np.arange(60.0))
    colours = shown(cfm.pl.modalities(mdata, color="depth").axes[0])[1]
    np.testing.assert_allclose(colours[:5], [to_rgba("0.85")] * 5)
    assert len(np.unique(colours[5:], axis=0)) == 55


@pytest.mark.usefixtures("flat")
def test_weights_are_stacked_in_groups_of_the_same_width(mdata: MuData) -> None:
    mdata.obs["group"] = ["a"] * 45 + ["b"] * 14 + [None]
    axes = cfm.pl.modalities(mdata, color="group").axes[4]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a (45)", "b (14)", "no value (1)"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["rna", "protein", "atac"]
    assert len(axes.collections) == 9
    weights = mdata.obsm["cfm_modality_weights"][["rna", "protein"]].to_numpy()
    for place, cells in enumerate((slice(0, 45), slice(45, 59), slice(59, 60))):
        rna, protein = (axes.collections[3 * place + i].get_paths()[0].vertices for i in (0, 1))
        assert (rna[:, 0].min(), rna[:, 0].max()) == pytest.approx((place + 0.03, place + 0.97))
        # The tops of rna are its weights; where protein begins, rna ends.
        np.testing.assert_allclose(rna[:, 1].max(), weights[cells, 0].max(), rtol=1e-6)
        np.testing.assert_allclose(protein[:, 1].max(), weights[cells].sum(axis=1).max(), rtol=1e-6)


def test_cells_in_which_nothing_was_measured_are_left_out(mdata: MuData, flat: None) -> None:
    mdata.obsm["cfm_modality_weights"].iloc[[3, 7]] = 0
    figure = cfm.pl.modalities(mdata)
    assert figure.axes[0].get_title() == "all modalities\n58 cells"
    assert figure.axes[4].get_xticklabels()[0].get_text() == "58 cells"


def test_it_is_a_umap_and_saved_and_the_object_stays(mdata: MuData, tmp_path: Path) -> None:
    mdata.mod["atac"] = mdata.mod["atac"][:4].copy()  # too few for a UMAP
    before = {name: sorted(map(str, part.obsm)) for name, part in mdata.mod.items()}
    first, again = (cfm.pl.modalities(mdata, color="rna:cell_type") for _ in range(2))
    for one, two in zip(first.axes[:4], again.axes[:4], strict=True):
        np.testing.assert_array_equal(shown(one)[0], shown(two)[0])
    assert len(shown(first.axes[3])[0]) == 4
    first.savefig(tmp_path / "joint.png")
    assert (tmp_path / "joint.png").stat().st_size > 20_000
    assert before == {name: sorted(map(str, part.obsm)) for name, part in mdata.mod.items()}
    assert "X_umap" not in mdata.obsm
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == [], "an open figure would be shown a second time"


@pytest.mark.parametrize("name", ["X_cfm_joint", "cfm_modality_weights"])
def test_what_was_not_integrated_is_refused(mdata: MuData, name: str) -> None:
    del mdata.obsm[name]
    with pytest.raises(MissingKeyError, match=rf"mdata\.obsm has no '{name}'\. It has \[.*\]; cfm\.tl\.integrate"):
        cfm.pl.modalities(mdata)


def test_what_cannot_be_drawn_says_why(mdata: MuData, few: AnnData) -> None:
    with pytest.raises(OptionError, match=r"Expected a MuData object, got AnnData.*sc\.tl\.umap"):
        cfm.pl.modalities(few)
    with pytest.raises(
        MissingKeyError, match=r"No 'celltype' in mdata\.obs.*'cell_type'.*or with one of \['rna', 'protein'"
    ):
        cfm.pl.modalities(mdata, color="celltype")
    mdata.obsm["cfm_modality_weights"].iloc[9:] = 0
    with pytest.raises(OptionError, match="9 cells with vectors are too few"):
        cfm.pl.modalities(mdata)


def points(axes: Axes) -> np.ndarray:
    """Measured and predicted of each cell."""
    return np.asarray(axes.collections[1].get_offsets())


def dense(part: AnnData) -> np.ndarray:
    return np.asarray(part.X.toarray(), np.float64)


def test_proteins_stand_over_the_geometric_mean_of_those_in_use(mdata: MuData) -> None:
    prot = mdata.mod["prot"]
    prot.layers["cfm_imputed"][:, 2] = np.nan
    counts = dense(prot)
    mean = np.exp(np.log1p(np.delete(counts, 2, axis=1)).mean(axis=1))
    figure = cfm.pl.imputation(mdata, "protein", features=["prot1", "prot5"])
    for axes, column in zip(figure.axes, (1, 5), strict=True):
        x, y = np.log1p(counts[:, column] / mean), prot.layers["cfm_imputed"][:, column]
        np.testing.assert_allclose(points(axes), np.column_stack([x, y]), rtol=1e-6)
        assert axes.get_title() == f"prot{column}\nr = {np.corrcoef(x, y)[0, 1]:.2f}"
        lines = np.array(axes.collections[0].get_segments())
        np.testing.assert_allclose(lines[:, :, 0], np.column_stack([x, x]))
        np.testing.assert_allclose(lines[:, :, 1], np.column_stack([y - 0.1, y + 0.1]), rtol=1e-5)
        assert axes.get_xlabel() == "measured, log1p(count / geometric mean)"


def test_rna_stands_per_ten_thousand_of_all_genes(mdata: MuData) -> None:
    counts = dense(mdata.mod["rna"])
    (axes,) = cfm.pl.imputation(mdata, "rna", features=mdata.mod["rna"].var_names[3]).axes
    np.testing.assert_allclose(points(axes)[:, 0], np.log1p(1e4 * counts[:, 3] / counts.sum(axis=1)), rtol=1e-5)


def test_peaks_are_open_or_not(mdata: MuData) -> None:
    part = mdata.mod["atac"]
    opened = dense(part)[:, 4] > 0
    (axes,) = cfm.pl.imputation(mdata, "atac", features=["atac4"]).axes
    assert [t.get_text() for t in axes.get_xticklabels()] == [f"not open ({(~opened).sum()})", f"open ({opened.sum()})"]
    values = part.layers["cfm_imputed"][:, 4]
    means = [float(container.lines[0].get_ydata()[0]) for container in axes.containers]
    np.testing.assert_allclose(means, [values[~opened].mean(), values[opened].mean()], rtol=1e-6)
    assert axes.get_title() == f"atac4\nr = {np.corrcoef(opened, values)[0, 1]:.2f}"
    # A peak that all cells have has one violin.
    part.X = np.ones(part.shape, np.float32)
    (axes,) = cfm.pl.imputation(mdata, "atac", features=["atac4"]).axes
    assert axes.get_title() == "atac4\nr undefined"
    assert len(axes.containers) == 1


@pytest.mark.parametrize("modality", ["rna", "protein", "atac"])
def test_the_six_that_vary_most_come_first(mdata: MuData, modality: str) -> None:
    part = mdata.mod[KINDS[modality]]
    counts = dense(part)
    if modality == "atac":
        values = counts > 0
    elif modality == "rna":
        values = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    else:
        values = np.log1p(counts / np.exp(np.log1p(counts).mean(axis=1, keepdims=True)))
    spread = pd.Series(values.var(axis=0), part.var_names)
    titles = [axes.get_title().split("\n")[0] for axes in cfm.pl.imputation(mdata, modality).axes]
    np.testing.assert_allclose(spread[titles], spread.sort_values(ascending=False)[:6], rtol=1e-5)


def test_a_key_a_kind_and_nothing_name_the_same(mdata: MuData) -> None:
    for name in ("rna", "atac"):
        del mdata.mod[name].layers["cfm_imputed"]
    titles = [[axes.get_title() for axes in cfm.pl.imputation(mdata, name).axes] for name in ("prot", "protein", None)]
    assert titles[0] == titles[1] == titles[2]


def test_counts_in_a_layer(mdata: MuData) -> None:
    prot = mdata.mod["prot"]
    expected = points(cfm.pl.imputation(mdata, "prot", features="prot1").axes[0])
    prot.layers["counts"] = prot.X.copy()
    prot.X = np.log1p(dense(prot))
    with pytest.raises(CountsError, match=r"layers=\{'protein': 'counts'\}"):
        cfm.pl.imputation(mdata, "prot")
    found = points(cfm.pl.imputation(mdata, "prot", features="prot1", layer="counts").axes[0])
    np.testing.assert_allclose(found, expected)


def test_rna_of_an_anndata(mdata: MuData) -> None:
    gene = str(mdata.mod["rna"].var_names[1])
    expected = points(cfm.pl.imputation(mdata, "rna", features=gene).axes[0])
    np.testing.assert_array_equal(points(cfm.pl.imputation(mdata.mod["rna"], features=gene).axes[0]), expected)
    with pytest.raises(OptionError, match="has RNA alone"):
        cfm.pl.imputation(mdata.mod["rna"], "protein")


def _not_predicted(mdata: MuData) -> None:
    for part in mdata.mod.values():
        del part.layers["cfm_imputed"]


def _unused(mdata: MuData) -> None:
    mdata.mod["prot"].layers["cfm_imputed"][:, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "given", "error", "message"),
    [
        (None, {}, OptionError, r"\['rna', 'prot', 'atac'\] were predicted: type modality="),
        (
            None,
            {"modality": "adt"},
            MissingKeyError,
            r"modality='adt' is no modality .*'protein': 'prot'.*type one of these",
        ),
        (_not_predicted, {}, MissingKeyError, r"No modality of .* has the layer 'cfm_imputed'.*impute=\['protein'\]"),
        (
            _not_predicted,
            {"modality": "prot"},
            MissingKeyError,
            r"mdata\.mod\['prot'\] has no layer.*impute=\['protein'\]",
        ),
        (
            None,
            {"modality": "prot", "features": ["CD3"]},
            MissingKeyError,
            r"has no \['CD3'\]. It has \['prot0'.*features=",
        ),
        (None, {"modality": "prot", "features": []}, OptionError, r"features=\[\] shows nothing"),
        (
            _unused,
            {"modality": "prot", "features": ["prot0"]},
            OptionError,
            r"\['prot0'\] were not predicted.*Some that are",
        ),
        (None, {"modality": "prot", "layer": "raw_counts"}, MissingKeyError, "has no layer 'raw_counts'"),
    ],
)
def test_what_is_missing_is_named(mdata: MuData, change: Any, given: dict[str, Any], error: type, message: str) -> None:
    if change:
        change(mdata)
    with pytest.raises(error, match=message):
        cfm.pl.imputation(mdata, **given)


@pytest.mark.filterwarnings("ignore:var_names are not unique")
def test_after_integration_and_from_a_file(measured: dict[str, AnnData], tmp_path: Path, flat: None) -> None:
    import mudata

    mdata = MuData({name: measured[name].copy() for name in ("rna", "prot")})
    cfm.tl.integrate(mdata, impute=["protein"], epochs=1)
    mdata.write(tmp_path / "cells.h5mu")
    back = mudata.read_h5mu(tmp_path / "cells.h5mu")
    for draw in (cfm.pl.modalities, cfm.pl.imputation):
        now, then = draw(mdata), draw(back)
        assert [axes.get_title() for axes in now.axes] == [axes.get_title() for axes in then.axes]
    (prot,) = cfm.pl.imputation(back, "protein", features="prot0").axes
    np.testing.assert_allclose(points(prot)[:, 1], mdata.mod["prot"].layers["cfm_imputed"][:, 0])
