from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData

from cfm.genes import Coverage, GeneMatch, Vocabulary, match


def found_of(names: list[str], tokens: list[int]) -> GeneMatch:
    known = {token for token in tokens if token >= 0}
    return GeneMatch(np.array(tokens, np.int32), np.array(names, str), "var_names", "symbol", "human", len(known))


def test_report_of_real_cells_adds_up(pbmc: AnnData, human: Vocabulary) -> None:
    found = match(pbmc.var, human)
    totals = np.asarray(pbmc.X.sum(axis=0), np.float64).ravel()
    report = Coverage.from_totals(found, totals, len(human))
    assert (report.n_genes, report.n_matched, report.n_vocabulary_matched) == (765, 752, 752)
    assert report.n_vocabulary == len(human)
    lost = {n: t / totals.sum() for n, t, k in zip(pbmc.var_names, totals, found.tokens, strict=True) if k < 0 and t}
    assert report.share_of_counts == pytest.approx(1 - sum(lost.values()))
    assert 0.97 < report.share_of_counts < 1
    assert len(report.lost) == 10
    assert list(report.lost.values()) == sorted(lost.values(), reverse=True)[:10]
    assert all(report.lost[name] == lost[name] for name in report.lost)


def test_text_says_genes_counts_and_vocabulary() -> None:
    report = Coverage.from_totals(found_of(["a", "b", "c"], [5, -1, 5]), np.array([1500.0, 500, 0]), 20_000)
    assert str(report) == "2 of 3 genes matched, 75.0% of counts (1 of the model's 20,000)"


def test_lost_genes_without_counts_are_not_listed() -> None:
    report = Coverage.from_totals(found_of(["a", "b", "c"], [0, -1, -1]), np.array([6.0, 0, 2]), 10)
    assert report.lost == {"c": 0.25}


def test_lost_columns_of_one_name_are_listed_together() -> None:
    report = Coverage.from_totals(found_of(["x", "b", "x", "g"], [-1, -1, -1, 0]), np.array([2.0, 3, 2, 1]), 10)
    assert list(report.lost.items()) == [("x", 0.5), ("b", 0.375)]


@pytest.mark.parametrize("totals", [[0.0, 0.0], []])
def test_no_counts_is_no_division_by_zero(totals: list[float]) -> None:
    names = ["a", "b"][: len(totals)]
    report = Coverage.from_totals(found_of(names, [0, -1][: len(totals)]), np.array(totals), 10)
    assert report.share_of_counts == 0
    assert report.lost == {}


@pytest.mark.parametrize("lost", [True, False])
def test_report_survives_a_file(tmp_path: Path, few: AnnData, lost: bool) -> None:
    report = Coverage.from_totals(found_of(["a", "b"], [0, -1 if lost else 1]), np.array([3.0, 1.0]), 10)
    few.uns["coverage"] = report.to_dict()
    few.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad").uns["coverage"]
    assert read["share_of_counts"] == report.share_of_counts
    assert list(read["lost_genes"]) == (["b"] if lost else [])
    np.testing.assert_array_equal(read["lost_shares"], [0.25] if lost else [])
    assert read["n_vocabulary"] == 10
