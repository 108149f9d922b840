from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from cfm._core.errors import CfmError, CountsError, MissingKeyError
from cfm.counts import CountSource, find_counts, in_memory

Stored = Callable[[AnnData, str], AnnData]


def rows_of(source: CountSource, chunk_cells: int = 64) -> np.ndarray:
    return np.vstack([chunk.counts.toarray() for chunk in source.chunks(chunk_cells)])


@pytest.fixture
def counts(pbmc: AnnData) -> np.ndarray:
    return pbmc.X.toarray()


@pytest.fixture
def logged(pbmc: AnnData) -> AnnData:
    """The real cells, log-normalised as everyone does it, the counts nowhere."""
    adata = pbmc.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


# --- the order of places


def test_counts_in_x_are_taken_without_a_word(pbmc: AnnData, counts: np.ndarray, said: list[str]) -> None:
    pbmc.layers["counts"] = pbmc.X * 2
    source = find_counts(pbmc)
    assert source.where == "X"
    assert source.n_cells == 700
    assert source.var is pbmc.var
    np.testing.assert_array_equal(rows_of(source), counts)
    assert said == []


def test_raw_is_next_and_brings_its_own_genes(logged: AnnData, counts: np.ndarray, said: list[str]) -> None:
    whole = AnnData(sp.csr_matrix(counts), obs=logged.obs, var=logged.var)
    logged.raw = whole
    logged.layers["counts"] = logged.X.copy()
    subset = logged[:, :100].copy()
    source = find_counts(subset)
    assert source.where == "raw.X"
    assert source.var.index.tolist() == whole.var_names.tolist()
    np.testing.assert_array_equal(rows_of(source), counts)
    assert said == ["INFO counts: took raw.X, since X holds no counts"]


@pytest.mark.parametrize("name", ["counts", "raw", "raw_counts"])
def test_then_the_usual_layers(logged: AnnData, counts: np.ndarray, name: str) -> None:
    logged.raw = logged.copy()
    logged.layers[name] = sp.csr_matrix(counts)
    source = find_counts(logged)
    assert source.where == f"layers[{name!r}]"
    np.testing.assert_array_equal(rows_of(source), counts)


def test_the_layers_have_an_order_and_only_counts_are_taken(logged: AnnData, counts: np.ndarray) -> None:
    logged.layers["raw_counts"] = sp.csr_matrix(counts)
    logged.layers["raw"] = sp.csr_matrix(counts * 2)
    logged.layers["counts"] = logged.X.copy()  # a misleading name
    assert find_counts(logged).where == "layers['raw']"


def test_a_layer_of_another_name_is_not_guessed(logged: AnnData, counts: np.ndarray) -> None:
    logged.layers["umis"] = sp.csr_matrix(counts)
    with pytest.raises(CountsError, match=r"layers present: \['umis'\]"):
        find_counts(logged)
    assert find_counts(logged, layer="umis").where == "layers['umis']"


def test_the_named_layer_is_taken_though_x_holds_counts(pbmc: AnnData, counts: np.ndarray) -> None:
    pbmc.layers["spliced"] = sp.csr_matrix(counts * 2)
    np.testing.assert_array_equal(rows_of(find_counts(pbmc, layer="spliced")), counts * 2)


def test_the_named_layer_alone_is_looked_at(logged: AnnData, counts: np.ndarray) -> None:
    logged.layers["norm"] = logged.X.copy()
    logged.X = sp.csr_matrix(counts)
    with pytest.raises(CountsError) as caught:
        find_counts(logged, layer="norm")
    message = str(caught.value)
    assert "Looked at:\n  layers['norm']: " in message
    assert "  X:" not in message
    assert "layer='NAME'" in message


def test_layer_x_is_x_alone(logged: AnnData, counts: np.ndarray) -> None:
    logged.layers["counts"] = sp.csr_matrix(counts)
    with pytest.raises(CountsError, match=r"\n  X: \d+\.\d% of"):
        find_counts(logged, layer="X")
    logged.X = sp.csr_matrix(counts)
    assert find_counts(logged, layer="X").where == "X"


