"""Where counts, genes and tokeniser meet."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from anndata import AnnData

from cfm import infer, models
from cfm.errors import OptionError
from cfm.infer import obs_columns
from cfm.models import CellModel
from cfm.models.contract import ObsColumn


def prepared(adata: AnnData) -> infer.Prepared:
    model = models.load("cfm-mini", device="cpu")
    return infer.prepare(adata, model, layer=None, gene_column=None, species=None, gene_table=None)


def test_facts_and_text_tell_what_was_used(few: AnnData) -> None:
    made = prepared(few)
    for _ in made.stream:
        pass
    facts, report = made.facts(), made.coverage()
    known = made.found.tokens >= 0
    assert (report.n_genes, report.n_matched) == (few.n_vars, known.sum())
    np.testing.assert_allclose(report.share_of_counts, few.X[:, known].sum() / few.X.sum())
    assert facts["counts"] == "X"
    assert facts["gene_column"] == "var_names"
    assert facts["gene_identifier"] == "symbol"
    assert facts["species"] == "human"
    assert facts["model_digest"] == made.model.spec.digest
    assert facts["device"] == "cpu"
    assert f"{report.share_of_counts:.1%} of counts" in str(made)
    assert made.model.spec.digest in str(made)
    assert "counts from X" in str(made)


def test_a_gene_table_is_read_from_a_path_and_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "genes.tsv"
    path.write_text("name\tgene\nmy_cd3\tCD3D\n", encoding="utf-8")
    assert infer.read_table(path) == infer.read_table(str(path)) == {"name": "gene", "my_cd3": "CD3D"}
    table = {"a": "CD3D"}
    assert infer.read_table(table) is table
    assert infer.read_table(None) is None


def test_names_of_batches_come_before_numbers(few: AnnData) -> None:
    """A model that was fine-tuned with batches called 1, 2 and 10 numbers them by its own order."""
    column = ObsColumn("donor", 3, ("1", "10", "2"))
    few.obs["donor"] = np.resize([2, 10], few.n_obs)
    assert obs_columns(few, standing_in(column))["batch"][:4].tolist() == [2, 1, 2, 1]
    few.obs["donor"] = np.resize([2, 0], few.n_obs)  # no names: numbers of the training run
    assert obs_columns(few, standing_in(column))["batch"][:4].tolist() == [2, 0, 2, 0]
    few.obs["donor"] = np.resize(["2", "x"], few.n_obs)
    with pytest.raises(OptionError, match=r"holds \['x'\], and the model knows \['1', '10', '2'\]"):
        obs_columns(few, standing_in(column))


def standing_in(column: ObsColumn) -> CellModel:
    return cast(CellModel, SimpleNamespace(obs_columns={"batch": column}))
