from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from cfm.errors import MissingKeyError, OptionError
from cfm.train.corpus import UNLABELLED, Corpus, corpus_of, read_corpus
from cfm.train.recipe import Data, MarkerRule, Recipe, SourceFile, VocabularyRecipe


def test_counts_are_those_of_the_file_in_the_order_of_the_vocabulary(corpus: Corpus, pbmc: AnnData) -> None:
    vocabulary = corpus.vocabulary
    assert list(vocabulary.ensembl_ids) == sorted(vocabulary.ensembl_ids)
    for symbol in ("CD3D", "LYZ", "NKG7"):
        token = vocabulary.by_symbol[symbol]
        expected = np.concatenate([pbmc[:400, symbol].X.toarray(), pbmc[400:, symbol].X.toarray()]).ravel()
        found = np.concatenate([file.counts[:, [token]].toarray() for file in corpus.files]).ravel()
        assert np.array_equal(found, expected)


def test_labels_of_all_files_share_one_list(corpus: Corpus, pbmc: AnnData) -> None:
    assert set(corpus.labels) == set(pbmc.obs["cell_type"])
    names = [corpus.labels[code] for file in corpus.files for code in file.labels]
    assert names == pbmc.obs["cell_type"].astype(str).tolist()


def test_split_is_disjoint_complete_and_repeatable(corpus: Corpus) -> None:
    train, held_out = corpus.split(0.1, seed=3)
    assert (train.n_cells, held_out.n_cells) == (630, 70)
    again = corpus.split(0.1, seed=3)[1]
    other = corpus.split(0.1, seed=4)[1]
    assert (held_out.files[0].counts != again.files[0].counts).nnz == 0
    assert (held_out.files[0].counts != other.files[0].counts).nnz > 0


def test_contaminants_lose_their_label_and_stay(pbmc: AnnData) -> None:
    rule = MarkerRule(label="dendritic cell", markers=["LYZ", "S100A8"], min_counts=5, min_per_10k=20)
    data = Data(label_key="cell_type", marker_rules=[rule])
    corpus = corpus_of({"pbmc": pbmc}, data, VocabularyRecipe(min_cells=5, min_files=1))
    markers = np.asarray(pbmc[:, ["LYZ", "S100A8"]].X.sum(axis=1)).ravel()
    share = 1e4 * markers / np.asarray(pbmc.X.sum(axis=1)).ravel() >= 20
    expected = (pbmc.obs["cell_type"] == "dendritic cell").to_numpy() & (markers >= 5) & share
    assert expected.any()
    assert np.array_equal(corpus.files[0].labels == UNLABELLED, expected)
    assert corpus.n_cells == pbmc.n_obs


def test_a_marker_rule_can_give_another_label(pbmc: AnnData) -> None:
    rule = MarkerRule(label="monocyte", becomes="dendritic cell", markers=["FCER1A"], min_counts=1, absent=["S100A8"])
    data = Data(label_key="cell_type", marker_rules=[rule])
    corpus = corpus_of({"pbmc": pbmc}, data, VocabularyRecipe(min_cells=5, min_files=1))
    counts = pbmc[:, ["FCER1A", "S100A8"]].X.toarray()
    moved = (pbmc.obs["cell_type"] == "monocyte").to_numpy() & (counts[:, 0] >= 1) & (counts[:, 1] == 0)
    expected = np.where(moved, "dendritic cell", pbmc.obs["cell_type"].astype(str))
    assert moved.any()
    assert [corpus.labels[code] for code in corpus.files[0].labels] == expected.tolist()


def test_ignored_and_missing_labels_count_as_unlabelled(pbmc: AnnData) -> None:
    pbmc.obs["cell_type"] = pbmc.obs["cell_type"].astype(object)
    pbmc.obs.iloc[:5, pbmc.obs.columns.get_loc("cell_type")] = np.nan
    data = Data(label_key="cell_type", ignore_labels=["NK cell"])
    corpus = corpus_of({"pbmc": pbmc}, data, VocabularyRecipe(min_cells=5, min_files=1))
    assert "NK cell" not in corpus.labels
    assert "nan" not in corpus.labels
    assert (corpus.files[0].labels[:5] == UNLABELLED).all()


def test_missing_file_and_no_files(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="names no files"):
        read_corpus(Data(), VocabularyRecipe())
    with pytest.raises(OptionError, match=r"absent\.h5ad.*data_root="):
        read_corpus(Data(root=tmp_path, files=[SourceFile(path=Path("absent.h5ad"))]), VocabularyRecipe())


def test_vocabulary_takes_the_most_often_seen_genes(pbmc: AnnData, small_recipe: Recipe) -> None:
    corpus = corpus_of({"pbmc": pbmc}, small_recipe.data, VocabularyRecipe(max_genes=50, min_cells=1, min_files=1))
    assert len(corpus.vocabulary) == 50
    seen = np.asarray((pbmc.X > 0).sum(axis=0)).ravel()
    top = set(pbmc.var_names[np.argsort(-seen)[:40]])
    assert len(top & set(corpus.vocabulary.symbols)) > 35


def test_a_mistyped_label_column_is_named(pbmc: AnnData) -> None:
    with pytest.raises(MissingKeyError, match=r"'celltype'.*'bulk_labels', 'cell_type'"):
        corpus_of({"pbmc": pbmc}, Data(label_key="celltype"), VocabularyRecipe())
