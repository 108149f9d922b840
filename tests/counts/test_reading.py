from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from cfm._core.errors import CountsError
from cfm.counts import find_counts, reading
from cfm.counts.reading import HeldRows, as_csr, row_reader, view_reader

Stored = Callable[[AnnData, str], AnnData]


# --- one block


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csr_array, sp.csc_matrix, sp.csc_array, sp.coo_array, np.asarray])
def test_any_block_becomes_csr(pbmc: AnnData, make: Callable[[Any], Any]) -> None:
    dense = pbmc.X[:50].toarray()
    rows = as_csr(make(dense))
    assert rows.format == "csr"
    np.testing.assert_array_equal(rows.toarray(), dense)


def test_csr_rows_are_not_copied(pbmc: AnnData) -> None:
    assert as_csr(pbmc.X) is pbmc.X


@pytest.mark.parametrize(("dtype", "kept"), [("float16", "float32"), (">f4", "float32"), (">u2", "uint16")])
def test_dtypes_that_scipy_lacks_are_converted(pbmc: AnnData, dtype: str, kept: str) -> None:
    dense = pbmc.X[:50].toarray()
    rows = as_csr(dense.astype(dtype))
    assert rows.dtype == np.dtype(kept)
    np.testing.assert_array_equal(rows.toarray(), dense)


@pytest.mark.parametrize("dtype", ["complex64", "object", "U3"])
def test_what_cannot_be_counts_is_refused(dtype: str) -> None:
    with pytest.raises(CountsError, match=r"A matrix of dtype .* holds no counts. Convert it"):
        as_csr(np.ones((2, 2)).astype(dtype))


def test_nan_survives_the_way_to_csr() -> None:
    assert np.isnan(as_csr(np.array([[0, np.nan]])).data).all()


# --- rows of a matrix


@pytest.mark.parametrize("by", ["csr", "csc"])
@pytest.mark.parametrize("arrays", [True, False])
def test_sparse_groups_of_hdf5_and_zarr(pbmc: AnnData, tmp_path: Path, by: str, arrays: bool) -> None:
    """As members of an object that is otherwise in memory."""
    matrix = pbmc.X.asformat(by)
    file, store = h5py.File(tmp_path / "a.h5", "w"), zarr.open_group(tmp_path / "a.zarr", mode="w")
    for group in (file, store):
        ad.io.write_elem(group, "x", matrix)
        with ad.settings.override(use_sparse_array_on_read=arrays):
            adata = AnnData(ad.io.sparse_dataset(group["x"]), obs=pbmc.obs, var=pbmc.var)
            rows = find_counts(adata).read(10, 99)
        assert isinstance(rows, sp.csr_array if arrays else sp.csr_matrix)
        assert (rows != pbmc.X[10:99]).nnz == 0
    file.close()


def test_dense_arrays_of_hdf5_and_zarr(pbmc: AnnData, tmp_path: Path) -> None:
    dense = pbmc.X.toarray()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=dense, chunks=(64, 100), compression="gzip")
        np.testing.assert_array_equal(row_reader(file["x"])(60, 200).toarray(), dense[60:200])
    stored = zarr.create_array(tmp_path / "a.zarr", data=dense, chunks=(64, 100))
    np.testing.assert_array_equal(row_reader(stored)(60, 200).toarray(), dense[60:200])


def test_rows_of_a_dask_array_of_any_blocks(pbmc: AnnData) -> None:
    dense = pbmc.X.toarray()
    for make in (np.asarray, sp.csr_matrix, sp.csr_array, sp.csc_matrix, sp.csc_array):
        for chunks in ((100, -1), (333, 200), (-1, 100), ((0, 350, 0, 350), (765,))):
            blocks = da.from_array(dense, chunks=chunks).map_blocks(make)
            rows = row_reader(blocks)(90, 360)
            assert rows.format == "csr"
            np.testing.assert_array_equal(rows.toarray(), dense[90:360])


# --- storage by column


@pytest.mark.parametrize("kind", ["csc_matrix", "csc_array", "backed_csc"])
@pytest.mark.parametrize("held", [2**25, 20_000, 2_000])
def test_rows_stored_by_column_come_in_passes(
    pbmc: AnnData, stored_as: Stored, monkeypatch: pytest.MonkeyPatch, kind: str, held: int
) -> None:
    monkeypatch.setattr(reading, "HELD_VALUES", held)
    few = pbmc[:60].copy()
    read = row_reader(stored_as(few, kind).X)
    for start, stop in ((0, 60), (0, 7), (7, 50), (59, 60), (0, 1)):
        np.testing.assert_array_equal(read(start, stop).toarray(), few.X[start:stop].toarray())


