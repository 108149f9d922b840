"""``cfm integrate`` with a trained model, and with files of several modalities."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

import cfm
from cfm._core.errors import OptionError
from cfm.cli import main, writing
from cfm.cli.main import build_parser
from cfm.cli.reading import kind_of
from cfm.tl._integrate import METHODS


def make(few: AnnData, names: tuple[str, str] = ("rna", "prot")) -> MuData:
    """60 real cells, of which 50 have proteins: eight of their genes under other names."""
    order = np.argsort(-np.asarray((few.X > 0).sum(axis=0)).ravel(), kind="stable")
    rna, prot = few[:, order[8:308]].copy(), few[10:, order[:8]].copy()
    prot.var_names = [f"protein{i}" for i in range(8)]
    prot.layers["log"] = prot.X.log1p()
    mdata = MuData({names[0]: rna, names[1]: prot})
    mdata.obs["half"] = ["odd", "even"] * 30
    mdata.uns["mine"] = "kept"
    return mdata


@pytest.fixture
def joint(few: AnnData) -> MuData:
    return make(few)


@pytest.fixture
def path(joint: MuData, tmp_path: Path) -> Path:
    joint.write(tmp_path / "cells.h5mu")
    return tmp_path / "cells.h5mu"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command calls `cfm.tl.integrate` with; it writes at once, since training takes seconds."""
    given: dict[str, Any] = {}

    def integrate(data: Any, **options: Any) -> None:
        given.update(options)
        key = "X_cfm_joint" if isinstance(data, MuData) else "X_cfm_integrated"
        data.obsm[key] = np.ones((data.n_obs, 20), np.float32)
        if isinstance(data, MuData):
            data.obsm["cfm_modality_weights"] = pd.DataFrame(0.5, data.obs_names, ["rna", "protein"])
            for part in data.mod.values():
                part.obsm[key] = np.ones((part.n_obs, 20), np.float32)
            for kind in options["impute"]:
                part = data.mod[{"protein": "prot"}.get(kind, kind)]
                part.layers["cfm_imputed"] = np.ones(part.shape, np.float32)
        data.uns["cfm"] = {**data.uns.get("cfm", {}), key: {"function": "cfm.tl.integrate"}}

    monkeypatch.setattr(cfm.tl, "integrate", integrate)
    return given


def test_a_joint_space_is_what_the_function_writes(joint: MuData, path: Path, tmp_path: Path, content, capsys) -> None:
    before, out = content(path), tmp_path / "out.h5mu"
    words = ["--impute", "protein", "--epochs", "1", "--batch-key", "half"]
    assert main(["integrate", str(path), "-o", str(out), *words]) == 0
    cfm.tl.integrate(joint, impute=["protein"], epochs=1, batch_key="half")
    found = mudata.read_h5mu(out)
    assert set(found.obsm) == set(joint.obsm)
    np.testing.assert_array_equal(found.obsm["X_cfm_joint"], joint.obsm["X_cfm_joint"])
    for key in ("cfm_modality_weights", "cfm_imputed_protein"):
        pd.testing.assert_frame_equal(found.obsm[key], joint.obsm[key], check_names=False)
    for name, part in joint.mod.items():
        assert set(found.mod[name].obsm) == set(part.obsm)
        assert set(found.mod[name].layers) == set(part.layers)
        np.testing.assert_array_equal(found.mod[name].obsm["X_cfm_joint"], part.obsm["X_cfm_joint"])
        np.testing.assert_array_equal(found.mod[name].X.toarray(), part.X.toarray())
    np.testing.assert_array_equal(found.mod["prot"].layers["cfm_imputed"], joint.mod["prot"].layers["cfm_imputed"])
    record = found.uns["cfm"]["X_cfm_joint"]
    assert set(record) == set(joint.uns["cfm"]["X_cfm_joint"])
    assert record["modalities"] == {"rna": "rna", "protein": "prot"}
    assert content(path) == before
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        str(out),
        "  obsm         X_cfm_joint, 60 x 20",
        "  obsm         cfm_modality_weights, 60 x 2",
        "  obsm         cfm_imputed_protein, 60 x 8",
        "  obsm         cfm_imputed_protein_sd, 60 x 8",
        "  rna obsm     X_cfm_joint, 60 x 20",
        "  prot obsm    X_cfm_joint, 50 x 20",
        "  prot layers  cfm_imputed, 50 x 8",
        "  prot layers  cfm_imputed_sd, 50 x 8",
    ]


