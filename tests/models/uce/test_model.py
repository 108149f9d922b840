"""UCE through the public functions: official vectors, one cell one vector, several species."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray

import cfm
from cfm import models
from cfm.errors import CheckpointError, CountsError, GeneMatchError, OptionError, UnsupportedOutput
from cfm.models import Pack
from cfm.models.uce import UceModel

SHORT = {"sample_size": 40}
Official = dict[str, NDArray[Any]]


def vectors(adata: AnnData, folder: Path, **options: Any) -> NDArray[np.float32]:
    cfm.tl.embed(adata, model=folder, device="cpu", **options)
    return np.asarray(adata.obsm["X_cfm"])


def loaded(folder: Path, **options: Any) -> UceModel:
    model = models.load(folder, device="cpu", **options)
    assert isinstance(model, UceModel)
    return model


def kept(cells: AnnData, official: Official) -> NDArray[np.int64]:
    return cells.obs_names.get_indexer(official["sentences/cells_kept"])


# --- official vectors, and where ours differ on purpose


def test_official_vectors(cells: AnnData, fixtures: Path, official: Official) -> None:
    """The whole file in one call, cells included that the official code drops: their rows are zeros."""
    found = vectors(cells, fixtures, compat="official", seed=int(official["sentences/seed"]))
    rows = kept(cells, official)
    np.testing.assert_allclose(found[rows], official["embeddings/emb_official_b25"], atol=2e-6)
    assert not np.delete(found, rows, axis=0).any()


def test_padding_decides_in_the_official_code_and_not_here(cells: AnnData, fixtures: Path, official: Official) -> None:
    """Official: pads are attended to, with 1 added to their scores, so that batches of 4 give vectors that are off by
    0.088 from those of one cell at a time. Ours: those of one cell at a time, whatever the batch."""
    one, four = (official[f"embeddings/emb_official_b{n}"] for n in (1, 4))
    assert np.abs(one - four).max() == pytest.approx(0.088, abs=0.001)
    seed = int(official["sentences/seed"])
    cfm.pp.tokenize(cells, model=fixtures, compat="official", seed=seed, batch_size=1)
    # The sentences that the official generator draws, read without its mask.
    record = cells.uns["cfm"]["cfm_tokens"]
    record["options"] = {}
    for pack_tokens in (1200, 16_384):
        with cfm.settings.override(pack_tokens=pack_tokens):
            found = vectors(cells, fixtures, tokens="cfm_tokens")[kept(cells, official)]
        np.testing.assert_allclose(found, one, atol=2e-6)


def test_draws_hang_on_the_cells_before_in_the_official_code_and_not_here(cells: AnnData, fixtures: Path) -> None:
    without_first = cells[1:].copy()
    for options, same in (({"compat": "official", "filter": "none", "batch_size": 1}, False), ({}, True)):
        whole = vectors(cells, fixtures, **SHORT, **options)[1:]
        part = vectors(without_first, fixtures, **SHORT, **options)
        assert np.array_equal(whole, part) == same
        # Two draws of one cell give two vectors: cosines of 0.994 and more in the fixtures, where 1,024 genes are drawn.
        assert np.abs(whole - part).max() > 0.01 or same


def test_no_cell_is_dropped_unless_asked_for(
    cells: AnnData, fixtures: Path, official: Official, said: list[str]
) -> None:
    """Official: genes in fewer than 10 cells are left out, then cells with fewer than 25 genes. Ours: none."""
    vectors(cells, fixtures, **SHORT)
    genes = cells.obs["cfm_n_genes"].to_numpy()
    assert (genes > 0).sum() == 47, "all but the one without counts"
    vectors(cells, fixtures, filter="official", **SHORT)
    assert set(np.flatnonzero(cells.obs["cfm_n_genes"])) == set(kept(cells, official))
    assert cells.uns["cfm"]["X_cfm"]["coverage"]["n_matched"] == len(official["sentences/genes_kept"]) == 156
    assert any("6117 of 9571 genes are in fewer than 10 cells" in message for message in said)


def test_another_seed_is_another_draw(cells: AnnData, fixtures: Path, official: Official) -> None:
    """The noise of drawing has the size that it has in the official code."""
    some = cells[kept(cells, official)[:15]].copy()
    first, second = (vectors(some, fixtures, seed=seed) for seed in (0, 1))
    theirs = (official["embeddings/emb_official_b1"] * official["embeddings/emb_official_b1_seed_plus_100"])[:15].sum(1)
    ours = (first * second).sum(1)
    assert ours.max() < 1 - 1e-6
    assert np.median(1 - ours) == pytest.approx(np.median(1 - theirs), rel=0.5)


# --- one cell, one vector


@pytest.mark.filterwarnings("ignore:Setting element:anndata.ImplicitModificationWarning")
def test_form(cells: AnnData, fixtures: Path, stored_as: Callable[[AnnData, str], AnnData], form: str) -> None:
    some = cells[:12].copy()
    some.X = sp.csr_matrix(some.X)
    expected = vectors(some, fixtures, **SHORT)
    np.testing.assert_array_equal(vectors(stored_as(some, form), fixtures, **SHORT), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_cell_alone_in_any_order_of_cells_and_genes(cells: AnnData, fixtures: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    expected = vectors(cells, fixtures, **SHORT)
    order = np.random.default_rng(0).permutation(cells.n_obs)
    genes = np.random.default_rng(1).permutation(cells.n_vars)
    np.testing.assert_array_equal(vectors(cells[order].copy(), fixtures, **SHORT), expected[order])
    np.testing.assert_array_equal(vectors(cells[:, genes].copy(), fixtures, **SHORT), expected)
    for cell in (0, 7, 30):
        np.testing.assert_array_equal(vectors(cells[[cell]].copy(), fixtures, **SHORT)[0], expected[cell])


@pytest.mark.parametrize("setting", [{"chunk_cells": 7}, {"pack_tokens": 150}, {"threads": 1}, {"pack_tokens": 10**6}])
def test_chunks_packs_and_threads(cells: AnnData, fixtures: Path, setting: dict[str, int]) -> None:
    expected = vectors(cells, fixtures, **SHORT)
    with cfm.settings.override(**setting):
        np.testing.assert_array_equal(vectors(cells, fixtures, **SHORT), expected)


def test_threads_of_torch_change_rounding_alone(cells: AnnData, fixtures: Path) -> None:
    # Its matrix products split differently; the promise of equal bits is for one number of them.
    expected = vectors(cells, fixtures, **SHORT)
    torch.set_num_threads(3)
    np.testing.assert_allclose(vectors(cells, fixtures, **SHORT), expected, atol=2e-6)


def test_genes_that_came_before_leave_no_trace(cells: AnnData, copied: Path) -> None:
    """Projected proteins are kept from call to call."""
    vectors(cells[20:].copy(), copied, **SHORT)
    warm = vectors(cells[:20].copy(), copied, **SHORT)
    models.registry._load.cache_clear()
    np.testing.assert_array_equal(vectors(cells[:20].copy(), copied, **SHORT), warm)


# --- what is written


def test_vectors_have_length_1_and_genes_are_counted_once(cells: AnnData, fixtures: Path, said: list[str]) -> None:
    found = vectors(cells, fixtures)
    empty = cells.X.getnnz(axis=1) == 0
    np.testing.assert_allclose(np.linalg.norm(found[~empty], axis=1), 1, atol=1e-6)
    assert not found[empty].any()
    model = loaded(fixtures)
    columns = [i for i, name in enumerate(cells.var_names) if name.upper() in model.genes.symbols]
    expressed = cells.X[:, columns].getnnz(axis=1)
    genes = cells.obs["cfm_n_genes"].to_numpy()
    assert (genes <= expressed).all(), "a sentence has 1,024 genes, most of them several times"
    assert (genes >= 0.9 * expressed).all()
    assert any("1 of 48 cells have no gene that the model reads" in message for message in said)


def test_stored_tokens_of_the_official_mode_go_on_in_it(cells: AnnData, fixtures: Path) -> None:
    official = {"compat": "official", "batch_size": 4, **SHORT}
    expected = vectors(cells, fixtures, **official).copy()
    cfm.pp.tokenize(cells, model=fixtures, **official)
    np.testing.assert_array_equal(vectors(cells, fixtures, tokens="cfm_tokens"), expected)


def test_stored_tokens_give_the_same_vectors(cells: AnnData, fixtures: Path) -> None:
    expected = vectors(cells, fixtures, **SHORT).copy()
    genes = cells.obs["cfm_n_genes"].copy()
    cfm.pp.tokenize(cells, model=fixtures, **SHORT)
    assert cells.obsm["cfm_tokens"].shape == (48, 1536)
    np.testing.assert_array_equal(vectors(cells, fixtures, tokens="cfm_tokens", **SHORT), expected)
    assert cells.obs["cfm_n_genes"].equals(genes)
    with pytest.raises(OptionError, match="were made with sample_size=40, and sample_size=50"):
        vectors(cells, fixtures, tokens="cfm_tokens", sample_size=50)


def test_gene_vectors(cells: AnnData, fixtures: Path, official: Official) -> None:
    """Static ones are projected proteins, contextual ones what the decoder makes of the tokens of a gene."""
    cfm.tl.embed(cells, model=fixtures, genes="static", **SHORT)
    static = cells.varm["cfm_genes"]
    assert static.shape == (cells.n_vars, 32)
    tokens, projected = official["hidden/tokens"][0], official["hidden/encoder_out"][0]
    rows = dict(zip(official["sentences/genes_kept"].tolist(), official["sentences/pe_idx"].tolist(), strict=True))
    looked_at = 0
    for name, row in rows.items():
        if row in tokens:
            expected = projected[tokens == row][0]
            np.testing.assert_allclose(static[cells.var_names.get_loc(name)], expected, atol=2e-5)
            looked_at += 1
    assert looked_at > 10
    cfm.tl.embed(cells, model=fixtures, genes="contextual", **SHORT)
    contextual = cells.varm["cfm_genes"]
    assert contextual.shape == (cells.n_vars, 24)
    assert 0 < np.isfinite(contextual[:, 0]).sum() <= np.isfinite(static[:, 0]).sum()


def test_outputs_of_one_pass(cells: AnnData, fixtures: Path) -> None:
    model = loaded(fixtures, **SHORT)
    prepared = cfm.infer.prepare(cells, model, layer=None, gene_column=None, species=None, gene_table=None)
    batch = next(iter(prepared.stream))
    pack = Pack.of(batch.take(np.flatnonzero(batch.lengths)), model.device)
    both = model.forward(pack, frozenset({"cell", "token"}))
    alone = model.forward(pack, frozenset({"cell"}))["cell"]
    assert both["token"].shape == (len(pack.ids), 24)
    torch.testing.assert_close(both["cell"], alone, atol=1e-6, rtol=0)
    with pytest.raises(UnsupportedOutput, match=r"gives \['cell', 'token'\], not \['logits'\].*method predict"):
        model.forward(pack, frozenset({"logits"}))


def test_predict(fixtures: Path, official: Official) -> None:
    logits = loaded(fixtures).predict(official["hidden/official_embedding"], official["hidden/predict_tokens"])
    np.testing.assert_allclose(logits, official["hidden/predict_logits"], atol=5e-6)


def test_annotate(cells: AnnData, fixtures: Path) -> None:
    with pytest.raises(OptionError, match="comes without labelled prototypes"):
        cfm.tl.annotate(cells, model=fixtures, **SHORT)
    reference = cells[:40].copy()
    reference.obs["type"] = np.where(np.arange(40) % 2, "a", "b")
    cfm.tl.annotate(cells, model=fixtures, reference=reference, labels_key="type", n_neighbors=1, **SHORT)
    expressed = cells.obs["cfm_n_genes"].to_numpy()[:40] > 0
    assert (cells.obs["cfm_label"][:40][expressed] == reference.obs["type"][expressed]).all()


def test_int8_is_near(cells: AnnData, fixtures: Path) -> None:
    some = cells[:10].copy()
    expected = vectors(some, fixtures, **SHORT)
    found = vectors(some, fixtures, precision="int8", **SHORT)
    assert (found * expected).sum(1)[expected.any(1)].min() > 0.99


def test_command_line(cells: AnnData, fixtures: Path, tmp_path: Path) -> None:
    cells = cells[:6].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    expected = vectors(cells, fixtures, seed=3, **SHORT)
    command = [sys.executable, "-m", "cfm", "embed", tmp_path / "cells.h5ad", "-o", tmp_path / "out.h5ad", "--model", fixtures,
               "--option", "sample_size=40", "--option", "seed=3", "--no-progress"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_cfm"], expected)


# --- species


def test_mouse_cells_have_mouse_proteins(
    mouse_cells: AnnData, cells: AnnData, fixtures: Path, official: Official
) -> None:
    """species= reads the genes of that species, not orthologs, and the record and the spec say so."""
    found = vectors(
        mouse_cells, fixtures, species="mouse", compat="official", seed=int(official["sentences/mouse_seed"])
    )
    assert found.any(1).sum() == len(official["sentences/mouse_cells_kept"])
    record = mouse_cells.uns["cfm"]["X_cfm"]
    assert (record["species"], record["coverage"]["n_matched"]) == ("mouse", 150)
    cfm.pp.tokenize(mouse_cells, model=fixtures, species="mouse", **SHORT)
    model = loaded(fixtures, species="mouse")
    assert model.spec.species == model.vocabulary.species == "mouse"
    first, last = model.gene_tokens()[[0, -1]]
    tokens = mouse_cells.obsm["cfm_tokens"].data
    assert set(tokens[(tokens > 3) & (tokens < 464)]) <= set(range(first, last + 1))
    human = vectors(cells, fixtures, **SHORT)
    mouse = vectors(mouse_cells, fixtures, species="Mouse", **SHORT)
    assert np.abs(human - mouse).max() > 0.01
    by_tokens = vectors(mouse_cells, fixtures, tokens="cfm_tokens", **SHORT)  # the record knows the species
    np.testing.assert_array_equal(by_tokens, mouse)
    assert (mouse_cells.obs["cfm_n_genes"] > 0).sum() == 46, (
        "the gene of the cell with one is no gene of the mouse here"
    )


def test_symbols_of_another_species_are_noticed(
    mouse_cells: AnnData, cells: AnnData, fixtures: Path, said: list[str]
) -> None:
    """Case does not count, as in the official code, which reads mouse cells as human ones without a word."""
    mouse_cells.var_names = [name if "orf" in name.lower() else name.capitalize() for name in mouse_cells.var_names]
    vectors(mouse_cells, fixtures, **SHORT)
    assert any(message.startswith("WARNING") and "species='mouse'" in message for message in said)
    said.clear()
    vectors(cells, fixtures, species="mouse", **SHORT)
    assert any(message.startswith("WARNING") and "species='human'" in message for message in said)
    said.clear()
    vectors(cells, fixtures, **SHORT)
    assert not any("species=" in message for message in said)


def test_unknown_species(cells: AnnData, fixtures: Path) -> None:
    with pytest.raises(OptionError, match=r"species='rat': UCE was trained on human, mouse, frog.*protein_file="):
        vectors(cells, fixtures, species="rat")
    with pytest.raises(CheckpointError, match=r"has human, mouse, not zebrafish"):
        vectors(cells, fixtures, species="zebrafish")


def own_species(fixtures: Path, folder: Path) -> dict[str, Any]:
    """The mouse as a species that the model never saw."""
    table = pd.read_csv(fixtures / "species_chrom.csv")
    table = table[table["species"] == "mouse"].assign(species="vole")
    table.to_csv(folder / "vole.csv", index=False)
    proteins = fixtures / "Mus_musculus.GRCm39.gene_symbol_to_embedding_ESM2.pt"
    return {"species": "vole", "protein_file": str(proteins), "chromosomes": folder / "vole.csv", "taxon": 10053}


def test_a_species_of_your_own(
    mouse_cells: AnnData, fixtures: Path, copied: Path, rewrite: Callable[..., None], tmp_path: Path
) -> None:
    """It equals a checkpoint whose table is made as the official one for a new species: special tokens, proteins,
    chromosomes drawn with the number of the species for a seed."""
    options = own_species(fixtures, tmp_path)
    found = vectors(mouse_cells, fixtures, **options, **SHORT)
    proteins = torch.load(options["protein_file"], weights_only=True)
    n_chromosomes = pd.read_csv(options["chromosomes"])["chromosome"].nunique()
    random = torch.Generator().manual_seed(10053)

    def replace_table(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        special = tensors["pe_embedding.weight"][:4]
        width = special.shape[1]
        chromosomes = torch.randn(n_chromosomes, width, generator=random)
        tensors["pe_embedding.weight"] = torch.cat([special, torch.stack([*proteins.values()]), chromosomes])
        return tensors

    rewrite(replace_table)
    table = pd.read_csv(fixtures / "species_chrom.csv")
    table[table["species"] == "mouse"].to_csv(copied / "species_chrom.csv", index=False)
    (copied / "species_offsets.pkl").write_bytes(b"(dp0\nVmouse\np1\nI4\ns.")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "CHROM_TOKEN_OFFSET": 4 + len(proteins)}))
    np.testing.assert_array_equal(vectors(mouse_cells, copied, species="mouse", **SHORT), found)


def test_a_species_of_your_own_needs_all_of_it(mouse_cells: AnnData, fixtures: Path, tmp_path: Path) -> None:
    options = own_species(fixtures, tmp_path)
    for lacking, message in (
        ("species", "type its name, species='rat'"),
        ("chromosomes", "needs both, protein_file= and chromosomes="),
        ("protein_file", "needs both"),
    ):
        with pytest.raises(OptionError, match=message):
            vectors(mouse_cells, fixtures, **{k: v for k, v in options.items() if k != lacking})
    with pytest.raises(OptionError, match=r"chromosomes='nowhere.csv': there is no such file"):
        vectors(mouse_cells, fixtures, **{**options, "chromosomes": "nowhere.csv"})
    with pytest.raises(OptionError, match="taxon='rat': type a whole number"):
        vectors(mouse_cells, fixtures, **{**options, "taxon": "rat"})
    with pytest.raises(OptionError, match=r"no gene whose column species says 'rat'"):
        vectors(mouse_cells, fixtures, **{**options, "species": "rat"})
    torch.save({"Actb": torch.ones(7)}, tmp_path / "narrow.pt")
    with pytest.raises(OptionError, match="vectors of 7 numbers, and this model reads 16"):
        vectors(mouse_cells, fixtures, **{**options, "protein_file": tmp_path / "narrow.pt"})


# --- input that cannot work, and input that can


def test_ensembl_ids_are_mapped(cells: AnnData, fixtures: Path) -> None:
    """Official: ids match nothing, or a handful by accident. Here a table maps them."""
    known = cfm.genes.human_genes()
    expected = vectors(cells[:, [name in known for name in cells.var_names]].copy(), fixtures, **SHORT)
    by_id = cells[:, [name in known for name in cells.var_names]].copy()
    by_id.var_names = [known[name] for name in by_id.var_names]
    found = vectors(by_id, fixtures, **SHORT)
    assert by_id.uns["cfm"]["X_cfm"]["gene_identifier"] == "ensembl"
    np.testing.assert_array_equal(found, expected)


def test_ids_of_the_mouse_are_explained(cells: AnnData, fixtures: Path) -> None:
    cells.var_names = [f"ENSMUSG{i:011d}" for i in range(cells.n_vars)]
    with pytest.raises(GeneMatchError, match="mouse Ensembl ids"):
        vectors(cells, fixtures, gene_column="var_names")


def test_fractions_are_refused(cells: AnnData, fixtures: Path, log_normalise: Callable[[AnnData], None]) -> None:
    """Official: cut to whole numbers without a word, so that most of a log-normalised matrix becomes 0, 1 and 2."""
    some = cells[:40].copy()
    log_normalise(some)
    with pytest.raises(CountsError):
        vectors(some, fixtures)


def test_a_cell_with_one_gene(cells: AnnData, fixtures: Path) -> None:
    """Official: dropped; without the filter its gene is drawn 1,024 times. So it is here."""
    counts = sp.lil_matrix(cells.shape, dtype=np.float32)
    counts[0, cells.var_names.get_loc("RPL31")] = 3
    counts[1] = cells.X[1]
    cells.X = sp.csr_matrix(counts)
    found = vectors(cells, fixtures)
    assert cells.obs["cfm_n_genes"].iloc[0] == 1
    np.testing.assert_allclose(np.linalg.norm(found[:2], axis=1), 1, atol=1e-6)


def test_repeated_symbols_are_added(cells: AnnData, fixtures: Path) -> None:
    """Official: two columns are two chances to be drawn, log(1 + a) + log(1 + b). Here they are one gene, log(1 + a + b)."""
    split = cells[:5].copy()
    name = "RPL31"
    column = split.var_names.get_loc(name)
    extra = split[:, [column]].copy()
    extra.var_names = [f"{name}-1"]
    double = ad.concat([split, extra], axis=1)
    counts = double.X.tolil()
    counts[:, column] = 0
    double.X = counts.tocsr()
    np.testing.assert_array_equal(vectors(double, fixtures, **SHORT), vectors(split, fixtures, **SHORT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_size": 0}, "sample_size=0: type a whole number from 1"),
        ({"sample_size": 2000}, "sample_size=2000 and three more tokens do not fit into pad_length=1536"),
        ({"pad_length": 2000}, "pad_length=2000: the network has 1536 positions"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**40, "compat": "official"}, "seeds are below"),
        ({"compat": "oficial"}, "compat='oficial' is unknown"),
        ({"filter": True}, "filter=True is unknown"),
        ({"batch_size": 4}, "batch_size= goes with compat='official'"),
        ({"taxon": 10116}, "taxon= goes with protein_file= and chromosomes="),
        ({"batch_size": 0.5, "compat": "official"}, "batch_size=0.5"),
        ({"heads": 5}, "heads=5 does not divide vectors of 32"),
        ({"weights": "x.torch"}, r"weights='x.torch' is no file of weights.*tiny_model\.torch"),
        ({"head": 4}, "There is no option head=.*Did you mean heads="),
    ],
)
def test_options_that_cannot_be(cells: AnnData, fixtures: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        vectors(cells, fixtures, **options)


def test_official_batches_end_where_chunks_do(cells: AnnData, fixtures: Path) -> None:
    with (
        cfm.settings.override(chunk_cells=10),
        pytest.raises(OptionError, match=r"a batch does not end where a chunk of 10 cells does\. Set cfm\.settings"),
    ):
        vectors(cells, fixtures, compat="official", filter="none", batch_size=4, **SHORT)


# --- what is read of the files


def test_only_the_rows_in_use_are_read(cells: AnnData, copied: Path) -> None:
    model = loaded(copied, **SHORT)
    assert model.vectors.n_read == 0
    vectors(cells, copied, **SHORT)
    tokens = cells.copy()
    cfm.pp.tokenize(tokens, model=copied, **SHORT)
    assert model.vectors.n_read == len(np.unique(tokens.obsm["cfm_tokens"].data)) < len(model.table)
