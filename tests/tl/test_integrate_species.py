"""Human and mouse cells in one object. The mouse cells are human ones under mouse names, so that what is right is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import mudata
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import cfm
from cfm._core.errors import CfmError, GeneMatchError, MissingKeyError, OptionError
from cfm.genes import human_genes, mouse_orthologs
from cfm.integration import on_common_genes


@pytest.fixture(scope="session")
def mouse_names() -> dict[str, str]:
    """Mouse symbol by human symbol."""
    ensembl = {identifier: symbol for symbol, identifier in human_genes().items()}
    return {ensembl[human]: mouse for mouse, human in mouse_orthologs().items() if human in ensembl}


@pytest.fixture
def orthologous(pbmc: AnnData, mouse_names: dict[str, str]) -> AnnData:
    """300 human cells, with genes that have an ortholog only."""
    found = pbmc[:300, [name in mouse_names for name in pbmc.var_names]].copy()
    found.obs["species"] = np.where(np.arange(300) % 2, "Mouse", "Human")
    return found


@pytest.fixture
def two_species(orthologous: AnnData, mouse_names: dict[str, str]) -> AnnData:
    """The same cells; every second one is under mouse names, in columns of their own."""
    mouse = (orthologous.obs["species"] == "Mouse").to_numpy()
    human, other = orthologous[~mouse].copy(), orthologous[mouse].copy()
    other.var_names = [mouse_names[name] for name in other.var_names]
    joined = ad.concat([human, other], join="outer")
    joined.X = sp.csr_matrix(joined.X)
    joined.obs["species"] = orthologous.obs["species"].reindex(joined.obs_names)
    return joined[orthologous.obs_names].copy()


def test_counts_come_back_under_human_names(two_species: AnnData, orthologous: AnnData) -> None:
    mouse = (two_species.obs["species"] == "Mouse").to_numpy()
    rows = {"human": np.flatnonzero(~mouse), "mouse": np.flatnonzero(mouse)}
    counts, names = on_common_genes(sp.csr_matrix(two_species.X), two_species.var, rows, None)
    assert sorted(names) == sorted(orthologous.var_names)
    np.testing.assert_array_equal(counts.toarray(), orthologous[:, names].X.toarray())
    # The genes are those of the columns, whichever cells there are.
    alone, same = on_common_genes(
        sp.csr_matrix(two_species[rows["human"][:1]].X), two_species.var, {"human": np.array([0])}, None
    )
    np.testing.assert_array_equal(same, names)
    np.testing.assert_array_equal(alone.toarray(), counts[rows["human"][:1]].toarray())


@pytest.mark.parametrize("method", ["auto", "harmony", "zero_shot", "scvi"])
def test_cells_lie_where_they_do_under_one_name(two_species: AnnData, orthologous: AnnData, method: Any) -> None:
    training = {"epochs": 2} if method == "scvi" else {}
    cfm.tl.integrate(two_species, batch_key="species", species_key="species", method=method, **training)
    vectors = two_species.obsm["X_cfm_integrated"]
    record = two_species.uns["cfm"]["X_cfm_integrated"]
    assert record["species_key"] == "species"
    if method != "scvi":
        assert set(record["species"]) == {"human", "mouse"}
    assert list(two_species.var_names) != list(orthologous.var_names)
    mouse = (two_species.obs["species"] == "Mouse").to_numpy()
    if method in ("harmony", "zero_shot"):
        # No counts are compared, so no gene is lost on the way.
        cfm.tl.integrate(orthologous, batch_key="species", method=method)
        np.testing.assert_allclose(vectors, orthologous.obsm["X_cfm_integrated"], atol=1e-4)
        return
    # Counts that both species have: those of a cell and of its like in the other species.
    counts, names = on_common_genes(
        sp.csr_matrix(two_species.X), two_species.var,
        {"human": np.flatnonzero(~mouse), "mouse": np.flatnonzero(mouse)}, None,
    )  # fmt: skip
    same = AnnData(counts, orthologous.obs)
    same.var_names = names
    cfm.tl.embed(orthologous)
    if method == "auto":
        same.obsm["X_cfm"] = orthologous.obsm["X_cfm"]
        cfm.tl.integrate(same, batch_key="species", use_rep="X_cfm")
        np.testing.assert_allclose(vectors, same.obsm["X_cfm_integrated"], atol=1e-3)
    else:
        assert vectors.shape == (300, 20)
        assert np.isfinite(vectors).all()


def test_counts_of_a_layer(two_species: AnnData) -> None:
    two_species.layers["raw"] = two_species.X.copy()
    two_species.X = two_species.X.log1p()
    cfm.tl.integrate(two_species, batch_key="species", species_key="species", layer="raw")
    record = two_species.uns["cfm"]["X_cfm_integrated"]
    assert record["counts"] == "layers['raw']"
    assert record["species"]["mouse"]["coverage"]["n_matched"] > 400


def test_the_model_is_loaded_for_each_species(two_species: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    load, asked = cfm.models.load, []
    monkeypatch.setattr(
        cfm.models, "load", lambda *args, **given: asked.append(given["species"]) or load(*args, **given)
    )
    cfm.tl.integrate(two_species, batch_key="species", species_key="species", method="zero_shot")
    assert asked == ["human", "mouse"]


def test_a_space_of_human_cells_takes_mouse_cells(two_species: AnnData, tmp_path: Path) -> None:
    mouse = (two_species.obs["species"] == "Mouse").to_numpy()
    human, later = two_species[~mouse].copy(), two_species[mouse].copy()
    human.obs["batch"] = np.where(np.arange(human.n_obs) % 2, "odd", "even")
    later.obs["batch"] = "odd"
    options: dict[str, Any] = {"batch_key": "batch", "species_key": "species", "method": "scvi"}
    cfm.tl.integrate(human, **options, epochs=2, save=tmp_path / "space")
    cfm.tl.integrate(later, **options, reference=tmp_path / "space")
    assert np.isfinite(later.obsm["X_cfm_integrated"]).all()
    few = later[:3].copy()
    cfm.tl.integrate(few, **options, reference=tmp_path / "space")
    np.testing.assert_allclose(few.obsm["X_cfm_integrated"], later.obsm["X_cfm_integrated"][:3], atol=1e-4)


def test_bad_input(two_species: AnnData, orthologous: AnnData) -> None:
    two_species.obs["odd"] = "fish"
    two_species.obs["few"] = two_species.obs["species"].where(np.arange(300) > 2)
    cases: list[tuple[dict[str, Any], type[CfmError], str]] = [
        ({"species_key": "kind"}, MissingKeyError, r"species_key='kind': obs has \['bulk_labels'"),
        ({"species_key": "few"}, MissingKeyError, r"obs\['few'\] is missing in 3 of 300 cells"),
        ({"species_key": "odd"}, OptionError, r"No orthologs of \['fish'\] are packaged: only those of human, mouse"),
        ({"species": "mouse"}, OptionError, "species= goes with cells of one species only"),
        ({"method": "harmony", "use_rep": "X_cfm"}, OptionError, "species_key= says how genes are read"),
        ({"method": "scgpt"}, OptionError, "scGPT reads human genes only"),
        ({"method": "scvi", "impute": ["rna"]}, OptionError, "impute= goes with cells of one species only"),
    ]
    for given, error, message in cases:
        with pytest.raises(error, match=message):
            cfm.tl.integrate(two_species, **({"batch_key": "species", "species_key": "species"} | given))
    # Mouse cells under human names.
    with pytest.raises(
        GeneMatchError, match="150 cells are mouse, and hardly any column bears the name of a mouse gene"
    ):
        cfm.tl.integrate(orthologous, batch_key="species", species_key="species")
    with pytest.raises(OptionError, match="species_key= goes with an AnnData object only"):
        cfm.tl.integrate(mudata.MuData({"rna": orthologous}), species_key="species")
    assert "cfm" not in two_species.uns