def test_a_missing_layer_names_those_that_exist(pbmc: AnnData) -> None:
    pbmc.layers["umis"] = pbmc.X.copy()
    with pytest.raises(MissingKeyError) as caught:
        find_counts(pbmc, layer="counts")
    assert str(caught.value) == "adata.layers has no 'counts'. It has ['umis']; layer='X' takes X."
    assert isinstance(caught.value, KeyError)


def test_no_x(counts: np.ndarray, pbmc: AnnData) -> None:
    bare = AnnData(None, obs=pbmc.obs, var=pbmc.var)
    with pytest.raises(CountsError, match=r"Looked at:\n  X: there is none\n  layers: none of 'counts', 'raw'"):
        find_counts(bare)
    with pytest.raises(CountsError, match="X: there is none"):
        find_counts(bare, layer="X")
    bare.layers["counts"] = sp.csr_matrix(counts)
    assert find_counts(bare).where == "layers['counts']"
    assert find_counts(bare[5:10]).where == "layers['counts']"


def test_an_x_of_nothing_but_zeros_is_a_placeholder(pbmc: AnnData, counts: np.ndarray, said: list[str]) -> None:
    pbmc.X = sp.csr_matrix(pbmc.shape, dtype=np.float32)
    assert find_counts(pbmc).where == "X"
    pbmc.layers["counts"] = sp.csr_matrix(counts)
    assert find_counts(pbmc).where == "layers['counts']"
    assert said == ["INFO counts: took layers['counts'], since X holds no counts"]


# --- what is no counts: the message


def test_log_normalised_cells_name_evidence_and_fix(logged: AnnData) -> None:
    logged.raw = logged.copy()
    logged.layers["counts"] = logged.X.copy()
    logged.layers["scaled"] = logged.X.toarray()
    with pytest.raises(CountsError) as caught:
        find_counts(logged)
    message = str(caught.value)
    assert message.startswith("No raw counts found. Looked at:\n  X: ")
    for place in ("X", "raw.X", "layers['counts']"):
        line = next(line for line in message.splitlines() if line.startswith(f"  {place}: "))
        assert "% of " in line
        assert "stored values are not whole numbers, minimum 2.001" in line
        assert ", maximum " in line
        assert line.endswith("(log-normalised)")
    assert "holds counts (layers present: ['counts', 'scaled'])" in message
    assert "adata.layers['counts'] = adata.X.copy(), then sc.pp.normalize_total" in message
    assert "layer='NAME'" in message
    assert isinstance(caught.value, CfmError)
    assert isinstance(caught.value, ValueError)


def test_scaled_cells(pbmc: AnnData) -> None:
    pbmc.X = sc.datasets.pbmc68k_reduced().X
    with pytest.raises(CountsError, match=r"X: 100\.0% of [\d,]+ stored values .* minimum -\d.*\(scaled or centred\)"):
        find_counts(pbmc)


@pytest.mark.parametrize("kind", ["dense", "csr_matrix", "backed_csr", "backed_dense", "dask_csr"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-2.0, r"minimum -2, maximum \d+ \(negative whole numbers: no counts\)"),
        (np.nan, r"minimum 1, maximum \d+, \d+ NaN or infinite \(damaged: counts have neither\)"),
        (np.inf, r"minimum 1, maximum \d+, \d+ NaN or infinite \(damaged: counts have neither\)"),
        (0.5, r"minimum 0\.5, maximum \d+ \(normalised, imputed or corrected\)"),
    ],
)
def test_one_bad_cell_of_the_sample(pbmc: AnnData, stored_as: Stored, kind: str, value: float, message: str) -> None:
    matrix = pbmc.X.toarray()
    matrix[3, matrix[3] > 0] = value
    pbmc.X = sp.csr_matrix(matrix)
    with pytest.raises(CountsError, match=message):
        find_counts(stored_as(pbmc, kind))


