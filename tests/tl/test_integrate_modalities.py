"""``cfm.tl.integrate`` of several modalities, and its trained space of RNA alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData
from sklearn.neighbors import NearestNeighbors

import cfm
from cfm._core.errors import MissingKeyError, OptionError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "multi"

# CD4 and CD14 are genes and proteins, which MuData warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:var_names are not unique"),
    pytest.mark.filterwarnings("ignore:Cannot join columns with the same name because var_names"),
]

JOINT, WEIGHTS = "X_cfm_joint", "cfm_modality_weights"
N_CELLS = 100


@pytest.fixture(scope="module")
def parts(_pbmc: AnnData) -> dict[str, AnnData]:
    """RNA, proteins and peaks of the same real cells, made of different genes of theirs."""
    cells = _pbmc[::7]
    counts = sp.csr_matrix(cells.X)
    order = np.argsort(-counts.getnnz(axis=0), kind="stable")
    protein, atac, rna = order[:8], order[8:68], np.sort(order[68:])
    batch = np.where(np.arange(len(order[:N_CELLS])) % 2, "odd", "even")
    obs = pd.DataFrame({"batch": batch}, index=cells.obs_names)

    def made(columns: np.ndarray, names: Any) -> AnnData:
        return AnnData(sp.csr_matrix(counts[:, columns]), obs=obs.copy(), var=pd.DataFrame(index=names))

    open_ = made(atac, [f"chr1:{i}00-{i}50" for i in range(1, 61)])
    open_.X.data[:] = 1
    return {"rna": made(rna, cells.var_names[rna]), "prot": made(protein, [f"P{i}" for i in range(8)]), "atac": open_}


def mdata_of(parts: dict[str, AnnData], **rows: Any) -> MuData:
    """``mdata_of(parts, rna=slice(60), prot=...)``: some cells of some modalities."""
    return MuData({name: parts[name][cells].copy() for name, cells in rows.items()})


def call(mdata: Any, **given: Any) -> Any:
    with cfm.settings.override(progress=False):
        return cfm.tl.integrate(mdata, **({"epochs": 2} | given))


ALL = slice(None)


@pytest.fixture(scope="module")
def paired(parts: dict[str, AnnData]) -> MuData:
    """All cells with RNA and proteins, integrated. Not to be changed."""
    mdata = mdata_of(parts, rna=ALL, prot=ALL)
    call(mdata, batch_key="batch", impute=["rna", "protein"])
    return mdata


@pytest.fixture(scope="module")
def mosaic(parts: dict[str, AnnData]) -> MuData:
    """Three modalities, and cells that have one, two or three of them. Not to be changed."""
    mdata = mdata_of(parts, rna=slice(0, 70), prot=slice(30, 90), atac=slice(50, 100))
    call(mdata, batch_key="batch", impute=["rna", "protein", "atac"])
    return mdata


def rows_of(mdata: MuData, name: str) -> np.ndarray:
    return mdata.obs_names.get_indexer(mdata.mod[name].obs_names)


def check(mdata: MuData, kinds: dict[str, str]) -> None:
    """What each result has to be."""
    vectors = mdata.obsm[JOINT]
    assert vectors.dtype == np.float32
    assert vectors.shape == (mdata.n_obs, 20)
    assert np.isfinite(vectors).all()
    weights = mdata.obsm[WEIGHTS]
    assert list(weights.columns) == list(kinds)
    assert list(weights.index) == list(mdata.obs_names)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    for kind, name in kinds.items():
        has = np.zeros(mdata.n_obs, bool)
        has[rows_of(mdata, name)] = True
        assert (weights[kind][has] > 0).all()
        assert (weights[kind][~has] == 0).all()
        alone = mdata.mod[name].obsm[JOINT]
        assert alone.shape == (mdata.mod[name].n_obs, 20)
        only = weights[kind].to_numpy()[rows_of(mdata, name)] == 1
        np.testing.assert_allclose(alone[only], vectors[rows_of(mdata, name)][only], atol=1e-6)


def test_paired_cells(paired: MuData, parts: dict[str, AnnData]) -> None:
    check(paired, {"rna": "rna", "protein": "prot"})
    for name in ("rna", "prot"):
        adata, before = paired.mod[name], parts[name]
        assert (adata.X != before.X).nnz == 0
        assert adata.var.equals(before.var)
        assert adata.obs.equals(before.obs)
        assert adata.raw is None
        assert {str(key) for key in adata.layers if key is not None} == {"cfm_imputed", "cfm_imputed_sd"}
    # No cell lacks a row, so that a frame would say nothing new.
    assert set(paired.obsm) >= {JOINT, WEIGHTS}
    assert not [key for key in paired.obsm if key.startswith("cfm_imputed")]


def test_the_record(paired: MuData) -> None:
    record = paired.uns["cfm"][JOINT]
    assert record["function"] == "cfm.tl.integrate"
    assert record["method"] == "scvi"
    assert record["batch_key"] == "batch"
    assert record["seed"] == 0
    assert record["modalities"] == {"rna": "rna", "protein": "prot"}
    assert set(record["explained"]) == {"pca", "model"}
    helps = record["explained"]["model"] >= 0.7 * record["explained"]["pca"]
    assert ("embedding" in record) == helps
    if helps:
        assert record["embedding"]["model"] == "cfm-mini"


def test_imputed_layers(paired: MuData) -> None:
    for name in ("rna", "prot"):
        adata = paired.mod[name]
        means, deviations = adata.layers["cfm_imputed"], adata.layers["cfm_imputed_sd"]
        assert means.dtype == deviations.dtype == np.float32
        used = np.isfinite(means).all(axis=0)
        assert np.isnan(means[:, ~used]).all()
        np.testing.assert_array_equal(np.isnan(means), np.isnan(deviations))
        assert (means[:, used] >= 0).all()
        assert (deviations[:, used] >= 0).all()
        assert used.mean() > 0.8
    assert np.isfinite(paired.mod["prot"].layers["cfm_imputed"]).all()
    # Genes that no three cells express are not in use.
    few = paired.mod["rna"].X.getnnz(axis=0) < 3
    np.testing.assert_array_equal(np.isnan(paired.mod["rna"].layers["cfm_imputed"]).all(axis=0), few)


def test_three_modalities_in_a_mosaic(mosaic: MuData) -> None:
    check(mosaic, {"rna": "rna", "protein": "prot", "atac": "atac"})
    assert mosaic.n_obs == N_CELLS
    for kind, name in (("rna", "rna"), ("protein", "prot"), ("atac", "atac")):
        frame = mosaic.obsm[f"cfm_imputed_{kind}"]
        assert isinstance(frame, pd.DataFrame)
        assert list(frame.index) == list(mosaic.obs_names)
        assert np.isfinite(frame.to_numpy()).all()
        adata = mosaic.mod[name]
        layer = pd.DataFrame(adata.layers["cfm_imputed"], adata.obs_names, adata.var_names)
        np.testing.assert_array_equal(layer[frame.columns].to_numpy(), frame.loc[adata.obs_names].to_numpy())
    assert mosaic.obsm["cfm_imputed_atac"].to_numpy().max() <= 1


def test_some_cells_of_rna_and_others_of_proteins(parts: dict[str, AnnData]) -> None:
    mdata = mdata_of(parts, rna=slice(0, 60), prot=slice(60, 100))
    call(mdata, impute=["protein"])
    check(mdata, {"rna": "rna", "protein": "prot"})
    assert set(np.unique(mdata.obsm[WEIGHTS].to_numpy())) == {0, 1}
    assert mdata.obsm["cfm_imputed_protein"].shape == (100, 8)
    assert "batch_key" not in mdata.uns["cfm"][JOINT]


def test_cells_of_which_nothing_was_taken_get_zeros(parts: dict[str, AnnData], said: list[str]) -> None:
    mdata = mdata_of(parts, rna=slice(0, 95), prot=slice(0, 100))
    call(mdata, modalities={"rna": "rna"}, epochs=1)
    assert (mdata.obsm[JOINT][95:] == 0).all()
    assert (mdata.obsm[JOINT][:95] != 0).any(axis=1).all()
    assert "WARNING 5 of 100 cells have none of rna, and get zeros in obsm['X_cfm_joint']" in said
    assert list(mdata.obsm[WEIGHTS].columns) == ["rna"]
    assert JOINT not in mdata.mod["prot"].obsm


def test_a_file_and_back(mosaic: MuData, tmp_path: Path) -> None:
    mosaic.write(tmp_path / "cells.h5mu")
    again = mudata.read_h5mu(tmp_path / "cells.h5mu")
    np.testing.assert_array_equal(again.obsm[JOINT], mosaic.obsm[JOINT])
    for key in (WEIGHTS, "cfm_imputed_protein"):
        pd.testing.assert_frame_equal(again.obsm[key], mosaic.obsm[key], check_names=False, check_index_type=False)
    for name in ("rna", "prot", "atac"):
        for layer in ("cfm_imputed", "cfm_imputed_sd"):
            np.testing.assert_array_equal(again.mod[name].layers[layer], mosaic.mod[name].layers[layer])
        np.testing.assert_array_equal(again.mod[name].obsm[JOINT], mosaic.mod[name].obsm[JOINT])
    record, before = again.uns["cfm"][JOINT], mosaic.uns["cfm"][JOINT]
    assert set(record) == set(before)
    assert record["modalities"] == before["modalities"]
    assert record["version"] == before["version"]


def test_a_copy_leaves_the_object_as_it_is(parts: dict[str, AnnData], paired: MuData) -> None:
    mdata = mdata_of(parts, rna=ALL, prot=ALL)
    other = call(mdata, batch_key="batch", impute=["protein"], copy=True)
    assert JOINT not in mdata.obsm
    assert "cfm" not in mdata.uns
    for name in ("rna", "prot"):
        assert not mdata.mod[name].obsm
        assert not [key for key in mdata.mod[name].layers if key is not None]
        assert (mdata.mod[name].X != parts[name].X).nnz == 0
    np.testing.assert_array_equal(other.obsm[JOINT], paired.obsm[JOINT])  # the same call gives the same


def test_rows_in_another_order_in_each_modality(parts: dict[str, AnnData], paired: MuData) -> None:
    order = np.random.default_rng(0).permutation(N_CELLS)
    mdata = mdata_of(parts, rna=ALL, prot=order)
    call(mdata, batch_key="batch", impute=["protein"])
    assert list(mdata.obs_names) == list(paired.obs_names)
    np.testing.assert_allclose(mdata.obsm[JOINT], paired.obsm[JOINT], atol=1e-4)
    own = mdata.mod["prot"]
    alone = pd.DataFrame(own.obsm[JOINT], own.obs_names).loc[parts["prot"].obs_names]
    np.testing.assert_allclose(alone, paired.mod["prot"].obsm[JOINT], atol=1e-4)
    layer = pd.DataFrame(own.layers["cfm_imputed"], own.obs_names).loc[parts["prot"].obs_names]
    np.testing.assert_allclose(layer, paired.mod["prot"].layers["cfm_imputed"], atol=1e-3)


def test_a_key_of_ones_own_beside_other_results(parts: dict[str, AnnData]) -> None:
    mdata = mdata_of(parts, prot=ALL, atac=ALL)
    mdata.obsm["X_other"] = np.ones((N_CELLS, 2))
    call(mdata, key_added="X_mine", epochs=1)
    call(mdata, key_added="X_again", epochs=1)
    assert set(mdata.uns["cfm"]) == {"X_mine", "X_again"}
    np.testing.assert_array_equal(mdata.obsm["X_mine"], mdata.obsm["X_again"])
    assert (mdata.obsm["X_other"] == 1).all()
    with pytest.raises(OptionError, match=r"key_added='prot' is the name of a modality"):
        call(mdata, key_added="prot")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"use_rep": "X_pca"}, OptionError, "use_rep= goes with an AnnData object only"),
        ({"layer": "counts"}, OptionError, "layer= goes with an AnnData object only"),
        ({"method": "harmony"}, OptionError, r"method='harmony' takes one modality: cfm.tl.integrate\(mdata\['rna'\]"),
        ({"method": "zero_shot"}, OptionError, "takes one modality"),
        ({"impute": ["atac"]}, OptionError, r"impute=\['atac'\]: the modalities found are \['rna', 'protein'\]"),
        ({"epochs": 0}, OptionError, "epochs=0: type a whole number from 1 on"),
        ({"epochs": 2.5}, OptionError, "epochs=2.5: type a whole number"),
        ({"epochs": True}, OptionError, "epochs=True"),
        ({"devices": 0}, OptionError, "devices=0: type a whole number"),
        ({"reference": "a", "save": "b", "epochs": None}, OptionError, "leave out save= and epochs="),
        ({"reference": "a", "epochs": 3}, OptionError, "leave out save= and epochs="),
        ({"condition_key": "batch"}, OptionError, "type batch_key= too"),
        ({"batch_key": "donor"}, MissingKeyError, "'donor'.*type batch_key="),
        ({"batch_key": "one"}, OptionError, "one batch, 'x', in all 100 cells"),
        ({"batch_key": "fractions"}, OptionError, "numbers with fractions"),
        ({"batch_key": "batch", "condition_key": "none"}, MissingKeyError, "'none'"),
        ({"modalities": {"rna": "gex"}}, MissingKeyError, "mdata.mod has no 'gex' to read as rna"),
        ({"layers": {"protein": "counts"}}, MissingKeyError, "has no layer 'counts'"),
        ({"key_added": "a/b"}, OptionError, "slashes"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_input_leaves_no_trace(
    parts: dict[str, AnnData], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    mdata = mdata_of(parts, rna=ALL, prot=ALL)
    mdata.obs["one"] = "x"
    mdata.obs["fractions"] = np.linspace(0, 1, N_CELLS)
    keys = set(mdata.obsm)
    with pytest.raises(error, match=message):
        call(mdata, **arguments)
    assert set(mdata.obsm) == keys
    assert "cfm" not in mdata.uns
    assert not mdata.mod["rna"].obsm


def test_a_batch_of_three_cells(parts: dict[str, AnnData], said: list[str]) -> None:
    mdata = mdata_of(parts, prot=ALL, atac=ALL)
    mdata.obs["lane"] = ["x"] * 3 + ["y"] * 97
    call(mdata, batch_key="lane", epochs=1)
    assert np.isfinite(mdata.obsm[JOINT]).all()
    assert any("batches of fewer than 10 cells in obs['lane']: 'x' (3)" in line for line in said)


def test_a_condition_that_goes_with_the_batches(parts: dict[str, AnnData], said: list[str]) -> None:
    mdata = mdata_of(parts, prot=ALL)
    mdata.obs["donor"] = ["a", "b", "c", "d"] * 25
    mdata.obs["drug"] = ["yes", "no", "yes", "no"] * 25
    call(mdata, batch_key="donor", epochs=1)
    assert any("each batch of obs['donor'] has one value of" in line and "'drug' (2 values)" in line for line in said)
    said.clear()
    call(mdata, batch_key="donor", condition_key="drug", epochs=1)
    assert any("4 of 4 batches have cells of one" in line for line in said)
    assert mdata.uns["cfm"][JOINT]["condition_key"] == "drug"


# A saved model


def test_a_saved_model_takes_the_same_cells(parts: dict[str, AnnData], tmp_path: Path) -> None:
    mdata = mdata_of(parts, rna=slice(0, 80), prot=slice(20, 100))
    call(mdata, batch_key="batch", save=tmp_path / "model")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "model/integration.json", "model/integration.safetensors", "model/run/last.ckpt",
    ]  # fmt: skip
    other = mdata_of(parts, rna=slice(0, 80), prot=slice(20, 100))
    call(other, batch_key="batch", reference=tmp_path / "model", epochs=None, impute=["protein"])
    np.testing.assert_allclose(other.obsm[JOINT], mdata.obsm[JOINT], atol=1e-5)
    assert other.uns["cfm"][JOINT]["reference"] == str(tmp_path / "model")
    # One modality, of some cells.
    few = mdata_of(parts, prot=slice(30, 40))
    call(few, batch_key="batch", reference=tmp_path / "model", epochs=None)
    np.testing.assert_allclose(few.obsm[JOINT], mdata.mod["prot"].obsm[JOINT][10:20], atol=1e-5)


def test_proteins_of_cells_that_have_rna_alone(parts: dict[str, AnnData], tmp_path: Path) -> None:
    """A space of RNA and proteins predicts the proteins of RNA cells that come later, in either kind of object."""
    mdata = mdata_of(parts, rna=ALL, prot=slice(0, 80))
    call(mdata, batch_key="batch", save=tmp_path / "model", impute=["protein"])
    before = [mdata.obsm[f"cfm_imputed_protein{end}"].iloc[80:] for end in ("", "_sd")]
    assert (before[0].notna() & (before[1] > 0)).all(axis=None)
    later = MuData({"rna": parts["rna"][80:].copy()})
    call(later, batch_key="batch", reference=tmp_path / "model", epochs=None, impute=["protein"])
    alone = parts["rna"][80:].copy()
    call(alone, batch_key="batch", reference=tmp_path / "model", epochs=None, impute=["protein", "rna"])
    for data in (later, alone):
        for name, expected in zip(("cfm_imputed_protein", "cfm_imputed_protein_sd"), before, strict=True):
            pd.testing.assert_frame_equal(data.obsm[name], expected, atol=1e-4, check_names=False)
    assert set(alone.layers) >= {"cfm_imputed", "cfm_imputed_sd"}
    with pytest.raises(OptionError, match=r"impute=\['atac'\]: the saved model knows \['rna', 'protein'\]"):
        call(alone, batch_key="batch", reference=tmp_path / "model", epochs=None, impute=["atac"])


def test_frames_of_cells_that_have_nothing_and_of_names_with_a_slash(
    parts: dict[str, AnnData], tmp_path: Path, said: list[str]
) -> None:
    prot = parts["prot"][:60].copy()
    prot.var_names = ["HLA-A/B/C", *prot.var_names[1:]]
    hashes = AnnData(np.ones((100, 2), np.float32), obs=parts["rna"].obs)
    mdata = MuData({"rna": parts["rna"][:80].copy(), "prot": prot, "hto": hashes})
    call(mdata, impute=["protein"])
    for name in ("cfm_imputed_protein", "cfm_imputed_protein_sd"):
        frame = mdata.obsm[name]
        assert frame.columns[0] == "HLA-A_B_C"
        assert frame.iloc[:80].notna().all(axis=None)
        assert frame.iloc[80:].isna().all(axis=None)
    assert any("/ became _ in the names of HLA-A/B/C" in line for line in said)
    mdata.write(tmp_path / "cells.h5mu")
    assert mudata.read_h5mu(tmp_path / "cells.h5mu").obsm["cfm_imputed_protein"].shape == (100, 8)


# RNA alone


@pytest.fixture
def cells(parts: dict[str, AnnData]) -> AnnData:
    return parts["rna"].copy()


def test_rna_alone(cells: AnnData, parts: dict[str, AnnData], tmp_path: Path) -> None:
    call(cells, batch_key="batch", method="scvi", impute="rna", save=tmp_path / "model")
    vectors = cells.obsm["X_cfm_integrated"]
    assert vectors.dtype == np.float32
    assert vectors.shape == (N_CELLS, 20)
    assert np.isfinite(vectors).all()
    assert (cells.X != parts["rna"].X).nnz == 0
    record = cells.uns["cfm"]["X_cfm_integrated"]
    assert (record["method"], record["counts"], record["batch_key"]) == ("scvi", "X", "batch")
    assert "condition_key" not in record
    assert np.isfinite(cells.layers["cfm_imputed"]).any(axis=0).sum() > 500
    cells.write_h5ad(tmp_path / "cells.h5ad")
    other = parts["rna"].copy()
    call(other, batch_key="batch", reference=tmp_path / "model", epochs=None)
    np.testing.assert_allclose(other.obsm["X_cfm_integrated"], vectors, atol=1e-5)
    assert other.uns["cfm"]["X_cfm_integrated"]["method"] == "scvi"
    # A single batch, which the model does not know.
    later = parts["rna"][:30].copy()
    later.obs["batch"] = "later"
    call(later, batch_key="batch", reference=tmp_path / "model", epochs=None)
    assert np.isfinite(later.obsm["X_cfm_integrated"]).all()
    assert np.abs(later.obsm["X_cfm_integrated"] - vectors[:30]).max() > 1e-3


def test_rna_alone_with_a_condition(cells: AnnData, said: list[str]) -> None:
    cells.obs["drug"] = ["yes", "yes", "no", "no"] * 25
    call(cells, batch_key="batch", condition_key="drug", method="scvi")
    assert np.isfinite(cells.obsm["X_cfm_integrated"]).all()
    assert cells.uns["cfm"]["X_cfm_integrated"]["condition_key"] == "drug"
    assert not [line for line in said if line.startswith("WARNING")]
    # Each batch has one condition: nothing can be taken out, and it is said.
    call(cells, batch_key="batch", condition_key="batch", method="scvi", key_added="X_nested", epochs=1)
    assert any("2 have a single batch of obs['batch'] ('even', 'odd')" in line for line in said)


def test_genes_with_one_name(cells: AnnData) -> None:
    cells.var_names = [cells.var_names[0], cells.var_names[0], *cells.var_names[2:]]
    with pytest.raises(OptionError, match=r"var_names has 1 a second time.*Type adata.var_names_make_unique\(\) first"):
        call(cells, batch_key="batch", method="scvi")


def test_a_cell_without_counts(cells: AnnData, emptied: Callable[[AnnData, list[int]], AnnData]) -> None:
    cells = emptied(cells, [3])
    call(cells, batch_key="batch", method="scvi", epochs=1)
    assert np.isfinite(cells.obsm["X_cfm_integrated"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "harmony", "impute": ["rna"], "epochs": None}, "impute= goes with .*'?scvi.* only"),
        ({"method": "auto", "epochs": 3}, "epochs= goes with .*'?scvi.* only"),
        ({"method": "harmony", "save": "x", "epochs": None}, "save= goes with .*'?scvi.* only"),
        ({"method": "zero_shot", "devices": 2, "epochs": None}, "devices= goes with .*'?scvi.* only"),
        ({"modalities": {"rna": "rna"}}, "modalities= goes with a MuData object only"),
        ({"layers": {"rna": "X"}}, "layers= goes with a MuData object only"),
        ({"method": "scvi", "use_rep": "X_pca"}, "use_rep= goes with 'auto', 'harmony' and 'zero_shot' only"),
        ({"method": "scvi", "impute": ["protein"]}, r"impute=\['protein'\]: an AnnData object takes impute=\['rna'\]"),
        ({"method": "scvi", "epochs": 0}, "epochs=0: type a whole number"),
        ({"method": "scvi", "batch_key": None}, "batch_key= is needed"),
        ({"method": "scvi", "batch_key": "one"}, "one batch"),
        ({"method": "scvi", "batch_key": "fractions"}, "numbers with fractions"),
        ({"method": "scvi", "save": "x", "reference": "y"}, "leave out save= and epochs="),
        ({"method": "harmony", "reference": "y"}, "method='harmony' makes none"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_options_that_do_nothing_are_refused(cells: AnnData, arguments: dict[str, Any], message: str) -> None:
    cells.obs["one"] = "x"
    cells.obs["fractions"] = np.linspace(0, 1, N_CELLS)
    with pytest.raises(OptionError, match=message):
        call(cells, **({"batch_key": "batch"} | arguments))
    assert not cells.obsm
    assert "cfm" not in cells.uns


# Real proteins, and several processes


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared CITE-seq sets are not here")
def test_real_proteins_are_predicted(tmp_path: Path) -> None:
    mdata = mudata.read_h5mu(SHARED / "citeseq_pbmc10k_200.h5mu")
    test = np.random.default_rng(0).permutation(mdata.n_obs)[:100]
    train = np.setdiff1d(np.arange(mdata.n_obs), test)
    own = MuData({"rna": mdata.mod["rna"].copy(), "prot": mdata.mod["prot"][train].copy()})
    with cfm.settings.override(progress=False):
        cfm.tl.integrate(own, impute=["protein"])
    truth = pd.DataFrame(mdata.mod["prot"].X.toarray(), mdata.mod["prot"].obs_names, mdata.mod["prot"].var_names)
    truth = np.log1p(truth.div(np.exp(np.log1p(truth).mean(axis=1)), axis=0))
    names = mdata.mod["prot"].obs_names[test]
    guess = own.obsm["cfm_imputed_protein"].loc[names]
    found = [np.corrcoef(guess[name], truth.loc[names, name])[0, 1] for name in guess.columns]
    assert np.mean(found) > 0.5


SCRIPT = """
import os, sys
import numpy as np, pandas as pd, mudata, cfm