def test_a_saved_space_takes_later_cells(few: AnnData, save, tmp_path: Path, read) -> None:
    few.obs["half"] = ["odd", "even"] * 30
    space, cells = tmp_path / "space", save(few, "cells.h5ad")
    words = ["--batch-key", "half", "--method", "scvi", "--epochs", "1"]
    assert main(["integrate", str(cells), "-o", str(tmp_path / "out.h5ad"), *words, "--save", str(space)]) == 0
    assert (space / "integration.json").is_file()
    first = read(tmp_path / "out.h5ad")
    assert first.uns["cfm"]["X_cfm_integrated"]["method"] == "scvi"
    words = ["--batch-key", "half", "--reference", str(space)]
    assert main(["integrate", str(cells), "-o", str(tmp_path / "again.h5ad"), *words]) == 0
    again = read(tmp_path / "again.h5ad")
    np.testing.assert_allclose(again.obsm["X_cfm_integrated"], first.obsm["X_cfm_integrated"], atol=1e-4)
    assert str(again.uns["cfm"]["X_cfm_integrated"]["reference"]) == str(space)


def test_a_space_of_proteins_predicts_those_of_rna_cells(path: Path, few: AnnData, save, tmp_path: Path, read) -> None:
    space, later = tmp_path / "space", few[:20].copy()
    words = ["--batch-key", "half", "--epochs", "1", "--seed", "3", "--save", str(space)]
    assert main(["integrate", str(path), "-o", str(tmp_path / "out.h5mu"), *words]) == 0
    later.obs["half"] = ["odd", "even"] * 10
    words = ["--batch-key", "half", "--reference", str(space), "--impute", "protein"]
    assert main(["integrate", str(save(later, "later.h5ad")), "-o", str(tmp_path / "out.h5ad"), *words]) == 0
    found = read(tmp_path / "out.h5ad")
    assert list(found.obsm["cfm_imputed_protein"]) == [f"protein{i}" for i in range(8)]
    assert (found.obsm["cfm_imputed_protein_sd"] > 0).all(axis=None)
    assert mudata.read_h5mu(tmp_path / "out.h5mu").uns["cfm"]["X_cfm_joint"]["seed"] == 3


@pytest.mark.usefixtures("fake")
def test_what_was_there_stays(path: Path, tmp_path: Path, joint: MuData) -> None:
    out = tmp_path / "out.h5mu"
    assert main(["integrate", str(path), "-o", str(out), "--impute", "protein"]) == 0
    # As bytes: nothing but results was written anew.
    with h5py.File(path) as old, h5py.File(out) as new:
        names: list[str] = []
        old.visit(names.append)
        for name in names:
            if isinstance(old[name], h5py.Dataset):
                assert old[name].id.get_storage_size() == new[name].id.get_storage_size()
                np.testing.assert_array_equal(old[name][()], new[name][()])
    assert out.read_bytes()[:6] == b"MuData"
    found = mudata.read_h5mu(out)
    assert found.uns["mine"] == "kept"
    assert sp.issparse(found.mod["prot"].layers["log"])
    assert list(found.obs) == list(joint.obs)


@pytest.mark.usefixtures("fake")
def test_in_place_and_again(path: Path, tmp_path: Path, said: list[str]) -> None:
    path.chmod(0o600)
    assert main(["integrate", str(path), "--inplace"]) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert main(["integrate", str(path), "--inplace"]) == 0
    assert "INFO obsm['X_cfm_joint'] exists and is overwritten" in said
    assert mudata.read_h5mu(path).obsm["X_cfm_joint"].shape == (60, 20)
    assert [p.name for p in tmp_path.iterdir()] == ["cells.h5mu"]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("where", [["--inplace"], ["-o", "out.h5mu"]])
