from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cfm._core.errors import CountsError
from cfm.counts import Chunk, CountSource, find_counts, reading

Stored = Callable[[AnnData, str], AnnData]


def source_of(matrix: object, n_cells: int) -> CountSource:
    return CountSource("X", AnnData(np.zeros((1, 765))).var, n_cells, reading.row_reader(matrix))


@pytest.mark.parametrize("chunk_cells", [1, 64, 699, 700, 5000])
def test_chunks_are_all_cells_in_file_order(pbmc: AnnData, chunk_cells: int) -> None:
    chunks = list(source_of(pbmc.X, 700).chunks(chunk_cells))
    assert [chunk.start for chunk in chunks] == list(range(0, 700, chunk_cells))
    assert all(isinstance(chunk, Chunk) and chunk.counts.shape[0] <= chunk_cells for chunk in chunks)
    assert (sp.vstack([chunk.counts for chunk in chunks]) != pbmc.X).nnz == 0


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("dense", [True, False])
def test_chunks_keep_the_dtype(pbmc: AnnData, dtype: str, dense: bool) -> None:
    matrix = pbmc.X.astype(dtype)
    source = source_of(matrix.toarray() if dense else matrix, 700)
    assert source.sample().is_counts
    chunk = next(source.chunks(100))
    assert chunk.counts.dtype == dtype
    np.testing.assert_array_equal(chunk.counts.toarray(), matrix[:100].toarray())


def test_each_chunk_is_read_when_its_turn_comes(pbmc: AnnData) -> None:
    """A reader that notes what it is asked for, and reads: one range after the other, each once, none wider."""
    asked: list[tuple[int, int]] = []
    read = reading.row_reader(pbmc.X)

    def noting(start: int, stop: int) -> reading.CSR:
        asked.append((start, stop))
        return read(start, stop)

    chunks = CountSource("X", pbmc.var, 700, noting).chunks(300)
    assert asked == []
    next(chunks)
    assert asked == [(0, 300)]
    list(chunks)
    assert asked == [(0, 300), (300, 600), (600, 700)]


# --- the sample


def test_a_sample_is_spread_over_the_file_and_small(pbmc: AnnData) -> None:
    asked: list[tuple[int, int]] = []
    whole = sp.vstack([pbmc.X] * 10, format="csr")
    read = reading.row_reader(whole)

    def noting(start: int, stop: int) -> reading.CSR:
        asked.append((start, stop))
        return read(start, stop)

    evidence = CountSource("X", pbmc.var, 7000, noting).sample()
    assert sorted(asked) == [(0, 64), (2312, 2376), (4624, 4688), (6936, 7000)]
    assert asked[-1] == (0, 64)  # what is read last may be held, and the stream begins there
    assert evidence.n_values == sum(whole[start:stop].nnz for start, stop in asked)


@pytest.mark.parametrize("n_cells", [1, 63, 64, 65, 255, 256])
def test_small_data_are_looked_at_whole_and_once(pbmc: AnnData, n_cells: int) -> None:
    evidence = source_of(pbmc.X, n_cells).sample()
    assert evidence.n_values == pbmc.X[:n_cells].nnz


def test_a_sample_of_no_cells_reads_nothing() -> None:
    def refuse(start: int, stop: int) -> reading.CSR:
        raise AssertionError("nothing to read")

    assert CountSource("X", AnnData(np.zeros((1, 3))).var, 0, refuse).sample().n_values == 0


# --- counts that turn out not to be