def main():
    cfm.settings.progress = False
    mdata = mudata.read_h5mu(sys.argv[1])
    cfm.tl.integrate(mdata, batch_key="batch", impute=["protein"], epochs=40, device="cpu", devices=int(sys.argv[2]),
                     save=sys.argv[3])
    if os.environ.get("LOCAL_RANK", "0") == "0":
        mdata.obsm["cfm_imputed_protein"].to_csv(sys.argv[4] + ".csv")
    np.save(sys.argv[4] + os.environ.get("LOCAL_RANK", "0") + ".npy", mdata.obsm["X_cfm_joint"])

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_two_processes_are_as_good_as_one(pbmc: AnnData, tmp_path: Path) -> None:
    cells = pbmc[::2]
    counts = sp.csr_matrix(cells.X)
    order = np.argsort(-counts.getnnz(axis=0), kind="stable")
    obs = pd.DataFrame({"batch": np.where(np.arange(cells.n_obs) % 2, "odd", "even")}, index=cells.obs_names)
    rna = AnnData(counts[:, np.sort(order[10:])], obs=obs, var=pd.DataFrame(index=cells.var_names[np.sort(order[10:])]))
    prot = AnnData(counts[:, order[:10]], obs=obs, var=pd.DataFrame(index=[f"P{i}" for i in range(10)]))
    MuData({"rna": rna, "prot": prot[:250].copy()}).write(tmp_path / "cells.h5mu")
    truth = prot.X.toarray()
    truth = np.log1p(truth / np.exp(np.log1p(truth).mean(axis=1, keepdims=True)))[250:]
    (tmp_path / "script.py").write_text(SCRIPT)
    vectors, quality = {}, {}
    for devices in (1, 2):
        out = tmp_path / f"out{devices}_"
        command = [sys.executable, "script.py", "cells.h5mu", str(devices), str(tmp_path / f"model{devices}"), str(out)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        vectors[devices] = np.load(f"{out}0.npy")
        guess = pd.read_csv(f"{out}.csv", index_col=0).iloc[250:].to_numpy()
        quality[devices] = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(guess.T, truth.T, strict=True)])
        if devices == 2:
            np.testing.assert_array_equal(vectors[2], np.load(f"{out}1.npy"))  # both processes have all
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["model1", "model2"]
    near = {n: NearestNeighbors(n_neighbors=15).fit(v).kneighbors(return_distance=False) for n, v in vectors.items()}
    shared = np.mean([len(set(a) & set(b)) / 15 for a, b in zip(near[1], near[2], strict=True)])
    print(quality, shared)
    assert quality[1] > 0.2
    assert abs(quality[1] - quality[2]) < 0.05
    assert shared > 0.3  # of 350 cells; 0.04 by chance