def test_passes_over_a_file_by_column_are_announced_once(
    pbmc: AnnData, stored_as: Stored, monkeypatch: pytest.MonkeyPatch, said: list[str], tmp_path: Path
) -> None:
    adata = stored_as(pbmc, "backed_csc")
    list(find_counts(adata).chunks(64))
    assert said == []  # one pass is no reason to speak
    monkeypatch.setattr(reading, "HELD_VALUES", pbmc.X.nnz // 3)
    list(find_counts(adata).chunks(64))
    assert len(said) == 1
    assert said[0].startswith(
        "INFO the counts are stored by column (CSC), and reading cells takes 4 passes over the file"
    )
    assert "Convert once: adata = adata.to_memory(); adata.X = adata.X.tocsr(); adata.write_h5ad(" in said[0]
    adata = adata.to_memory()  # the advice
    adata.X = adata.X.tocsr()
    adata.write_h5ad(tmp_path / "by_row.h5ad")
    list(find_counts(ad.read_h5ad(tmp_path / "by_row.h5ad", backed="r")).chunks(64))
    assert len(said) == 1


@pytest.mark.parametrize(("cells", "genes"), [(0, 765), (5, 0)])
def test_no_cells_and_no_genes_by_column(pbmc: AnnData, stored_as: Stored, cells: int, genes: int) -> None:
    read = row_reader(stored_as(pbmc[:cells, :genes].copy(), "backed_csc").X)
    assert read(0, cells).shape == (cells, genes)


# --- blocks of dask


def counted(dense: np.ndarray, rows: int) -> tuple[da.Array, list[int]]:
    """A dask array of sparse blocks, and the first cell of each block whenever it is computed."""
    computed: list[int] = []
    lock = Lock()

    def make(block: np.ndarray, block_info: Any = None) -> sp.csr_matrix:
        if block_info:
            with lock:
                computed.append(block_info[0]["array-location"][0][0])
        return sp.csr_matrix(block)

    return da.from_array(dense, chunks=(rows, -1)).map_blocks(
        make, meta=sp.csr_matrix((0, 0), dtype=dense.dtype)
    ), computed


@pytest.mark.parametrize("chunk_cells", [10, 64, 150, 700])
def test_a_dask_block_is_computed_once_whatever_the_chunks(pbmc: AnnData, chunk_cells: int) -> None:
    array, computed = counted(pbmc.X.toarray(), 100)
    read = row_reader(array)
    parts = [read(start, min(start + chunk_cells, 700)) for start in range(0, 700, chunk_cells)]
    assert (sp.vstack(parts) != pbmc.X).nnz == 0
    assert computed == [0, 100, 200, 300, 400, 500, 600]


def test_the_sample_leaves_the_first_block_for_the_stream(pbmc: AnnData) -> None:
    array, computed = counted(pbmc.X.toarray(), 100)
    source = find_counts(AnnData(array, var=pbmc.var))
    assert len(computed) <= 5
    assert computed[-1] == 0
    computed.clear()
    list(source.chunks(64))
    assert computed == [100, 200, 300, 400, 500, 600]


def test_a_small_dask_array_is_computed_once_for_sample_and_stream(pbmc: AnnData) -> None:
    array, computed = counted(pbmc.X.toarray()[:200], 200)
    list(find_counts(AnnData(array, var=pbmc.var)).chunks(64))
    assert computed == [0]


def test_dask_blocks_too_large_to_hold_are_cut_and_announced(
    pbmc: AnnData, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(reading, "HELD_ENTRIES", 765 * 200)
    whole = da.from_array(pbmc.X.toarray(), chunks=(700, -1))
    read = row_reader(whole)
    np.testing.assert_array_equal(read(150, 450).toarray(), pbmc.X[150:450].toarray())
    assert said == [
        "INFO dask blocks of 700 cells are too large to hold and are computed in parts. "
        "Smaller blocks are faster: adata.X = adata.X.rechunk((1000, -1))"
    ]
    row_reader(whole.rechunk((100, -1)))(150, 450)
    assert len(said) == 1


# --- held rows and views, against plain indexing


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    n = draw(st.integers(1, 40))
    inner = draw(st.sets(st.integers(1, max(n - 1, 1)), max_size=6))
    edges = sorted({0, n} | {edge for edge in inner if edge < n})
    bounds = st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda b: b[0] < b[1])
    return edges, draw(st.lists(bounds, min_size=1, max_size=8))


@settings(max_examples=50)
@given(cuts())
def test_held_rows_are_the_rows_whatever_the_groups(case: tuple[list[int], list[tuple[int, int]]]) -> None:
    edges, ranges = case
    matrix = sp.csr_array(np.arange(edges[-1] * 3).reshape(-1, 3) % 7)
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> reading.CSR:
        asked.append((start, stop))
        return matrix[start:stop]

    held = HeldRows(read, edges)
    for start, stop in ranges:
        np.testing.assert_array_equal(held(start, stop).toarray(), matrix[start:stop].toarray())
    groups = list(zip(edges[:-1], edges[1:], strict=True))
    assert set(asked) <= set(groups)
    assert all(one != next_ for one, next_ in zip(asked, asked[1:], strict=False))


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=60),
    st.lists(st.integers(0, 11), max_size=12) | st.just(list(range(12))),
    st.integers(1, 20),
)
def test_rows_of_a_view_are_those_of_plain_indexing(rows: list[int], columns: list[int], chunk: int) -> None:
    dense = np.random.default_rng(0).poisson(0.7, (100, 12))
    expected = dense[rows][:, columns]
    at, genes = np.array(rows, np.intp), np.array(columns, np.intp)
    for matrix in (dense, sp.csr_matrix(dense), sp.csc_array(dense), _Rows(dense)):
        read = view_reader(matrix, at, genes)
        parts = [read(start, min(start + chunk, len(rows))) for start in range(0, len(rows), chunk)]
        np.testing.assert_array_equal(np.vstack([part.toarray() for part in parts]), expected)


class _Rows:
    """A storage that gives slices of rows and nothing else, as the least of them do."""

    def __init__(self, dense: np.ndarray) -> None:
        self._dense, self.shape = dense, dense.shape
        self.read: list[slice] = []

    def __getitem__(self, index: slice) -> np.ndarray:
        assert isinstance(index, slice)
        self.read.append(index)
        return self._dense[index]


def test_scattered_rows_of_a_view_are_read_in_runs() -> None:
    storage = _Rows(np.eye(1000, dtype=np.float32))
    rows = np.array([900, 3, 1, 2, 901, 10, 500])
    block = view_reader(storage, rows, np.arange(1000))(0, 7)
    np.testing.assert_array_equal(block.toarray(), np.eye(1000)[rows])
    assert storage.read == [slice(1, 11), slice(500, 501), slice(900, 902)]