def test_an_interrupted_write_leaves_nothing_behind(
    path: Path, tmp_path: Path, content, monkeypatch: pytest.MonkeyPatch, where: list[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writing, "write_elem", stop)
    before = content(tmp_path)
    assert main(["integrate", str(path), *where]) == 130
    assert content(tmp_path) == before


@pytest.mark.usefixtures("fake")
def test_an_output_is_an_h5mu_and_kept_unless_told(path: Path, tmp_path: Path, content, capsys) -> None:
    assert main(["integrate", str(path), "-o", str(tmp_path / "out.h5ad")]) == 1
    assert f"Type -o {tmp_path / 'out.h5mu'}" in capsys.readouterr().err
    (tmp_path / "out.h5mu").write_text("old")
    before = content(tmp_path)
    assert main(["integrate", str(path), "-o", str(tmp_path / "out.h5mu")]) == 1
    assert "exists. Type --overwrite" in capsys.readouterr().err
    assert content(tmp_path) == before
    assert main(["integrate", str(path), "-o", str(tmp_path / "out.h5mu"), "--overwrite"]) == 0


def test_options_reach_the_function(path: Path, tmp_path: Path, fake: dict[str, Any]) -> None:
    words = ["--modalities", "rna=rna", "protein=prot", "--layers", "protein=X", "--impute", "protein", "rna"]
    words += ["--epochs", "3", "--save", str(tmp_path / "space"), "--key-added", "mine", "--batch-key", "half"]
    assert main(["integrate", str(path), "-o", str(tmp_path / "out.h5mu"), *words]) == 0
    assert fake["modalities"] == {"rna": "rna", "protein": "prot"}
    assert fake["layers"] == {"protein": "X"}
    assert (fake["impute"], fake["epochs"], fake["save"]) == (["protein", "rna"], 3, tmp_path / "space")
    assert (fake["key_added"], fake["batch_key"], fake["reference"]) == ("mine", "half", None)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_typed(path: Path, method: str) -> None:
    assert build_parser().parse_args(["integrate", str(path), "--inplace", "--method", method]).method == method


def test_without_options_nothing_is_asked_for(few: AnnData, save, tmp_path: Path, fake: dict[str, Any]) -> None:
    assert main(["integrate", str(save(few, "cells.h5ad")), "--inplace", "--batch-key", "cell_type"]) == 0
    left_out = ("epochs", "save", "reference", "modalities", "layers", "condition_key", "use_rep")
    assert {fake[name] for name in left_out} == {None}
    assert list(fake["impute"]) == []
    assert fake["method"] == "auto"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "batch_key= is needed. obs has .*\nOn the command line: batch_key= is --batch-key."),
        (
            ["--batch-key", "cell_type", "--epochs", "3"],
            r"epochs= goes with .*'scvi'.* only.*\nOn the command line: epochs= is --epochs.",
        ),
        (["--batch-key", "cell_type", "--modalities", "rna=rna"], "modalities= goes with a MuData object only"),
        (["--batch-key", "cell_type", "--method", "scvi", "--impute", "protein"], r"impute=\['protein'\]"),
        (
            ["--batch-key", "cell_type", "--method", "scvi", "--save", "a", "--reference", "b"],
            "leave out save= and epochs=",
        ),
    ],
)
def test_what_does_not_go_together_is_one_message(few: AnnData, save, words: list[str], message: str, capsys) -> None:
    assert main(["integrate", str(save(few, "cells.h5ad")), "--inplace", *words]) == 1
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert captured.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "harmony"], "method='harmony' takes one modality"),
        (["--layer", "log"], "On the command line: layer= is --layer."),
        (["--impute", "atac"], "the modalities found are ['rna', 'protein']"),
        (["--modalities", "rna=gex"], "mdata.mod has no 'gex'"),
        (["--modalities", "rna=rna", "rna=prot"], "--modalities names a kind twice: rna=rna rna=prot"),
    ],
)
def test_what_an_h5mu_does_not_take_is_one_message(path: Path, content, words: list[str], message: str, capsys) -> None:
    before = content(path)
    assert main(["integrate", str(path), "--inplace", *words]) == 1
    assert message in capsys.readouterr().err
    assert content(path) == before


def test_words_that_are_no_pairs_are_wrong_usage(path: Path, capsys) -> None:
    for word in ("rna", "rna=", "=gex"):
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args(["integrate", str(path), "--inplace", "--modalities", word])
        assert stop.value.code == 2
        assert f"{word!r} is not of the form KIND=NAME" in capsys.readouterr().err


def test_other_commands_say_who_reads_several_modalities(path: Path, tmp_path: Path, capsys) -> None:
    assert main(["embed", str(path), "--inplace"]) == 1
    assert "holds several modalities ['prot', 'rna']. `cfm integrate` reads these" in capsys.readouterr().err
    assert kind_of(path, several=True) == "h5mu"
    (tmp_path / "text.h5mu").write_text("no HDF5")
    with pytest.raises(OptionError, match="is no HDF5 file, so no h5mu"):
        kind_of(tmp_path / "text.h5mu", several=True)
