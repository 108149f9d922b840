"""Reading folders of UCE: what has to be there, what is refused, and what is never read."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from safetensors.torch import save_file
from torch import Tensor

import cfm
from cfm import models
from cfm.errors import CheckpointError, OptionError
from cfm.models.registry import entries
from cfm.models.uce import UceModel
from cfm.models.uce.gene_lists import ARCHIVE, list_name

WEIGHTS = "tiny_model.torch"
HUMAN = "Homo_sapiens.GRCh38.gene_symbol_to_embedding_ESM2.pt"
Rewrite = Callable[[Callable[[dict[str, Tensor]], dict[str, Tensor]]], None]


def load(folder: Path, **options: object) -> UceModel:
    found = models.load(folder, device="cpu", **options)
    assert isinstance(found, UceModel)
    return found


def test_every_tensor_is_loaded(fixtures: Path) -> None:
    model = load(fixtures)
    stored = torch.load(fixtures / WEIGHTS, weights_only=True)
    assert set(model.report.matched) == set(stored)
    assert str(model.report) == f"{len(stored)} of {len(stored)} tensors matched, none left over"
    ours = model.module.state_dict()
    third = stored["transformer_encoder.layers.1.self_attn.in_proj_weight"].chunk(3)
    for part, expected in zip(("query", "key", "value"), third, strict=True):
        assert torch.equal(ours[f"layers.1.{part}.weight"], expected)
    assert torch.equal(ours["decoder.out.bias"], stored["decoder.3.bias"])
    assert torch.equal(ours["expressed.blocks.2.norm.weight"], stored["binary_decoder.2.1.weight"])
    assert sum(t.numel() for t in ours.values()) == sum(
        t.numel() for name, t in stored.items() if name != "pe_embedding.weight"
    )
    assert not model.module.training
    spec = model.spec
    assert (spec.family, spec.dim, spec.max_tokens, spec.species) == ("uce", 24, 1536, "human")
    assert spec.version == "3 layers of 32"


def test_safetensors_and_other_names(copied: Path) -> None:
    expected = load(copied).module.state_dict()
    tensors = {name: t.clone() for name, t in torch.load(copied / WEIGHTS, weights_only=True).items()}
    save_file(tensors, copied / "tiny_model.safetensors")
    assert load(copied).report.matched, "the same weights in two formats are no two models"
    (copied / WEIGHTS).rename(copied / "33l_8ep_1024t_1280.torch")
    (copied / "tiny_model.safetensors").unlink()
    found = load(copied).module.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    save_file(tensors, copied / "other.safetensors")
    (copied / "33l_8ep_1024t_1280.torch").unlink()
    found = load(copied).module.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_two_models_in_one_folder(copied: Path) -> None:
    """As in the folder that the official code fills."""
    shutil.copy(copied / WEIGHTS, copied / "4layer_model.torch")
    with pytest.raises(
        CheckpointError, match=r"4layer_model.torch and tiny_model.torch\. Type weights='4layer_model.torch'"
    ):
        load(copied)
    assert load(copied, weights="4layer_model.torch").report.matched


def test_the_table_of_tokens_is_not_needed(copied: Path) -> None:
    (copied / "all_tokens.torch").write_bytes(b"never read")
    assert load(copied).report.matched
    (copied / "all_tokens.torch").unlink()
    assert load(copied).report.matched


@pytest.mark.parametrize("name", [WEIGHTS, "species_chrom.csv", "species_offsets.pkl", HUMAN])
def test_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    (copied / "all_tokens.torch").unlink()
    with pytest.raises(CheckpointError) as raised:
        load(copied)
    message = str(raised.value)
    if name == WEIGHTS:
        assert "no known family" in message or "has no weights" in message
    elif name == HUMAN:
        assert "order of the genes of human was not found" in message
        assert "human_genes.txt" in message
        assert load(copied, species="mouse").spec.species == "mouse", "other species do not need it"
    else:
        assert f"has no {name}, which a UCE folder needs" in message


def test_files_of_species_may_lie_above(copied: Path) -> None:
    """The layout of the cache: two models share them."""
    expected = load(copied).gene_tokens()
    below = copied / "4layer"
    below.mkdir()
    for name in (WEIGHTS, "config.json"):
        (copied / name).rename(below / name)
    found = models.load(below, device="cpu")
    assert isinstance(found, UceModel)
    np.testing.assert_array_equal(found.gene_tokens(), expected)


# --- the order of the genes


def test_a_list_of_symbols_takes_the_place_of_vectors(copied: Path) -> None:
    expected = load(copied)
    symbols = list(torch.load(copied / HUMAN, weights_only=True))
    (copied / HUMAN).unlink()
    (copied / list_name("human")).write_text("\n".join(symbols))
    found = load(copied)
    assert found.genes.symbols == expected.genes.symbols
    np.testing.assert_array_equal(found.genes.rows, expected.genes.rows)


def test_vectors_of_proteins_are_not_read(copied: Path) -> None:
    """A file whose vectors would take 4 GB, and holds none of them."""
    symbols = list(torch.load(copied / HUMAN, weights_only=True))
    with torch.serialization.skip_data():
        torch.save({s: torch.empty(len(symbols) * 11_000) for s in symbols[:1]} | {s: torch.empty(1) for s in symbols[1:]},
                   copied / HUMAN)  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(load(copied).genes.symbols) == len(symbols)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_lists_are_taken_out_of_the_archive_once(copied: Path, said: list[str]) -> None:
    expected = load(copied).genes.symbols
    with tarfile.open(copied / ARCHIVE, "w:gz") as archive:
        for path in sorted(copied.glob("*ESM2.pt")):
            archive.add(path, f"protein_embeddings/{path.name}")
            path.unlink()
        archive.add(copied / "config.json", "../../escape.txt")
    assert load(copied).genes.symbols == expected
    assert not (copied.parent.parent / "escape.txt").exists()
    assert any("this takes some minutes, once" in message for message in said)
    assert (copied / list_name("human")).is_file()
    assert (copied / list_name("mouse")).is_file()
    (copied / ARCHIVE).unlink()
    assert load(copied).genes.symbols == expected
    assert load(copied, species="mouse").spec.species == "mouse"


def test_half_an_archive(copied: Path) -> None:
    with tarfile.open(copied / ARCHIVE, "w:gz") as archive:
        archive.add(copied / HUMAN)
    data = (copied / ARCHIVE).read_bytes()
    (copied / ARCHIVE).write_bytes(data[: len(data) // 2])
    (copied / HUMAN).unlink()
    with pytest.raises(CheckpointError, match=r"protein_embeddings\.tar\.gz .* is no intact archive"):
        load(copied)


def test_symbols_that_become_one(copied: Path) -> None:
    """The official code goes by symbols in upper case: the first place counts."""
    symbols = list(torch.load(copied / HUMAN, weights_only=True))
    (copied / list_name("human")).write_text("\n".join([*symbols[:5], symbols[2].lower(), *symbols[5:]]))
    assert load(copied).genes.symbols[:8] == tuple(symbols[:8])


@pytest.mark.parametrize("change", ["shorter", "longer"])
def test_a_list_of_another_version(copied: Path, change: str) -> None:
    symbols = list(torch.load(copied / HUMAN, weights_only=True))
    symbols = symbols[:-1] if change == "shorter" else [*symbols, "NEW1"]
    (copied / list_name("human")).write_text("\n".join(symbols))
    with pytest.raises(CheckpointError, match=rf"rows 4 to 303 of 541.*and {len(symbols)} genes are listed"):
        load(copied)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"two words\n"])
def test_a_damaged_list(copied: Path, content: bytes) -> None:
    (copied / list_name("human")).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"human_genes\.txt"):
        load(copied)


# --- files that do not go together


def test_genes_without_a_place_are_no_genes_of_the_model(copied: Path, cells: AnnData) -> None:
    """Official: a KeyError. Here they are lost, and the coverage says so."""
    table = pd.read_csv(copied / "species_chrom.csv")
    table[table["gene_symbol"] != "RPL37"].to_csv(copied / "species_chrom.csv", index=False)
    model = load(copied)
    assert len(model.vocabulary) == 299
    cfm.tl.embed(cells, model=copied, sample_size=20)
    assert cells.uns["cfm"]["X_cfm"]["coverage"]["n_matched"] == 269


def test_a_gene_with_two_places_has_the_first(copied: Path) -> None:
    """Official: its arrays get out of step, and all genes behind it other chromosomes."""
    table = pd.read_csv(copied / "species_chrom.csv")
    again = table[table["gene_symbol"] == "RPL37"].assign(chromosome="2", start=5)
    pd.concat([table, again]).to_csv(copied / "species_chrom.csv", index=False)
    model = load(copied)
    assert model.genes.starts[model.genes.symbols.index("RPL37")] == 2800009


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="start"), r"lacks the columns \['start'\]"),
        (lambda t: t.assign(start="x"), "460 of 460 genes whose start is no whole number"),
        (lambda t: t.assign(start=t["start"] + 0.5), "460 of 460 genes whose start"),
        (lambda t: t[t["species"] == "human"], r"Chromosomes begin at row 464 by the settings.*at row \d+"),
    ],
)
def test_a_table_of_places_that_cannot_be(
    copied: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    change(pd.read_csv(copied / "species_chrom.csv")).to_csv(copied / "species_chrom.csv", index=False)
    with pytest.raises(CheckpointError, match=message):
        load(copied)


def test_heads_are_told_or_guessed_aloud(copied: Path, said: list[str]) -> None:
    assert load(copied).module.shape.heads == 4
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"nhead": 5}))
    with pytest.raises(CheckpointError, match="nhead = 5, which does not divide 32"):
        load(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is no JSON"):
        load(copied)
    (copied / "config.json").unlink()
    assert load(copied, heads=8).module.shape.heads == 8
    assert not [message for message in said if message.startswith("WARNING")]
    assert load(copied).module.shape.heads == 4
    assert any("taking 4, each 8 wide, which is a guess for vectors of 32" in message for message in said)


def test_missing_left_over_and_misshapen_tensors_are_named(copied: Path, rewrite: Rewrite) -> None:
    def damage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        del tensors["transformer_encoder.layers.1.norm2.bias"]
        tensors["surprise.weight"] = torch.ones(2)
        tensors["decoder.1.1.bias"] = torch.ones(3)
        return tensors

    rewrite(damage)
    with pytest.raises(CheckpointError) as raised:
        load(copied)
    message = str(raised.value)
    assert "Missing: ['transformer_encoder.layers.1.norm2.bias']" in message
    assert "left over: ['surprise.weight']" in message
    assert "decoder.1.1.bias: (3,), not (24,)" in message


@pytest.mark.parametrize(
    "name", ["pe_embedding.weight", "encoder.0.weight", "pos_encoder.pe", "binary_decoder.3.weight"]
)
def test_what_a_network_cannot_do_without(copied: Path, rewrite: Rewrite, name: str) -> None:
    rewrite(lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(CheckpointError, match=f"it has no {name}"):
        load(copied)


def test_a_table_of_another_width(copied: Path, rewrite: Rewrite) -> None:
    rewrite(lambda tensors: tensors | {"pe_embedding.weight": torch.ones(541, 9)})
    with pytest.raises(CheckpointError, match=r"pe_embedding.weight of \(541, 9\).*16 inputs"):
        load(copied)


def test_weights_of_another_family(copied: Path) -> None:
    torch.save({"bert.embeddings.word_embeddings.weight": torch.ones(2, 2)}, copied / WEIGHTS)
    with pytest.raises(CheckpointError, match="look like geneformer, not like uce"):
        load(copied)


def test_its_weights_without_the_other_files_are_recognised(fixtures: Path, tmp_path: Path) -> None:
    shutil.copy(fixtures / WEIGHTS, tmp_path / "model.torch")
    with pytest.raises(CheckpointError, match=r"has no species_chrom\.csv, which a UCE folder needs"):
        load(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, HUMAN, "species_offsets.pkl"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_half_a_download(copied: Path, name: str, kept: float) -> None:
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load(copied)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", [WEIGHTS, HUMAN, "species_offsets.pkl"])
@pytest.mark.parametrize("packed", [True, False])
def test_code_in_a_pickle_is_refused(copied: Path, bomb: tuple[bytes, Path], name: str, packed: bool) -> None:
    data, created = bomb

    class Smuggled:
        def __reduce__(self) -> tuple[object, ...]:
            return pickle.loads, (data,)

    if packed:
        torch.save({"pe_embedding.weight": Smuggled()}, copied / name)
    else:
        (copied / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load(copied)
    assert not created.exists()


@pytest.mark.parametrize(
    "offsets", [{}, [4, 304], {"human": -4}, {"human": 4.0}, {"human": "4"}, {"human": True}, {4: 4}]
)
def test_offsets_that_are_none(copied: Path, offsets: object) -> None:
    (copied / "species_offsets.pkl").write_bytes(pickle.dumps(offsets))
    with pytest.raises(CheckpointError, match=r"species_offsets\.pkl"):
        load(copied)


def test_a_protein_file_that_holds_something_else(copied: Path) -> None:
    torch.save({"A": torch.ones(3, 3)}, copied / HUMAN)
    with pytest.raises(CheckpointError, match="holds no vectors of proteins by symbol"):
        load(copied)


# --- the published size


def test_a_table_of_published_size_is_not_read(copied: Path, cells: AnnData) -> None:
    """3 GB of protein vectors, of which a cell needs a few hundred: memory does not grow with the table."""
    code = """
