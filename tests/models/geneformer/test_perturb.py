"""Perturbed cells: genes taken out, and genes at the front."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from cfm.models import Pack
from cfm.models.geneformer import GeneformerModel
from cfm.models.geneformer.perturb import (
    batch_of,
    cell_similarity,
    delete,
    gene_similarity,
    overexpress,
    shift_towards,
)

Official = dict[str, NDArray]
OfficialCells = Callable[[str], dict[int, list[int]]]

ENDS = (2, 3)
P = 20


def ints(*numbers: int) -> NDArray[np.int32]:
    return np.array(numbers, np.int32)


def cell_of(n: int, ends: tuple[int, int] | None) -> NDArray[np.int32]:
    """`n` genes, numbered from 10 by rank."""
    genes = range(10, 10 + n)
    return ints(*genes) if ends is None else ints(ends[0], *genes, ends[1])


@pytest.mark.parametrize("ends", [None, ENDS], ids=["V1", "V2"])
def test_delete(ends: tuple[int, int] | None) -> None:
    cell = cell_of(5, ends)
    before = cell.copy()
    assert delete(cell, ints(12)).tolist() == [t for t in cell if t != 12]
    assert delete(cell, ints(14, 10)).tolist() == [t for t in cell if t not in (10, 14)]
    assert delete(cell, ints(99)).tolist() == cell.tolist()
    assert delete(cell, ints(12, 99)).tolist() == [t for t in cell if t != 12]
    assert delete(cell, ints(10, 11, 12, 13, 14)).tolist() == ([] if ends is None else [2, 3])
    assert delete(cell, ints()).tolist() == cell.tolist()
    assert delete(cell, ints(12)).dtype == np.int32
    np.testing.assert_array_equal(cell, before)


@pytest.mark.parametrize("ends", [None, ENDS], ids=["V1", "V2"])
def test_overexpress(ends: tuple[int, int] | None) -> None:
    def moved(*genes: int) -> list[int]:
        found = overexpress(cell, ints(*genes), P, ends)
        assert found.dtype == np.int32
        if ends is not None:
            assert (found[0], found[-1]) == ends
            found = found[1:-1]
        return found.tolist()

    cell = cell_of(5, ends)
    before = cell.copy()
    assert moved(13) == [13, 10, 11, 12, 14]
    assert moved(99) == [99, 10, 11, 12, 13, 14]
    assert moved(14, 99, 11) == [14, 99, 11, 10, 12, 13], "in the order given"
    assert moved(10) == [10, 11, 12, 13, 14]
    assert moved() == [10, 11, 12, 13, 14]
    np.testing.assert_array_equal(cell, before)


# Upstream counts the overflow twice (dossier 1.27): with one gene that is not expressed, a cell of P - 1 tokens crashes,
# and with n of them, cells strictly between P - 2n and P lose more genes than they have to. Here only what does not fit
# falls off.
@pytest.mark.parametrize("n_new", [0, 1, 2, 3])
@pytest.mark.parametrize("length", range(P - 8, P + 1))
@pytest.mark.parametrize("ends", [None, ENDS], ids=["V1", "V2"])
def test_overflow(ends: tuple[int, int] | None, length: int, n_new: int) -> None:
    inner = length - (0 if ends is None else 2)
    room = P - (0 if ends is None else 2)
    cell = cell_of(inner, ends)
    genes = ints(*range(90, 90 + n_new), 12)  # the last is expressed
    found = overexpress(cell, genes, P, ends)
    assert len(found) == min(length + n_new, P)
    genes_found = found if ends is None else found[1:-1]
    expected = [*genes, *(t for t in range(10, 10 + inner) if t != 12)][:room]
    assert genes_found.tolist() == expected
    if ends is not None:
        assert (found[0], found[-1]) == ends, "<eos> never falls off"


def test_more_genes_than_fit() -> None:
    assert overexpress(ints(7, 8), ints(1, 2, 3, 4), 3, None).tolist() == [1, 2, 3]
    assert overexpress(ints(2, 7, 8, 3), ints(11, 12, 13, 14), 5, ENDS).tolist() == [2, 11, 12, 13, 3]


@pytest.mark.parametrize("length", [254, 255, 256])
@pytest.mark.parametrize("version", ["V1", "V2"])
@torch.inference_mode()
def test_cells_of_nearly_the_greatest_length_go_through(
    load: Callable[..., GeneformerModel], version: str, length: int
) -> None:
    # Upstream fails at 255 of 256 positions.
    model = load(f"{version}_mlm")
    ends, room = model.dictionaries.ends, model.spec.max_tokens
    assert room == 256
    genes = model.dictionaries.tokens[: length - (0 if ends is None else 2)]
    cell = genes if ends is None else np.concatenate([ints(ends[0]), genes, ints(ends[1])])
    assert len(cell) == length
    unexpressed = model.dictionaries.tokens[-1:]
    new = overexpress(cell, unexpressed, room, ends)
    assert len(new) == min(length + 1, 256)
    found = model.forward(Pack.of(batch_of([cell, new]), model.device), frozenset({"cell"}))["cell"]
    assert found.isfinite().all()
    assert 0 < cell_similarity(found[0], found[1]) < 1


def test_batches_of_cells() -> None:
    batch = batch_of([ints(5, 6), ints(), ints(7)])
    assert batch.ids.tolist() == [5, 6, 7]
    assert batch.offsets.tolist() == [0, 2, 2, 3]
    assert (batch.ids.dtype, batch.values, batch.rows.tolist()) == (np.int32, None, [0, 1, 2])


# Shifts


def vectors(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def test_similarity_of_genes_is_the_mean_over_those_that_remain() -> None:
    tokens, new_tokens = ints(7, 8, 9, 5), ints(9, 7, 5)
    before, after = vectors(4, 0), vectors(3, 1)
    pairs = [(0, 1), (2, 0), (3, 2)]
    cosines = [float(F.cosine_similarity(before[i], after[j], dim=0)) for i, j in pairs]
    found = gene_similarity(before, tokens, after, new_tokens, ints(8))
    assert found == pytest.approx(np.mean(cosines), abs=1e-6)
    # A perturbed gene that is in both is left out all the same.
    found = gene_similarity(before, tokens, after, new_tokens, ints(9))
    assert found == pytest.approx(np.mean([cosines[0], cosines[2]]), abs=1e-6)


def test_shift_towards_a_state() -> None:
    before, after, state = vectors(3, 2)
    expected = float(after @ state / after.norm() / state.norm() - before @ state / before.norm() / state.norm())
    assert shift_towards(before, after, state) == pytest.approx(expected, abs=1e-6)
    assert shift_towards(before, before, state) == 0
    assert shift_towards(-state, state, state) == pytest.approx(2, abs=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["delete", "overexpress"])
@pytest.mark.parametrize("version", ["V1", "V2"])
def test_official_shifts(
    load: Callable[..., GeneformerModel], official: Official, official_cells: OfficialCells, version: str, kind: str
) -> None:
    # The whole comparison is benchmarks/parity.py; here for cells in one pack, which upstream cannot do for V1.
    model = load(f"{version}_mlm")
    mode = model.emb_mode
    token = dict(zip(model.vocabulary.ensembl_ids, model.dictionaries.tokens, strict=True))
    genes = np.array([token[str(gene)] for gene in official[f"perturbation/{version}_genes"]], np.int32)
    rows = official[f"perturbation/{version}_{kind}_two_cells"].tolist()
    old = [np.array(official_cells(f"inputs/{version}")[row], np.int32) for row in rows]
    if kind == "delete":
        new = [delete(cell, genes) for cell in old]
    else:
        new = [overexpress(cell, genes, model.spec.max_tokens, model.dictionaries.ends) for cell in old]
    batch = batch_of(old + new)
    found = model.forward(Pack.of(batch, model.device), frozenset({"cell", "token"}))
    parts = found["token"].split(batch.lengths.tolist())
    n = len(old)
    ours = [
        cell_similarity(found["cell"][i], found["cell"][n + i])
        if mode == "cls"
        else gene_similarity(parts[i], old[i], parts[n + i], new[i], genes)
        for i in range(n)
    ]
    np.testing.assert_allclose(ours, official[f"perturbation/{version}_{kind}_two_{mode}"], atol=2e-6)