def test_fractions_that_only_float64_holds(pbmc: AnnData) -> None:
    pbmc.X = pbmc.X.astype(np.float64)
    assert find_counts(pbmc).where == "X"
    pbmc.X.data += 1e-9
    with pytest.raises(CountsError, match=r"X: 100\.0% of"):
        find_counts(pbmc)


def test_a_matrix_of_objects_says_how_to_convert(pbmc: AnnData) -> None:
    strange = AnnData(pbmc.X.toarray().astype(object), obs=pbmc.obs, var=pbmc.var)
    with pytest.raises(CountsError, match=r"dtype object holds no counts. Convert it: adata.X.astype\('float32'\)"):
        find_counts(strange)


# --- few cells, many genes


def test_zero_cells(pbmc: AnnData, tmp_path: Path) -> None:
    source = find_counts(pbmc[:0])
    assert (source.where, source.n_cells) == ("X", 0)
    assert list(source.chunks(64)) == []
    pbmc[:0].copy().write_h5ad(tmp_path / "none.h5ad")
    assert find_counts(ad.read_h5ad(tmp_path / "none.h5ad", backed="r")).n_cells == 0


def test_one_cell(pbmc: AnnData, counts: np.ndarray) -> None:
    np.testing.assert_array_equal(rows_of(find_counts(pbmc[5])), counts[5:6])
    np.testing.assert_array_equal(rows_of(find_counts(pbmc[5].copy())), counts[5:6])


def test_empty_cells(pbmc: AnnData, counts: np.ndarray) -> None:
    counts[[0, 1, 350, 699]] = 0
    pbmc.X = sp.csr_matrix(counts)
    np.testing.assert_array_equal(rows_of(find_counts(pbmc)), counts)


def test_sixty_thousand_genes(pbmc: AnnData, counts: np.ndarray) -> None:
    wide = sp.hstack([pbmc.X, sp.csr_matrix((700, 60_000 - 765), dtype=np.float32)], format="csr")
    source = find_counts(AnnData(wide))
    chunk = next(source.chunks(64))
    assert chunk.counts.shape == (64, 60_000)
    np.testing.assert_array_equal(chunk.counts[:, :765].toarray(), counts[:64])


# --- storage, views and raw


def test_every_storage_gives_the_same_rows(pbmc: AnnData, counts: np.ndarray, stored_as: Stored, form: str) -> None:
    source = find_counts(stored_as(pbmc, form))
    assert source.where == "X"
    assert source.var.index.tolist() == pbmc.var_names.tolist()
    for chunk in source.chunks(97):
        assert sp.issparse(chunk.counts)
        assert chunk.counts.format == "csr"
        assert chunk.counts.shape[1] == 765
    np.testing.assert_array_equal(rows_of(source, 97), counts)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(100, 400), slice(None)),
        (slice(None), slice(0, 300)),
        (slice(None, None, 7), slice(3, None, 5)),
        (np.arange(699, -1, -3), np.arange(764, -1, -2)),
        (np.array([5, 5, 600, 2]), slice(None)),
        ("mask", "mask"),
        ([7], [3]),
    ],
    ids=["rows", "columns", "strides", "backwards", "repeats", "masks", "one"],
)
@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "dense", "backed_csr", "backed_csc", "backed_dense", "lazy_h5ad", "dask_csr"])  # fmt: skip
def test_views_give_their_own_rows(
    pbmc: AnnData, counts: np.ndarray, stored_as: Stored, kind: str, rows: object, columns: object
) -> None:
    if isinstance(rows, str):
        rows, columns = pbmc.obs["n_counts"].to_numpy() > 1500, counts.sum(axis=0) > 100
    view = stored_as(pbmc, kind)[rows, columns]
    source = find_counts(view)
    expected = counts[rows][:, columns]
    assert source.n_cells == len(expected)
    assert source.var.index.tolist() == pbmc.var_names[columns].tolist()
    np.testing.assert_array_equal(rows_of(source), expected)


