"""The official numbers: equal wherever we mean to be equal, and both values where we differ on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray

import cfm
from cfm import models
from cfm.errors import OptionError
from cfm.models import Pack
from cfm.models.geneformer import GeneformerModel
from cfm.models.geneformer.dictionaries import Dictionaries
from cfm.models.geneformer.perturb import batch_of
from cfm.models.geneformer.tokenizer import GeneformerTokenizer
from cfm.tokens import TokenBatch

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "parity.py"

Load = Callable[..., GeneformerModel]
Official = dict[str, NDArray[Any]]
OfficialCells = Callable[[str], dict[int, list[int]]]
TokenizerFor = Callable[..., GeneformerTokenizer]
TokensOf = Callable[[TokenBatch], list[list[int]]]


@pytest.mark.slow
def test_the_report(fixtures: Path) -> None:
    words = ["geneformer", "--fixtures", fixtures, "--cells", fixtures.parent / "cells" / "cells.h5ad"]
    # The networks are tiny: more threads wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, BENCHMARK, *words], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, total = done.stdout.splitlines()
    assert not [line for line in lines if "FAIL" in line or "NOT LOOKED AT" in line]
    n_arrays = sum(len(np.load(path).files) for path in fixtures.glob("*.npz"))
    # One name comes twice: the names of genes are compared for each layer.
    assert len({line.split()[0] for line in lines}) == n_arrays
    assert total.endswith(f", 0 failed, 37 inputs, 0 not looked at, of {n_arrays} arrays")
    reasons = {line.split()[0]: line.split("not covered: ")[1] for line in lines if "not covered" in line}
    assert all(why.startswith(("on purpose", "there is no padding")) for why in reasons.values())


# Where we differ on purpose


def whole(made: GeneformerTokenizer) -> GeneformerTokenizer:
    """All tokens, without ends, as the fixture stores them."""
    return replace(made, max_tokens=10**9, ends=None)


def test_stored_zeros_are_not_expressed(
    load: Load, cells: AnnData, official_cells: OfficialCells, tokenizer_for: TokenizerFor, tokens_of: TokensOf
) -> None:
    # Officially the tokens of zeros that a sparse matrix stores stand at the tail: the same cell in a dense matrix has
    # others. Ours depend on the counts alone.
    some = cells[:6].copy()
    some.X.data[::5] = 0
    model = load("V2_mlm")
    made = whole(tokenizer_for(model, some))
    ours, official = tokens_of(made(some.X, 0)), official_cells("tokens/V2_zeros")
    kept = some.X.copy()
    kept.eliminate_zeros()
    assert tokens_of(made(kept, 0)) == ours
    token_of_place = made.tokens
    for cell in range(6):
        row = some.X[cell]
        zero = {int(token_of_place[made.places[c]]) for c in row.indices[row.data == 0] if made.places[c] >= 0}
        tail = official[cell][len(ours[cell]) :]
        assert official[cell][: len(ours[cell])] == ours[cell]
        assert len(tail) > 20
        assert set(tail) == zero


@pytest.fixture
def folding(load: Load, official: Official, fixtures: Path) -> GeneformerModel:
    """V2 with the mapping of the folding test, in which several ids lead to one gene."""
    import json

    model = load("V2_mlm")
    extra = json.loads((fixtures / "dictionaries" / "dictionaries.json").read_text())["V2_fold"]
    old = model.dictionaries
    tokens = old.specials | dict(zip(old.vocabulary.ensembl_ids, old.tokens.tolist(), strict=True))
    medians = dict(zip(old.vocabulary.ensembl_ids, old.medians.tolist(), strict=True))
    found = Dictionaries.of(tokens, medians, dict(old.vocabulary.aliases) | extra)
    return replace(model, dictionaries=found, vocabulary=found.vocabulary)


def test_lower_case_ids_are_folded_too(
    folding: GeneformerModel,
    cells: AnnData,
    official_cells: OfficialCells,
    tokenizer_for: TokenizerFor,
    tokens_of: TokensOf,
) -> None:
    # The official test for duplicates takes ids as they are written, and the look-up in upper case: with lower-case ids
    # a gene of several columns has several tokens in a cell. Ours are those that the official code gives for the same
    # ids in upper case.
    some = cells[:4].copy()
    some.var["ensembl_id"] = some.var["ensembl_id"].str.lower()
    ours = tokens_of(whole(tokenizer_for(folding, some))(some.X, 0))
    lower, upper = official_cells("tokens/V2_lower_fold"), official_cells("tokens/V2_fold")
    for cell in range(4):
        assert ours[cell] == upper[cell]
        assert len(set(ours[cell])) == len(ours[cell])
        assert len(set(lower[cell])) < len(lower[cell])
        assert set(lower[cell]) == set(ours[cell])


def test_an_id_that_stands_twice_is_added_up(
    load: Load,
    cells: AnnData,
    official: Official,
    official_cells: OfficialCells,
    tokenizer_for: TokenizerFor,
    tokens_of: TokensOf,
    official_arithmetic: Callable[..., list[list[int]]],
) -> None:
    # The official test for duplicates compares sets of ids, so it does not see an id that stands twice: its token is
    # repeated and its counts stay apart. Ours is the official arithmetic after adding the columns.
    model = load("V2_mlm")
    some = cells[:3].copy()
    ids = some.var["ensembl_id"].to_numpy(dtype=object).copy()
    dense = some.X.toarray().astype(np.float64)
    pairs = official["tokens/V2_same_id_twice_columns"]
    for a, b in pairs:
        ids[b] = ids[a]
        dense[:, a] += dense[:, b]
        dense[:, b] = 0
    some.var["ensembl_id"] = ids
    ours = tokens_of(whole(tokenizer_for(model, some))(some.X, 0))

    token = dict(zip(model.vocabulary.ensembl_ids, model.dictionaries.tokens, strict=True))
    median = dict(zip(model.vocabulary.ensembl_ids, model.dictionaries.medians, strict=True))
    # Columns of several come behind the others, as in the official folding.
    first = pairs[:, 0][np.argsort(np.minimum(pairs[:, 0], pairs[:, 1]))]
    order = [c for c in range(len(ids)) if c not in pairs] + first.tolist()
    tokens = np.array([token.get(ids[c], -1) for c in order], np.int32)
    medians = np.array([median.get(ids[c], np.nan) for c in order])
    added = sp.csr_matrix(dense)[:, order]
    added.eliminate_zeros()
    totals = np.asarray(some.X.astype(np.float64).sum(axis=1)).ravel()
    assert ours == official_arithmetic(added, totals, tokens, medians)
    theirs = official_cells("tokens/V2_same_id_twice")
    assert any(len(set(theirs[cell])) < len(theirs[cell]) for cell in range(3))
    for cell in range(3):
        assert len(set(ours[cell])) == len(ours[cell])
        assert set(ours[cell]) == set(theirs[cell])


@torch.inference_mode()
def test_pooling_of_several_tasks_is_over_the_tokens_of_the_cell(
    load: Load, official: Official, official_cells: OfficialCells
) -> None:
    # The official attention pooling has no mask: the padding of a batch counts, and a cell's classes depend on the
    # longest cell beside it. Ours are, in any company, what the official code gives for the cell alone.
    model = load("V2_mtl_attnpool")
    rows = official["classifiers/mtl_cells"].tolist()
    tokens = [np.array(official_cells("inputs/V2")[row], np.int32) for row in rows]
    together = batch_of(tokens)
    logits = model.module.logits(torch.from_numpy(together.ids).long(), together.offsets.tolist())
    lengths = np.array([len(cell) for cell in tokens])
    for task, found in enumerate(logits):
        single, batch = (official[f"classifiers/mtl_pool_task{task}_{kind}"] for kind in ("single", "batch4"))
        np.testing.assert_allclose(found, single, atol=3e-6)
        padded = lengths < lengths.max()
        assert padded.sum() == 3
        assert (np.abs(batch - single).max(axis=1) > 1e-4).tolist() == padded.tolist()
        np.testing.assert_allclose(batch[~padded], single[~padded], atol=3e-6)
    found = model.forward(Pack.of(together, model.device), frozenset({"logits"}))["logits"]
    assert torch.equal(found, torch.cat(logits, dim=1)), "the tasks side by side"


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_every_cell_gets_its_vector_in_the_order_of_the_file(
    fixtures: Path, cells: AnnData, official: Official, version: str
) -> None:
    # Officially cells come back from the longest to the shortest, those without a gene are dropped, and of more than
    # max_ncells (1,000 by default) a random part is kept.
    mode = "cell" if version == "V1" else "cls"
    order = official[f"embeddings/{version}_cells_in_output_order"]
    theirs = official[f"embeddings/{version}_{mode}_-1"]
    cfm.tl.embed(cells, model=fixtures / f"{version}_mlm", gene_column="ensembl_id", device="cpu")
    ours, n_genes = cells.obsm["X_cfm"], cells.obs["cfm_n_genes"].to_numpy()
    assert not np.array_equal(order, np.sort(order))
    np.testing.assert_allclose(ours[order], theirs, atol=5e-6)
    lost = np.setdiff1d(np.arange(48), order)
    assert lost.tolist() == ([46, 47] if version == "V1" else [46])
    assert not ours[lost].any()
    assert (n_genes[lost] == 0).all()
    assert (n_genes[order] > 0).all()
    assert len(ours) == 48

    cut = official[f"embeddings/{version}_cells_for_max_ncells_10"]
    rows = official[f"inputs/{version}_cells"]
    drawn = rows[np.random.default_rng(42).permutation(len(rows))[:10]]
    assert sorted(cut) == sorted(drawn)
    assert np.isin(cut, np.flatnonzero(np.abs(ours).sum(axis=1) > 0)).all()


def test_v1_has_no_cls(fixtures: Path, cells: AnnData, official: Official) -> None:
    # The official code warns and takes "cell" instead; a user who asked for one thing should not get another.
    folder = fixtures / "V1_mlm"
    with pytest.raises(OptionError) as raised:
        cfm.tl.embed(cells, model=folder, emb_mode="cls", gene_column="ensembl_id")
    assert str(raised.value) == (
        "emb_mode='cls': this is a V1 model, whose cells have no <cls>. Type emb_mode='cell', or leave it out."
    )
    assert not cells.obsm
    cfm.tl.embed(cells, model=folder, emb_mode="cell", gene_column="ensembl_id", device="cpu")
    named = cells.obsm["X_cfm"].copy()
    cfm.tl.embed(cells, model=folder, gene_column="ensembl_id", device="cpu")
    np.testing.assert_array_equal(cells.obsm["X_cfm"], named)
    order = official["embeddings/V1_cells_in_output_order"]
    np.testing.assert_allclose(named[order], official["embeddings/V1_cell_-1"], atol=5e-6)


def test_other_files_of_the_same_form_are_read(fixtures: Path) -> None:
    # The model asks its files for every size; nothing of these ones is assumed.
    shapes = {name: models.load(fixtures / name, device="cpu").spec for name in ("V1_mlm", "V2_gene_classifier")}
    assert {(spec.dim, len(spec.digest)) for spec in shapes.values()} == {(32, 12), (16, 12)}