import resource, sys, anndata, torch
import cfm
cfm.settings.progress, cfm.settings.verbosity = False, "error"
torch.set_num_threads(1)
adata = anndata.read_h5ad(sys.argv[1])[:8].copy()
for folder in sys.argv[2:]:
    cfm.tl.embed(adata, model=folder, sample_size=30)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    cells.write_h5ad(copied.parent / "cells.h5ad")
    width, rows = 5120, 145_469
    tensors = {name: t.clone() for name, t in torch.load(copied / WEIGHTS, weights_only=True).items()}
    for name in ("encoder.0.weight", "gene_embedding_layer.0.weight"):
        tensors[name] = torch.full((32, width), 0.01)
    (copied / "config.json").write_text(json.dumps({"nhead": 4}))
    large = Path(shutil.copytree(copied, copied.parent / "large"))
    (large / "species_offsets.pkl").write_bytes(pickle.dumps({"human": 4, "mouse": 304, "pig": 464}))
    for folder, n in ((copied, 541), (large, rows)):
        with torch.serialization.skip_data():
            torch.save(tensors | {"pe_embedding.weight": torch.empty(n, width)}, folder / WEIGHTS)
        fill(folder / WEIGHTS, tensors)
    assert (large / WEIGHTS).stat().st_size > 2.9e9
    command = [sys.executable, "-c", code, copied.parent / "cells.h5ad", copied, large]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    small, all_rows = map(int, done.stdout.split()[-2:])
    assert all_rows - small < 60, (small, all_rows)