@pytest.mark.parametrize("kind", ["csr_matrix", "backed_csr", "backed_dense", "lazy_zarr"])
def test_a_view_of_a_view(pbmc: AnnData, counts: np.ndarray, stored_as: Stored, kind: str) -> None:
    view = stored_as(pbmc, kind)[50:650, 10:700][::-2][:, np.arange(0, 690, 3)]
    np.testing.assert_array_equal(rows_of(find_counts(view)), counts[50:650, 10:700][::-2][:, ::3])


@pytest.mark.parametrize("how", ["whole", "backed", "lazy"])
def test_raw_and_layers_of_files_and_their_views(logged: AnnData, counts: np.ndarray, tmp_path: Path, how: str) -> None:
    """raw keeps the genes that a view leaves out, layers do not."""
    logged.raw = AnnData(sp.csr_matrix(counts), obs=logged.obs, var=logged.var)
    logged.layers["umis"] = sp.csr_matrix(counts)
    path = tmp_path / "a.h5ad"
    logged.write_h5ad(path)
    read = {
        "whole": lambda: ad.read_h5ad(path),
        "backed": lambda: ad.read_h5ad(path, backed="r"),
        "lazy": lambda: ad.experimental.read_lazy(path),
    }[how]()
    source = find_counts(read)
    assert source.where == "raw.X"
    assert source.var.index.tolist() == logged.var_names.tolist()
    np.testing.assert_array_equal(rows_of(source), counts)
    np.testing.assert_array_equal(rows_of(find_counts(read, layer="umis")), counts)
    view = read[10:300:3, :50]
    source = find_counts(view)
    assert source.where == "raw.X"
    assert len(source.var) == 765
    np.testing.assert_array_equal(rows_of(source), counts[10:300:3])
    np.testing.assert_array_equal(rows_of(find_counts(view, layer="umis")), counts[10:300:3, :50])


def test_a_file_opened_read_only_stays_as_it_is(pbmc: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    pbmc.write_h5ad(path)
    path.chmod(0o400)
    before = path.read_bytes()
    backed = ad.read_h5ad(path, backed="r")
    rows_of(find_counts(backed))
    backed.file.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["dense", "csr_matrix", "csc_matrix", "unsorted", "stored_zeros", "view"])
def test_nothing_that_is_looked_at_changes(
    pbmc: AnnData, stored_as: Stored, digests: Callable[[AnnData], dict[str, str]], kind: str
) -> None:
    adata = stored_as(pbmc, kind)
    if kind != "view":
        adata.raw = pbmc.copy()
        adata.layers["counts"] = pbmc.X.copy()
    before = digests(adata)
    for chunk in find_counts(adata).chunks(64):
        chunk.counts.sort_indices()  # what a consumer might do to its chunk
        chunk.counts.data[:] = 0
    assert digests(adata) == before
    assert adata.is_view == (kind == "view")


def test_frames_come_into_memory(pbmc: AnnData, stored_as: Stored) -> None:
    assert in_memory(pbmc.var) is pbmc.var
    lazy = stored_as(pbmc, "lazy_h5ad")
    assert in_memory(lazy.var).index.tolist() == pbmc.var_names.tolist()


def test_counts_of_more_genes_in_raw_are_mentioned(pbmc: AnnData, said: list[str]) -> None:
    pbmc.raw = pbmc
    find_counts(pbmc)
    assert not said
    part = pbmc[:, :300].copy()
    assert find_counts(part).where == "X"
    assert said == ["INFO counts: raw.X holds counts of 765 genes, and X of 300. layer='raw' reads those of raw"]
    assert len(find_counts(part, layer="raw").var) == 765
    assert len(said) == 1
