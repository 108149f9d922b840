from __future__ import annotations

from importlib.metadata import version

import pytest

import cfm
from cfm.cli import main


def test_models_lists_the_registry(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "family", "species", "licence", "available", "description"]
    assert [line.split()[0] for line in lines[1:]] == cfm.models.list().index.tolist()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("geneformer-v2-104m", ["Apache-2.0", "download, 425 MB", "Geneformer-V2-104M/model.safetensors (418 MB)"]),
        ("scgpt-human", ["by hand", "best_model.pt", "none for the weights"]),
    ],
)
def test_info_of_a_model_that_is_not_here(name, words, tmp_path, capsys):
    with cfm.settings.override(cache_dir=tmp_path):
        assert main(["info", name]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{name}\n")
    assert all(word in captured.out for word in [*words, f"cfm fetch {name}"])
    assert captured.err == ""
    assert not list(tmp_path.iterdir())


def test_fetch_prints_the_folder(tmp_path, capsys):
    assert main(["fetch", "cfm-mini"]) == 0
    assert capsys.readouterr().out == f"{cfm.models.fetch('cfm-mini')}\n"
    for name in ("args.json", "best_model.pt", "vocab.json"):
        (tmp_path / name).write_text("{}")
    with cfm.settings.override(cache_dir=tmp_path / "cache"):
        assert main(["fetch", "scgpt-lung", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cache' / 'models' / 'scgpt' / 'scGPT_lung'}\n"


def test_fetch_says_what_to_do_by_hand(tmp_path, capsys):
    with cfm.settings.override(cache_dir=tmp_path):
        assert main(["fetch", "scgpt-lung"]) == 1
        assert "cfm fetch scgpt-lung --folder ~/Downloads/scGPT_lung" in capsys.readouterr().err
        assert main(["fetch", "scgpt-lung", "--folder", str(tmp_path / "none")]) == 1
        assert f"{tmp_path / 'none'} is none" in capsys.readouterr().err


def test_info_of_a_model(capsys):
    assert main(["info", "cfm-mini"]) == 0
    text = capsys.readouterr().out
    spec = cfm.models.info("cfm-mini")
    assert text.startswith("cfm-mini\n")
    for value in (spec.family, spec.version, spec.digest, spec.licence, spec.species, "B cell"):
        assert value in text


def test_info_of_an_unknown_model(capsys):
    assert main(["info", "cfm-mimi"]) == 1
    assert "Did you mean 'cfm-mini'?" in capsys.readouterr().err


def test_info_of_cells_shows_what_is_found(cells, kind, capsys, content):
    before = content(cells)
    assert main(["info", str(cells)]) == 0
    facts = dict(line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines()[1:7])
    facts = {name: value.strip() for name, value in facts.items()}
    assert (facts["kind"], facts["cells"], facts["genes"], facts["counts"]) == (kind, "60", "765", "X")
    assert facts["gene names"] == "symbol in var_names, human"
    assert facts["known genes"].endswith("of 765 to cfm-mini")
    assert content(cells) == before


def test_info_of_cells_shows_what_was_written(cells, capsys, read):
    assert main(["info", str(cells)]) == 0
    assert "written by cfm\n  nothing\n" in capsys.readouterr().out
    assert main(["annotate", str(cells), "--inplace"]) == 0
    capsys.readouterr()
    assert main(["info", str(cells)]) == 0
    text = capsys.readouterr().out
    digest, cfm_version = cfm.models.info("cfm-mini").digest, version("cfm-tools")
    assert f"X_cfm      cfm.tl.embed {cfm_version}" in text
    assert f"cfm-mini ({digest}); counts from X; " in text
    assert f"cfm_label  cfm.tl.annotate {cfm_version}" in text
    for label, number in read(cells).obs["cfm_label"].value_counts().items():
        assert any(line.startswith(f"{label} ") and f" {number} " in line for line in text.splitlines())


def test_cells_without_counts_are_an_answer(few, save, capsys):
    few.X = few.X.log1p()
    assert main(["info", str(save(few, "cells.h5ad"))]) == 0
    text = capsys.readouterr().out
    assert "  counts  No raw counts found." in text
    assert "log-normalised" in text


def test_cells_without_known_genes_are_an_answer(few, save, capsys):
    few.var_names = [f"gene{i}" for i in range(few.n_vars)]
    assert main(["info", str(save(few, "cells.h5ad"))]) == 0
    text = capsys.readouterr().out
    assert "  counts      X\n" in text
    assert "  gene names  Only 0 of 765 genes" in text


@pytest.mark.parametrize("name", ["none.h5ad", "none.zarr"])
def test_a_missing_file_is_no_unknown_model(tmp_path, name, capsys):
    assert main(["info", str(tmp_path / name)]) == 1
    assert f"{tmp_path / name} does not exist." in capsys.readouterr().err
