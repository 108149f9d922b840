"""New files appear whole or not at all, and what is there is not harmed."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr

from cfm.cli import main, writing
from cfm.cli.writing import replaced


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after the first result is written."""
    original, written = writing.write_elem, []

    def write_then_stop(group, key, value):
        if written:
            raise KeyboardInterrupt
        written.append(key)
        original(group, key, value)

    monkeypatch.setattr(writing, "write_elem", write_then_stop)


@pytest.mark.usefixtures("cut")
def test_an_interrupted_write_leaves_nothing_behind(cells, kind, tmp_path, content):
    before = content(tmp_path)
    assert main(["embed", str(cells), "-o", str(tmp_path / f"out.{kind}")]) == 130
    assert content(tmp_path) == before


@pytest.mark.usefixtures("cut")
def test_an_interrupted_write_in_place_leaves_the_input(cells, tmp_path, content):
    before = content(tmp_path)
    assert main(["embed", str(cells), "--inplace"]) == 130
    assert content(tmp_path) == before


@pytest.mark.usefixtures("cut")
def test_an_interrupted_overwrite_leaves_the_old_output(cells, few, kind, save, tmp_path, content):
    old = save(few[:3].copy(), f"out.{kind}")
    before = content(tmp_path)
    assert main(["embed", str(cells), "-o", str(old), "--overwrite"]) == 130
    assert content(tmp_path) == before