def spoilt(pbmc: AnnData, cells: list[int], value: float) -> AnnData:
    """The real cells, some of them without counts where no sample looks."""
    matrix = pbmc.X.toarray()
    matrix[np.ix_(cells, [0, 5, 9])] = value
    pbmc.X = sp.csr_matrix(matrix)
    return pbmc


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_matrix", "dense", "unsorted", "backed_csr", "lazy_h5ad"])
@pytest.mark.parametrize(
    ("value", "looks"),
    [
        (0.25, r"minimum 0\.25, maximum \d+ \(normalised, imputed or corrected\)"),
        (-1.0, r"minimum -1, maximum \d+ \(negative whole numbers: no counts\)"),
        (np.nan, r"minimum 1, maximum \d+, 6 NaN or infinite \(damaged: counts have neither\)"),
    ],
)
def test_a_late_chunk_without_counts_names_the_cells(
    pbmc: AnnData, stored_as: Stored, kind: str, value: float, looks: str
) -> None:
    source = find_counts(stored_as(spoilt(pbmc, [401, 403], value), kind))
    stream = source.chunks(100)
    assert [next(stream).start for _ in range(4)] == [0, 100, 200, 300]
    message = (
        r"X began as counts, but in cells 400 to 499, 2 hold other values \(the first is cell 401\): "
        r"(less than )?\d\.\d% of [\d,]+ stored values are not whole numbers, " + looks
    )
    with pytest.raises(CountsError, match=message) as caught:
        next(stream)
    assert str(caught.value).endswith(
        "Name the layer that holds counts for all cells with layer=, or drop these cells."
    )


def test_after_dropping_the_named_cells_the_stream_runs(pbmc: AnnData) -> None:
    adata = spoilt(pbmc, [401, 403], 0.5)
    kept = adata[~np.isin(np.arange(700), [401, 403])]
    assert sum(chunk.counts.shape[0] for chunk in find_counts(kept).chunks(100)) == 698


# --- memory


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 14,000 cells (the real ones twenty times) in several forms of storage."""
    from cfm.datasets import pbmc68k

    folder = tmp_path_factory.mktemp("many")
    whole = sp.vstack([pbmc68k().X] * 20, format="csr")
    AnnData(whole).write_h5ad(folder / "csr.h5ad")
    AnnData(whole.tocsc()).write_h5ad(folder / "csc.h5ad")
    AnnData(whole.toarray()).write_h5ad(folder / "dense.h5ad")
    AnnData(whole).write_zarr(folder / "csr.zarr")
    return folder


def opened(folder: Path, kind: str) -> AnnData:
    name, _, how = kind.partition(" ")
    if how == "lazy":
        return ad.experimental.read_lazy(folder / name)
    adata = ad.read_h5ad(folder / name, backed="r")
    if how == "rows":
        return adata[1000:13_000]
    return adata[:, 5:] if how == "columns" else adata


@pytest.mark.parametrize(
    "kind",
    [
        "csr.h5ad",
        "csr.h5ad rows",
        "csr.h5ad columns",
        "csr.h5ad lazy",
        "csr.zarr lazy",
        "csc.h5ad",
        "csc.h5ad rows",
        "dense.h5ad",
        "dense.h5ad columns",
        "dense.h5ad lazy",
    ],
)
def test_streaming_a_file_never_holds_the_matrix(many: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the file were so large that it has to be read in a few passes where it is stored by column.
    monkeypatch.setattr(reading, "HELD_VALUES", 400_000)
    adata = opened(many, kind)
    next(find_counts(adata).chunks(256))  # what is imported and cached the first time
    whole = (14_000 * 765 * 4) if "dense" in kind else 20 * 174_400 * 8
    tracemalloc.start()
    source = find_counts(adata)
    cells = stored = 0
    for chunk in source.chunks(256):
        cells, stored = cells + chunk.counts.shape[0], stored + chunk.counts.nnz
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert cells == adata.n_obs
    assert stored > 20 * 140_000
    assert peak < whole * (0.5 if "csc" in kind else 0.3)


def test_an_index_beyond_the_genes_is_damage(pbmc: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    pbmc.write_h5ad(path)
    with h5py.File(path, "r+") as handle:
        handle["X/indices"][5] = pbmc.n_vars
    source = find_counts(ad.read_h5ad(path, backed="r"))
    with pytest.raises(CountsError, match=r"X is damaged: cells 0 to 699 have values in columns beyond the 765 genes"):
        list(source.chunks(1000))
