"""Tokens of scFoundation: those of the official code, and what is done otherwise on purpose."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import cfm
from cfm import models
from cfm.errors import CountsError, GeneMatchError, OptionError
from cfm.genes import match
from cfm.models.scfoundation.options import Depth
from cfm.models.scfoundation.tokenizer import ScfoundationTokenizer
from cfm.tokens import TokenBatch

Official = dict[str, np.ndarray]


def tokenizer(adata: AnnData, folder: Path, **options: Any) -> ScfoundationTokenizer:
    model = models.load(folder, device="cpu", **options)
    columns = {name: adata.obs[column.name].to_numpy() for name, column in model.obs_columns.items()}
    found = model.tokenizer(match(adata.var, model.vocabulary, gene_column="var_names", min_genes=1), columns)
    assert isinstance(found, ScfoundationTokenizer)
    return found


def tokens(adata: AnnData, folder: Path, **options: Any) -> TokenBatch:
    return tokenizer(adata, folder, **options)(sp.csr_matrix(adata.X), 0)


def test_official_tokens_of_every_cell(cells: AnnData, folder: Path, official: Official) -> None:
    found = tokens(cells, folder, compat="official")
    filled = np.flatnonzero(found.lengths)
    assert filled.tolist() == official["tokens/nonempty_rows"].tolist()
    np.testing.assert_array_equal(found.values, official["tokens/cell_t4_values"])
    np.testing.assert_array_equal(found.ids, official["tokens/cell_t4_positions"])
    np.testing.assert_array_equal(found.take(filled).offsets, official["tokens/cell_t4_offsets"])


def test_the_full_matrix_in_another_order_of_genes_is_aligned_by_name(
    cells: AnnData, folder: Path, listed: list[str]
) -> None:
    """As wide as the list: there the official code takes columns by their place, whatever their names."""
    known = [gene for gene in cells.var_names if gene in set(listed)]
    lacking = [gene for gene in listed if gene not in set(known)]
    rest = AnnData(sp.csr_matrix((cells.n_obs, len(lacking))), obs=cells.obs, var=pd.DataFrame(index=lacking))
    wide = AnnData(
        sp.hstack([cells[:, known].X, rest.X], format="csr"), obs=cells.obs, var=pd.DataFrame(index=[*known, *lacking])
    )
    assert wide.n_vars == len(listed)
    expected = tokens(wide, folder)
    order = np.random.default_rng(0).permutation(wide.n_vars)
    for other in (wide[:, order].copy(), wide[:, listed].copy(), cells[:, known].copy()):
        found = tokens(other, folder)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.values, expected.values)


def test_more_columns_than_the_list_has(cells: AnnData, folder: Path) -> None:
    """9,571 columns, of which 440 are listed; the official code matches nothing in a matrix wider than its list."""
    assert cells.n_vars > len(models.load(folder, device="cpu").vocabulary)
    assert tokens(cells, folder).ids.max() == 511


def test_a_matrix_without_names_is_refused(cells: AnnData, folder: Path, listed: list[str]) -> None:
    nameless = cells[:, : len(listed)].copy()
    nameless.var = pd.DataFrame(index=[str(i) for i in range(nameless.n_vars)])
    with pytest.raises(GeneMatchError, match="Only 0 of 510 genes"):
        cfm.tl.embed(nameless, model=folder, device="cpu")


def test_renamed_genes_and_ensembl_ids_are_found(cells: AnnData, folder: Path, official: Official) -> None:
    """Two genes more than the official code finds, under the names that they had before: C11orf63 is JHY now."""
    exact, ours = (tokenizer(cells, folder, compat=compat).tokens for compat in ("official", None))
    assert (exact >= 0).sum() == (~official["tokens/fill_mask"]).sum() == 440
    assert (ours >= 0).sum() == 442
    more = cells.var_names[(ours >= 0) & (exact < 0)]
    assert more.tolist() == ["C11orf63", "VWA9"]

    vocabulary = models.load(folder, device="cpu").vocabulary
    by_id = cells[:, ours >= 0].copy()
    by_id.var_names = [
        vocabulary.ensembl_ids[token] or name for token, name in zip(ours[ours >= 0], by_id.var_names, strict=True)
    ]
    found, expected = tokens(by_id, folder), tokens(cells, folder)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_gene_in_two_columns_is_added(some: AnnData, folder: Path) -> None:
    """The official code keeps both columns, and its frame then has one more than its list."""
    half = some.copy()
    gene = str(half.var_names[tokenizer(some, folder).tokens >= 0][0])
    column = sp.csr_matrix(half[:, gene].X)
    doubled = AnnData(
        sp.hstack([half.X, column], format="csr"),
        obs=half.obs,
        var=pd.DataFrame(index=pd.Index([*half.var_names, f"{gene}-1"])),
    )
    alone = half.copy()
    alone.X = sp.csr_matrix(alone.X)
    place = alone.var_names.get_loc(gene)
    alone.X[:, place] = column * 2
    found, expected = tokens(doubled, folder), tokens(alone, folder)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.values, expected.values)


# --- depths


def test_depths_of_every_mode(some: AnnData, folder: Path, official: Official, normalized: AnnData) -> None:
    subset = official["cell_embeddings/rows_subset"]
    for name, adata, options in (
        ("cell_all_t4", some, {}),
        ("cell_all_f2.5", some, {"depth": "f2.5"}),
        ("rde_all_a5", some, {"depth": "a5"}),
        ("cell_all_T_t4", normalized, {"input": "normalized"}),
        ("cell_all_A_f1", normalized, {"input": "normalized", "total_key": "total", "depth": "f1"}),
        ("bulk_T_max", normalized, {"input": "normalized", "bulk": True}),
    ):
        found = tokens(adata, folder, compat="official", **options)
        ends = found.offsets[1:]
        assert (found.ids[ends - 2] == 510).all()
        assert (found.ids[ends - 1] == 511).all()
        depths = np.stack([found.values[ends - 2], found.values[ends - 1]], axis=1)
        np.testing.assert_allclose(depths, official[f"tokens/TS|{name}"][subset], rtol=1e-6)


def test_f10_is_a1(some: AnnData, folder: Path) -> None:
    one, other = (tokens(some, folder, depth=depth) for depth in ("f10", "a1"))
    np.testing.assert_allclose(one.values, other.values, rtol=1e-6)


def test_a_number_is_a_logarithm(some: AnnData, folder: Path) -> None:
    for depth in (4.5, "t4.5"):
        np.testing.assert_array_equal(
            tokens(some, folder, depth=depth).values, tokens(some, folder, depth="t4.5").values
        )
    assert Depth.of(4) == Depth.of("t4")


@pytest.mark.parametrize("depth", ["x4", "t", "t1.2.3", "4x", True, "tnan", "t0", "t-1", "f0", "f-2", ""])
def test_depths_that_cannot_be(folder: Path, depth: object) -> None:
    with pytest.raises(OptionError, match="depth="):
        models.load(folder, device="cpu", depth=depth)


def test_a_cell_with_one_count_keeps_its_depth(cells: AnnData, folder: Path, official: Official) -> None:
    """log10(1) is 0, and the official code drops tokens that are not above 0: the last gene then passes for a depth."""
    known = tokenizer(cells, folder).tokens >= 0
    one = cells[:1, known].copy()
    one.X = sp.csr_matrix(([1.0], ([0], [3])), shape=one.shape)
    found = tokens(one, folder)
    assert found.ids.tolist()[1:] == [510, 511]
    assert found.values.tolist()[1:] == [4.0, 0.0]
    # The official numbers of a depth of 0: T is gone, and the gene before it stands in its place.
    assert official["edge/t0_last_positions"][0].tolist() == [509, 511]


def test_single_precision_is_not_followed(some: AnnData, cells: AnnData, folder: Path, official: Official) -> None:
    """The official code computes in the dtype of the file where no gene is missing. Here it is always double."""
    rows = official["tokens/nonempty_rows"][:3]
    expected = official["edge/float32_input_values_first3"]
    for dtype in (np.float32, np.float64):
        three = cells[rows].copy()
        three.X = three.X.astype(dtype)
        found = tokens(three, folder, compat="official").values
        np.testing.assert_array_equal(found, official["tokens/cell_t4_values64_first3"].astype(np.float32))
        assert 0 < np.abs(found - expected).max() < 1e-6


# --- samples of bulk


def test_bulk_does_not_look_at_the_rest_of_the_file(cells: AnnData, folder: Path, official: Official) -> None:
    """The official number to scale to is the median of the file: half of the file gives other values, and ours the same."""
    half = official["cell_embeddings/bulk_F_all_first_half_only"]
    whole = official["cell_embeddings/bulk_F_all"][: len(half)]
    assert np.abs(half - whole).max() > 0.01
    one = tokens(cells[:10].copy(), folder, bulk=True, target_sum=1000)
    two = tokens(cells[:30].copy(), folder, bulk=True, target_sum=1000)
    np.testing.assert_array_equal(one.values, two.values[: len(one.values)])
    with pytest.raises(OptionError, match=r"Type target_sum=, .*: the median of one of them is float\(numpy.median"):
        models.load(folder, device="cpu", bulk=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bulk": True, "target_sum": 0}, "target_sum=0"),
        ({"bulk": True, "target_sum": 1e3, "depth": "t4"}, "depth= is for single cells"),
        ({"bulk": True, "input": "normalized", "total_key": "n"}, "total_key= is for single cells"),
        ({"bulk": True, "input": "normalized", "target_sum": 1e3}, "takes values as they are"),
        ({"target_sum": 1e3}, "goes with bulk=True"),
        ({"total_key": "n"}, "goes with input='normalized'"),
        ({"bulk": "yes"}, "True or False"),
        ({"input": "log"}, "Type one of 'counts', 'normalized'"),
    ],
)
def test_options_that_do_not_go_together(folder: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        models.load(folder, device="cpu", **options)


# --- bad input


def test_bulk_tpm_given_for_cells_is_refused(some: AnnData, folder: Path) -> None:
    some.X = sp.csr_matrix(sp.diags(1e6 / np.asarray(some.X.sum(axis=1)).ravel()) @ some.X)
    with pytest.raises(CountsError, match="No raw counts found"):
        cfm.tl.embed(some, model=folder, device="cpu")


def test_counts_given_for_normalised_values_are_refused(some: AnnData, folder: Path) -> None:
    with pytest.raises(CountsError, match="X holds counts, and the model was told to take normalised values"):
        cfm.tl.embed(some, model=folder, device="cpu", input="normalized")


def test_scaled_values_are_refused(normalized: AnnData, folder: Path) -> None:
    normalized.X = normalized.X.toarray() - 1
    with pytest.raises(CountsError, match="holds no normalised values in cells 0 to 12"):
        cfm.tl.embed(normalized, model=folder, device="cpu", input="normalized")


@pytest.mark.parametrize("total", [0.0, -3.0, np.inf])
def test_totals_that_are_none(normalized: AnnData, folder: Path, total: float) -> None:
    normalized.obs.loc[normalized.obs_names[4], "total"] = total
    with pytest.raises(OptionError, match=rf"obs\['total'\] has {total:g} for cell 4, which expresses genes"):
        cfm.tl.embed(normalized, model=folder, device="cpu", input="normalized", total_key="total")


def test_it_survives_pickle(some: AnnData, folder: Path) -> None:
    made = tokenizer(some, folder)
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again(sp.csr_matrix(some.X), 0).values, made(sp.csr_matrix(some.X), 0).values)