def test_a_failed_write_leaves_nothing_behind(cells, kind, tmp_path, content, monkeypatch, capsys):
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_elem", full)
    before = content(tmp_path)
    assert main(["embed", str(cells), "-o", str(tmp_path / f"out.{kind}")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_an_output_that_exists_is_kept_unless_told(cells, few, kind, save, content, read, capsys):
    old = save(few[:3].copy(), f"out.{kind}")
    before = content(old)
    assert main(["embed", str(cells), "-o", str(old)]) == 1
    assert f"{old} exists. Type --overwrite" in capsys.readouterr().err
    assert content(old) == before
    assert main(["embed", str(cells), "-o", str(old), "--overwrite"]) == 0
    assert read(old).obsm["X_cfm"].shape == (60, 128)


@pytest.mark.parametrize("spelling", ["same", "link", "overwrite"])
def test_the_input_as_output_needs_inplace(cells, spelling, tmp_path, content, capsys):
    before = content(cells)
    output = cells
    if spelling == "link":
        output = tmp_path / f"link{cells.suffix}"
        output.symlink_to(cells)
    more = ["--overwrite"] if spelling == "overwrite" else []
    assert main(["embed", str(cells), "-o", str(output), *more]) == 1
    assert "is the input. Type --inplace" in capsys.readouterr().err
    assert content(cells) == before


def test_in_place_adds_and_leaves_the_rest(cells, few, read, tmp_path):
    assert main(["embed", str(cells), "--inplace"]) == 0
    found = read(cells)
    assert found.obsm["X_cfm"].shape == (60, 128)
    np.testing.assert_array_equal(found.X.toarray(), few.X.toarray())
    np.testing.assert_array_equal(found.layers["log"].toarray(), few.layers["log"].toarray())
    assert sorted(os.listdir(tmp_path)) == [cells.name]


def test_in_place_through_a_link_writes_to_what_it_points_at(cells, tmp_path, read):
    link = tmp_path / f"link{cells.suffix}"
    link.symlink_to(cells)
    assert main(["embed", str(link), "--inplace"]) == 0
    assert link.is_symlink()
    assert "X_cfm" in read(cells).obsm


def test_in_place_keeps_a_file_private(few, save):
    path = save(few, "cells.h5ad")
    path.chmod(0o600)
    assert main(["embed", str(path), "--inplace"]) == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_read_only_store_can_be_read(few, save, tmp_path):
    path = save(few, "cells.zarr")
    for item in path.rglob("*"):
        item.chmod(0o555 if item.is_dir() else 0o444)
    path.chmod(0o555)
    assert main(["embed", str(path), "-o", str(tmp_path / "out.zarr")]) == 0
    assert os.access(tmp_path / "out.zarr" / "obsm", os.W_OK)


def test_the_format_of_the_output_is_that_of_the_input(cells, kind, tmp_path, capsys):
    other = {"h5ad": "zarr", "zarr": "h5ad"}[kind]
    assert main(["embed", str(cells), "-o", str(tmp_path / f"out.{other}")]) == 1
    assert f"Type -o {tmp_path / f'out.{kind}'}" in capsys.readouterr().err


def test_a_folder_of_something_else_is_never_replaced(cells, kind, tmp_path, content, capsys):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("two years of work")
    before = content(tmp_path)
    assert main(["embed", str(cells), "-o", str(folder), "--overwrite"]) == 1
    message = "is a folder. Type -o" if kind == "h5ad" else "no zarr store"
    assert message in capsys.readouterr().err
    assert content(tmp_path) == before


def test_an_output_inside_the_input_is_refused(few, save, capsys):
    path = save(few, "cells.zarr")
    assert main(["embed", str(path), "-o", str(path / "out.zarr")]) == 1
    assert "lies inside the input" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_refused_before_the_work(cells, kind, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs the tests may be root
    assert main(["embed", str(cells), "-o", str(tmp_path / f"out.{kind}")]) == 1
    assert f"Nothing can be written to {tmp_path}" in capsys.readouterr().err


def test_folders_on_the_way_are_made(cells, kind, tmp_path, read):
    out = tmp_path / "a" / "b" / f"out.{kind}"
    assert main(["embed", str(cells), "-o", str(out)]) == 0
    assert "X_cfm" in read(out).obsm


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store_keeps_its_zarr_format_and_its_consolidated_metadata(few, zarr_format, save, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr format 2 and the setting are on their way out
        with ad.settings.override(zarr_write_format=zarr_format):
            path = save(few, "cells.zarr")
    out = tmp_path / "out.zarr"
    assert main(["embed", str(path), "-o", str(out)]) == 0
    group = zarr.open_group(out, mode="r")
    assert group.metadata.zarr_format == zarr_format
    assert group.metadata.consolidated_metadata is not None
    assert "X_cfm" in group["obsm"]
    assert group["obsm/X_cfm"].metadata.zarr_format == zarr_format


def test_a_store_without_consolidated_metadata_stays_without(few, save, read):
    path = save(few, "cells.zarr")
    if (path / ".zmetadata").is_file():  # format 2
        (path / ".zmetadata").unlink()
    else:
        root = json.loads((path / "zarr.json").read_text())
        (path / "zarr.json").write_text(json.dumps({k: v for k, v in root.items() if k != "consolidated_metadata"}))
    assert main(["embed", str(path), "--inplace"]) == 0
    assert zarr.open_group(path, mode="r").metadata.consolidated_metadata is None
    assert "X_cfm" in read(path).obsm


@pytest.mark.filterwarnings("ignore:.*was written without encoding metadata")
def test_frames_of_old_files_are_written_anew(few, save, read):
    path = save(few, "cells.h5ad")
    with h5py.File(path, "r+") as file:
        # Categories as anndata 0.7 kept them: codes with a reference to a data set in __categories.
        obs = file["obs"]
        obs.attrs["encoding-version"] = "0.1.0"
        for column in ("cell_type", "bulk_labels"):
            codes, categories = obs[column]["codes"][...], obs[column]["categories"][...]
            del obs[column]
            obs[f"__categories/{column}"] = categories
            obs[column] = codes
            obs[column].attrs["categories"] = obs[f"__categories/{column}"].ref
    assert main(["annotate", str(path), "--inplace"]) == 0
    found = read(path)
    assert found.obs["cell_type"].tolist() == few.obs["cell_type"].tolist()
    assert found.obs["cfm_label"].dtype == "category"


def test_a_file_without_the_slots_gets_them(few, save, read):
    path = save(few, "cells.h5ad")
    with h5py.File(path, "r+") as file:
        for slot in ("obsm", "varm", "uns", "layers", "obsp", "varp"):
            if slot in file:
                del file[slot]
    assert main(["embed", str(path), "--inplace", "--genes"]) == 0
    found = read(path)
    assert set(found.obsm) == {"X_cfm"}
    assert set(found.varm) == {"cfm_genes"}


def test_a_folder_comes_back_when_its_place_cannot_be_taken(tmp_path, content, monkeypatch):
    target = tmp_path / "cells.zarr"
    target.mkdir()
    (target / "old").write_text("old")
    before = content(tmp_path)
    rename = Path.rename

    def fail_at_the_second(self: Path, to: Path) -> Path:
        if self.name == "new":
            raise OSError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_at_the_second)
    with pytest.raises(OSError, match="no"), replaced(target) as temporary:
        temporary.mkdir()
    assert content(tmp_path) == before
