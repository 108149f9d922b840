"""Cell type labels: by the packaged prototypes, and by labelled cells of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import cfm
from cfm import models
from cfm.errors import CountsError, GeneMatchError, MissingKeyError, OptionError, UnknownModelError
from cfm.genes import human_genes, mouse_orthologs
from cfm.models.reference import UNKNOWN

Digests = Callable[[AnnData], dict[str, str]]
Emptied = Callable[[AnnData, list[int]], AnnData]
LogNormalise = Callable[[AnnData], None]


def labels(adata: AnnData, **arguments: Any) -> list[str]:
    """Labels of the cells, written to the object and taken from it."""
    cfm.tl.annotate(adata, **arguments)
    return np.asarray(adata.obs["cfm_label"]).tolist()


def halves(pbmc: AnnData) -> tuple[AnnData, AnnData]:
    """Reference and query, 350 real cells each."""
    order = np.random.default_rng(0).permutation(pbmc.n_obs)
    return pbmc[order[:350]].copy(), pbmc[order[350:]].copy()


# With the packaged prototypes


def test_what_is_written(few: AnnData, digests: Digests, said: list[str]) -> None:
    before = digests(few)
    cfm.tl.annotate(few)
    after = digests(few)
    assert after.keys() - before.keys() == {
        "obsm[X_cfm]", "obs[cfm_n_genes]", "obs[cfm_label]", "obs[cfm_label_confidence]", "uns[cfm]",
    }  # fmt: skip
    assert all(after[key] == before[key] for key in before)
    reference = models.load("cfm-mini", device="cpu").reference()
    assert isinstance(few.obs["cfm_label"].dtype, pd.CategoricalDtype)
    assert set(few.obs["cfm_label"]) <= {*reference.names, UNKNOWN}
    confidence = few.obs["cfm_label_confidence"]
    assert confidence.dtype == np.float32
    assert confidence.between(1 / reference.n_neighbors, 1).all()
    record = few.uns["cfm"]["cfm_label"]
    assert (record["reference"], record["n_neighbors"]) == ("packaged", reference.n_neighbors)
    assert record["model_digest"] == models.info("cfm-mini").digest
    assert record["n_unknown"] == (few.obs["cfm_label"] == UNKNOWN).sum()
    assert record["labels"] == list(reference.names)
    assert dict(zip(record["labels"], record["ontology_ids"], strict=True))["B cell"] == "CL:0000236"
    assert few.uns["cfm"]["X_cfm"]["function"] == "cfm.tl.embed"
    assert any(f"{record['n_unknown']} of 60 cells unknown" in message for message in said)


def test_labels_agree_with_the_known_ones_more_often_than_chance(pbmc: AnnData) -> None:
    got, truth = np.array(labels(pbmc)), pbmc.obs["cell_type"].to_numpy()
    shuffled = [(got == np.random.default_rng(seed).permutation(truth)).mean() for seed in range(20)]
    assert (got == truth).mean() > max(shuffled)


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
def test_storage_changes_nothing(few: AnnData, form: str, stored_as: Callable[[AnnData, str], AnnData]) -> None:
    expected = labels(few.copy())
    assert labels(stored_as(few, form)) == expected


def test_other_cells_their_order_and_that_of_genes_change_nothing(pbmc: AnnData) -> None:
    expected = np.array(labels(pbmc))
    confidence = pbmc.obs["cfm_label_confidence"].to_numpy()
    rng = np.random.default_rng(0)
    cells, genes = rng.permutation(pbmc.n_obs)[:40], rng.permutation(pbmc.n_vars)
    shuffled = pbmc[cells, genes].copy()
    assert labels(shuffled) == expected[cells].tolist()
    np.testing.assert_array_equal(shuffled.obs["cfm_label_confidence"], confidence[cells])
    for cell in cells[:5]:
        assert labels(pbmc[[cell]].copy()) == [expected[cell]]


@pytest.mark.parametrize(
    "setting",
    [{"chunk_cells": 1}, {"chunk_cells": 7}, {"pack_tokens": 1500}, {"threads": 1}, {"threads": 2}],
    ids=str,
)
def test_settings_change_nothing(few: AnnData, setting: dict[str, int]) -> None:
    expected = labels(few.copy())
    with cfm.settings.override(**setting):
        assert labels(few) == expected


def test_copy_and_key_added(few: AnnData, digests: Digests) -> None:
    before = digests(few)
    other = cfm.tl.annotate(few, key_added="mine", copy=True)
    assert digests(few) == before
    assert other is not None
    assert set(other.obs) - set(few.obs) == {"mine", "mine_confidence", "cfm_n_genes"}
    assert other.uns["cfm"].keys() == {"mine", "X_cfm"}
    assert np.asarray(other.obs["mine"]).tolist() == labels(few)


def test_overwriting_is_allowed_and_said(few: AnnData, said: list[str]) -> None:
    few.obs["cfm_label"] = "mine"
    assert "mine" not in labels(few)
    assert "INFO obs['cfm_label'] exists and is overwritten" in said


def test_nothing_else_is_changed(few: AnnData, digests: Digests, log_normalise: LogNormalise) -> None:
    few.layers["counts"] = few.X.copy()
    few.raw = few.copy()
    log_normalise(few)
    few.uns["cfm"] = {"cfm_tokens": {"function": "cfm.pp.tokenize"}}
    before = digests(few)
    cfm.tl.annotate(few)
    after = digests(few)
    assert {key for key in before if after[key] != before[key]} == {"uns[cfm]"}
    assert few.uns["cfm"]["cfm_tokens"] == {"function": "cfm.pp.tokenize"}


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_results_survive_files(few: AnnData, tmp_path: Path, kind: str) -> None:
    expected = labels(few)
    path = tmp_path / f"cells.{kind}"
    getattr(few, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    assert np.asarray(back.obs["cfm_label"]).tolist() == expected
    assert isinstance(back.obs["cfm_label"].dtype, pd.CategoricalDtype)
    assert back.obs["cfm_label_confidence"].dtype == np.float32
    record, made = back.uns["cfm"]["cfm_label"], few.uns["cfm"]["cfm_label"]
    assert record.keys() == made.keys()
    assert list(record["labels"]) == made["labels"]
    assert list(record["ontology_ids"]) == made["ontology_ids"]
    assert labels(back) == expected  # and on with what was read


def test_accessor_is_the_function(few: AnnData) -> None:
    expected = labels(few.copy())
    few.cfm.annotate(key_added="mine")
    assert np.asarray(few.obs["mine"]).tolist() == expected


def test_no_cells(few: AnnData) -> None:
    none = few[:0].copy()
    assert labels(none) == []
    assert isinstance(none.obs["cfm_label"].dtype, pd.CategoricalDtype)
    assert none.obs["cfm_label_confidence"].dtype == np.float32


def test_empty_cells_are_unknown(few: AnnData, emptied: Emptied, said: list[str]) -> None:
    adata = emptied(few, [2, 50])
    got = labels(adata)
    assert [got[2], got[50]] == [UNKNOWN, UNKNOWN]
    assert any(message.startswith("WARNING 2 of 60 cells have no gene") for message in said)


# With labelled cells


def test_labels_of_a_reference_are_transferred(pbmc: AnnData, said: list[str], digests: Digests) -> None:
    reference, query = halves(pbmc)
    before = digests(reference)
    got = np.array(labels(query, reference=reference, labels_key="cell_type"))
    assert digests(reference) == before, "the reference is not written to"
    truth = query.obs["cell_type"].to_numpy()
    largest = query.obs["cell_type"].value_counts(normalize=True).max()
    assert (got == truth).mean() > largest + 0.2
    assert set(got) <= {*reference.obs["cell_type"], UNKNOWN}
    sure = query.obs["cfm_label_confidence"] > 0.9
    assert (got[sure] == truth[sure]).mean() > (got == truth).mean()
    record = query.uns["cfm"]["cfm_label"]
    assert (record["reference"], record["labels_key"]) == ("given", "cell_type")
    assert (record["n_reference"], record["n_neighbors"]) == (350, 15)
    assert record["labels"] == sorted(set(reference.obs["cell_type"]))
    assert any("from 350 reference cells" in message for message in said)


def test_the_reference_may_have_other_genes_in_other_storage(
    pbmc: AnnData, stored_as: Callable[[AnnData, str], AnnData]
) -> None:
    reference, query = halves(pbmc)
    expected = labels(query.copy(), reference=reference, labels_key="cell_type")
    genes = models.load("cfm-mini", device="cpu").vocabulary
    from cfm.genes import match

    tokens = match(reference.var, genes).tokens
    other = reference[:, np.flatnonzero(tokens >= 0)[::-1]].copy()
    other.var_names = [genes.ensembl_ids[token] for token in tokens[tokens >= 0][::-1]]
    backed = stored_as(other, "backed_csr")
    assert labels(query, reference=backed, labels_key="cell_type") == expected


def test_number_of_neighbours(pbmc: AnnData) -> None:
    reference, query = halves(pbmc)
    cfm.tl.annotate(query, reference=reference, labels_key="cell_type", n_neighbors=4)
    assert query.uns["cfm"]["cfm_label"]["n_neighbors"] == 4
    assert set((query.obs["cfm_label_confidence"].dropna() * 4).round(4)) <= {1, 2, 3, 4}


@pytest.mark.parametrize("n", [0, -1])
def test_no_neighbours(few: AnnData, n: int) -> None:
    with pytest.raises(OptionError, match="n_neighbors"):
        cfm.tl.annotate(few, reference=few.copy(), labels_key="cell_type", n_neighbors=n)
    assert "X_cfm" not in few.obsm


def test_cells_of_a_type_that_the_reference_lacks_can_be_unknown(pbmc: AnnData) -> None:
    lymphocytes = pbmc[pbmc.obs["cell_type"].isin(["CD4+ T cell", "CD8+ T cell", "NK cell"])].copy()
    others = pbmc[pbmc.obs["cell_type"].isin(["monocyte", "dendritic cell"])].copy()
    unknown = np.mean([label == UNKNOWN for label in labels(others, reference=lymphocytes, labels_key="cell_type")])
    own = np.mean(
        [label == UNKNOWN for label in labels(lymphocytes.copy(), reference=lymphocytes, labels_key="cell_type")]
    )
    assert unknown > 0.2
    assert own < 0.05  # a label reaches to the 99th percentile of its cells, and somewhat further


def test_cells_without_a_label_are_left_out(pbmc: AnnData) -> None:
    reference, query = halves(pbmc)
    partly = reference.copy()
    partly.obs["cell_type"] = partly.obs["cell_type"].where(partly.obs["cell_type"] != "B cell")
    assert partly.obs["cell_type"].isna().any()
    without = reference[reference.obs["cell_type"] != "B cell"].copy()
    expected = labels(query.copy(), reference=without, labels_key="cell_type")
    assert labels(query, reference=partly, labels_key="cell_type") == expected
    assert "B cell" not in expected
    assert "nan" not in expected
    assert query.uns["cfm"]["cfm_label"]["n_reference"] == without.n_obs


def test_empty_cells_of_the_reference_are_left_out(pbmc: AnnData, emptied: Emptied) -> None:
    reference, query = halves(pbmc)
    cfm.tl.annotate(query, reference=emptied(reference, [0, 1, 2]), labels_key="cell_type")
    assert query.uns["cfm"]["cfm_label"]["n_reference"] == 347


@pytest.mark.parametrize("kind", ["category", "str", "object", "int"])
def test_labels_of_any_kind(pbmc: AnnData, kind: str) -> None:
    reference, query = halves(pbmc)
    if kind == "int":
        reference.obs["cluster"] = reference.obs["cell_type"].cat.codes.astype(int)
        allowed = {str(code) for code in range(7)} | {UNKNOWN}
    else:
        reference.obs["cluster"] = reference.obs["cell_type"].astype(kind)
        allowed = {*reference.obs["cell_type"], UNKNOWN}
    assert set(labels(query, reference=reference, labels_key="cluster")) <= allowed


# What is wrong


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels_key": "cell_type"}, OptionError, r"labels_key= names a column of the reference; pass reference="),
        ({"reference": True}, OptionError, r"Pass labels_key=, one of \['bulk_labels', 'n_counts', 'cell_type'\]"),
        ({"reference": True, "labels_key": "celltype"}, MissingKeyError, r"has no 'celltype'. It has \['bulk_labels'"),
        ({"reference": True, "labels_key": "cell_type", "n_neighbors": 60}, OptionError, "60 labelled cells; 60 neigh"),
        ({"model": "cfm-maxi"}, UnknownModelError, "Did you mean 'cfm-mini'"),
    ],
    ids=["no reference", "no key", "wrong key", "too few", "no model"],
)
def test_arguments_that_cannot_work_change_nothing(
    few: AnnData, arguments: dict[str, Any], error: type[Exception], message: str, digests: Digests
) -> None:
    if "reference" in arguments:
        arguments = arguments | {"reference": few.copy()}
    before = digests(few)
    with pytest.raises(error, match=message):
        cfm.tl.annotate(few, **arguments)
    assert digests(few) == before


def test_a_reference_that_is_no_object(few: AnnData) -> None:
    with pytest.raises(OptionError, match=r"reference= takes an AnnData object, not str"):
        cfm.tl.annotate(few, reference="cells.h5ad", labels_key="cell_type")  # type: ignore[arg-type]


def test_no_labelled_cell(few: AnnData) -> None:
    reference = few.copy()
    reference.obs["cell_type"] = np.nan
    with pytest.raises(OptionError, match="0 labelled cells"):
        cfm.tl.annotate(few, reference=reference, labels_key="cell_type")


def test_a_model_without_prototypes(few: AnnData, folder: Path) -> None:
    (folder / "reference.safetensors").unlink()
    with pytest.raises(OptionError, match=r"my-model comes without labelled prototypes\. Pass reference="):
        cfm.tl.annotate(few, model=folder)
    cfm.tl.annotate(few, model=folder, reference=few.copy(), labels_key="cell_type")
    assert few.uns["cfm"]["cfm_label"]["model"] == "my-model"


def test_a_damaged_reference_file(few: AnnData, folder: Path) -> None:
    (folder / "reference.safetensors").write_bytes(b"damaged")
    with pytest.raises(cfm.errors.CheckpointError, match=r"reference\.safetensors is no reference"):
        cfm.tl.annotate(few, model=folder)
    assert "X_cfm" not in few.obsm


def test_reference_of_another_model(few: AnnData, folder: Path) -> None:
    # The prototypes of cfm-mini in a folder whose vectors have another length.
    theirs = models.load("cfm-mini", device="cpu").folder / "reference.safetensors"
    (folder / "reference.safetensors").write_bytes(theirs.read_bytes())
    with pytest.raises(cfm.errors.CheckpointError, match="reference"):
        cfm.tl.annotate(few, model=folder)


def test_bad_counts_and_genes_reach_the_user(few: AnnData, log_normalise: LogNormalise) -> None:
    normalised = few.copy()
    log_normalise(normalised)
    with pytest.raises(CountsError, match="log-normalised"):
        cfm.tl.annotate(normalised)
    with pytest.raises(CountsError, match="log-normalised"):
        cfm.tl.annotate(few, reference=normalised, labels_key="cell_type")
    few.var_names = [f"feature_{i}" for i in range(few.n_vars)]
    with pytest.raises(GeneMatchError, match="Only 0 of 765"):
        cfm.tl.annotate(few)


def test_reference_cells_called_unknown_count_as_unlabelled(pbmc: AnnData, said: list[str]) -> None:
    reference = pbmc.copy()
    names = reference.obs["cell_type"].astype(str)
    reference.obs["mine"] = np.where(names == "NK cell", "unknown", names)
    cfm.tl.annotate(pbmc, reference=reference, labels_key="mine")
    assert any("reference cells labelled 'unknown' are left out" in line for line in said)
    assert pbmc.uns["cfm"]["cfm_label"]["n_reference"] == pbmc.n_obs - (names == "NK cell").sum()
    assert "unknown" not in list(pbmc.uns["cfm"]["cfm_label"]["labels"])


def test_unknown_cells_have_no_confidence_and_others_have(pbmc: AnnData) -> None:
    cfm.tl.annotate(pbmc)
    unknown = pbmc.obs["cfm_label"] == UNKNOWN
    assert unknown.any()
    assert pbmc.obs["cfm_label_confidence"].isna().equals(unknown)


def test_mouse_cells_and_a_mouse_reference(pbmc: AnnData) -> None:
    human_to_mouse = {human: mouse for mouse, human in mouse_orthologs().items()}
    tokens = human_genes()
    kept = [name for name in pbmc.var_names if tokens.get(name) in human_to_mouse]
    mouse = pbmc[:, kept].copy()
    mouse.var_names = [human_to_mouse[tokens[name]] for name in kept]
    reference, query = halves(mouse)
    cfm.tl.annotate(query, reference=reference, labels_key="cell_type", species="mouse")
    assert (query.obs["cfm_label"].astype(str) == query.obs["cell_type"].astype(str)).mean() > 0.7


def test_errors_of_the_reference_say_so(pbmc: AnnData, few: AnnData, log_normalise: Callable[[AnnData], None]) -> None:
    log_normalise(pbmc)
    with pytest.raises(CountsError, match="In the reference: No raw counts found"):
        cfm.tl.annotate(few, reference=pbmc, labels_key="cell_type")


def test_many_unknown_cells_are_a_warning(pbmc: AnnData, said: list[str]) -> None:
    names = pbmc.obs["cell_type"].astype(str)
    cells = pbmc[names.isin(["monocyte", "dendritic cell"])].copy()
    cfm.tl.annotate(cells, reference=pbmc[names.isin(["B cell", "NK cell"])].copy(), labels_key="cell_type")
    assert any("of the cells are unknown: the reference may lack" in line for line in said)
