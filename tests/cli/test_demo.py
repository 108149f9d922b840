from __future__ import annotations

import anndata as ad
import matplotlib.image
import numpy as np
import pytest

import cfm
from cfm.cli import main
from cfm.cli.demo_figure import figure_of


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory):
    """The demo, run once: its folder."""
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--output-folder", str(folder)]) == 0
    return folder


def test_it_writes_two_files_and_nothing_else(ran):
    assert sorted(path.name for path in ran.iterdir()) == ["cfm_demo.h5ad", "cfm_demo.png"]


def test_the_object_is_that_of_the_functions(ran, pbmc):
    found = ad.read_h5ad(ran / "cfm_demo.h5ad")
    cfm.tl.annotate(pbmc)
    np.testing.assert_array_equal(found.obsm["X_cfm"], pbmc.obsm["X_cfm"])
    assert found.obs["cfm_label"].tolist() == pbmc.obs["cfm_label"].tolist()
    assert found.obsm["X_umap"].shape == (700, 2)
    np.testing.assert_array_equal(found.X.toarray(), pbmc.X.toarray())


def test_the_picture_is_a_picture(ran):
    pixels = matplotlib.image.imread(ran / "cfm_demo.png")
    assert pixels.shape[1] > 1.5 * pixels.shape[0] > 600
    colours = {tuple(colour) for colour in pixels.reshape(-1, pixels.shape[2])[::7].round(2)}
    assert len(colours) > 20


def test_the_table_says_what_was_found_and_that_it_is_no_test(tmp_path, pbmc, capsys):
    assert main(["demo", "--output-folder", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    cfm.tl.annotate(pbmc)
    accuracy = (pbmc.obs["cfm_label"].astype(str) == pbmc.obs["cell_type"].astype(str)).mean()
    unknown = int((pbmc.obs["cfm_label"] == "unknown").sum())
    lines = {line[2:17].strip(): line[19:] for line in text.splitlines() if line.startswith("  ")}
    assert lines["cells"] == "700"
    assert lines["genes matched"].endswith(" of 765")
    assert lines["labels found"] == str(len(set(pbmc.obs["cfm_label"]) - {"unknown"}))
    assert lines["unknown cells"] == str(unknown)
    assert lines["accuracy"] == f"{accuracy:.1%} of all cells, against the known labels"
    assert "seconds" in lines
    assert "a demonstration, not a test" in text


def test_files_of_an_earlier_run_are_replaced_and_a_cut_keeps_them(tmp_path, monkeypatch, content):
    (tmp_path / "cfm_demo.h5ad").write_text("old")
    before = content(tmp_path)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(ad.AnnData, "write_h5ad", stop)
        assert main(["demo", "--output-folder", str(tmp_path)]) == 130
    assert content(tmp_path) == before
    assert main(["demo", "--output-folder", str(tmp_path)]) == 0
    assert ad.read_h5ad(tmp_path / "cfm_demo.h5ad").shape == (700, 765)


def test_both_panels_give_a_label_the_same_colour(few):
    few.obsm["X_umap"] = np.arange(120.0).reshape(60, 2)
    few.obs["cfm_label"] = few.obs["cell_type"].astype(str).where(np.arange(60) % 3 > 0, "unknown")
    figure = figure_of(few, ours="cfm_label", known="cell_type")
    legend = {h.get_label(): h.get_color() for h in figure.legends[0].legend_handles}
    assert list(legend)[-1] == "unknown"
    assert len(set(legend.values())) == len(legend)
    for axes, key in zip(figure.axes, ["cfm_label", "cell_type"], strict=True):
        drawn = axes.collections[0]
        shown = {tuple(xy): tuple(c) for xy, c in zip(drawn.get_offsets(), drawn.get_facecolors(), strict=True)}
        for xy, label in zip(few.obsm["X_umap"], few.obs[key].astype(str), strict=True):
            np.testing.assert_allclose(shown[tuple(xy)], legend[label])