def fill(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors into a file whose data was left out; the table stays a hole in the file."""
    import mmap

    before = torch.serialization.get_default_mmap_options()
    torch.serialization.set_default_mmap_options(mmap.MAP_SHARED)
    try:
        stored = torch.load(path, mmap=True, weights_only=True)
        for name, tensor in tensors.items():
            if name != "pe_embedding.weight":
                stored[name].copy_(tensor)
    finally:
        torch.serialization.set_default_mmap_options(before)


# --- the registry


@pytest.mark.parametrize("name", ["uce-4l", "uce-33l"])
def test_registry(name: str, tmp_path: Path) -> None:
    """The archive of proteins is needed until the lists are there, and the table of tokens never."""
    entry = entries()[name]
    assert (entry.family, entry.licence) == ("uce", "CC-BY-4.0 (code MIT)")
    assert "all_tokens.torch" not in {file.name for file in entry.files}
    lacking = {file.name for file in entry.lacking(tmp_path, content=False)}
    assert lacking == {entry.files[0].name, "species_chrom.csv", "species_offsets.pkl", ARCHIVE}
    (tmp_path / "uce").mkdir()
    (tmp_path / "uce" / list_name("human")).touch()
    assert ARCHIVE not in {file.name for file in entry.lacking(tmp_path, content=False)}
    weights = entry.files[0]
    assert entry.url_of(weights) == f"https://ndownloader.figshare.com/files/{weights.address}"
    (tmp_path / "wrong").write_bytes(b"x")
    assert "bytes, not" in str(weights.problem(tmp_path / "wrong"))


def test_a_checksum_of_the_other_kind(tmp_path: Path) -> None:
    from cfm.models.entry import ModelFile

    (tmp_path / "a").write_bytes(b"abc")
    assert ModelFile("a", md5="900150983cd24fb0d6963f7d28e17f72").problem(tmp_path / "a") is None
    wrong = ModelFile("a", md5="0" * 32)
    assert str(wrong.problem(tmp_path / "a")).startswith("has the MD5 9001")
    assert wrong.checksum == f"md5:{'0' * 32}"


def test_unknown_weights_option(copied: Path) -> None:
    with pytest.raises(OptionError, match=r"Found there: tiny_model\.torch"):
        load(copied, weights="all_tokens.torch")
