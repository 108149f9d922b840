"""Reading scBERT's files: what is found, what is refused, and that nothing in them is executed."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from safetensors.torch import load_file, save_file

import cfm
from cfm import models
from cfm.errors import CheckpointError, OptionError, UnsupportedOutput
from cfm.models.scbert import genes as genes_module
from cfm.models.scbert.checkpoint import official_name, our_name

Rewrite = Callable[..., None]


def load(folder: Path, **options: object):
    return models.load(folder, device="cpu", **options)


# --- weights


def test_official_layout_bare_and_safetensors_are_one_model(pretrained: Path, fixtures: Path, tmp_path: Path) -> None:
    official = load(pretrained).module.state_dict()
    state = torch.load(pretrained / "panglao_pretrain.pth", weights_only=True)["model_state_dict"]
    for name, write in {
        "bare.pth": lambda path: torch.save(dict(state), path),
        "wrapped.pth": lambda path: torch.save({f"module.{k}": v for k, v in state.items()}, path),
        "model.safetensors": lambda path: shutil.copy(fixtures / "panglao_pretrain.safetensors", path),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(fixtures / "genes.txt", folder)
        write(folder / name)
        model = load(folder)
        assert model.spec.family == "scbert"
        assert model.module.positions.dtype == torch.float64
        for key, tensor in model.module.state_dict().items():
            torch.testing.assert_close(tensor, official[key], atol=0, rtol=0)


def test_sizes_are_read_from_tensors(pretrained: Path) -> None:
    model = load(pretrained)
    layout = model.module.layout
    assert (layout.n_positions, layout.n_tokens, layout.n_bins, layout.dim) == (401, 7, 5, 32)
    assert (layout.heads, layout.width, layout.n_features, layout.layers) == (4, 16, 44, 2)
    assert model.spec.positions["cell"] == 401
    assert model.spec.licence == "GPL-3.0"
    assert model.report.ignored == ("performer.calls_since_last_redraw",)


def test_names_go_both_ways(fixtures: Path) -> None:
    for name in torch.load(fixtures / "finetune_best.pth", weights_only=True)["model_state_dict"]:
        if "calls_since" not in name:
            assert official_name(our_name(name)) == name


def test_the_pretrained_file_is_taken_first_and_another_by_name(fixtures: Path) -> None:
    assert "token_logits" in load(fixtures).spec.outputs
    assert "logits" in load(fixtures, weights="finetune_best.pth").spec.outputs
    with pytest.raises(OptionError, match=r"weights='nope' is no file in .*finetune_best.pth, panglao_pretrain.pth"):
        load(fixtures, weights="nope")


def test_several_files_without_a_usual_name(pretrained: Path) -> None:
    shutil.copy(pretrained / "panglao_pretrain.pth", pretrained / "a.pth")
    (pretrained / "panglao_pretrain.pth").rename(pretrained / "b.pth")
    with pytest.raises(
        CheckpointError, match=r"several files with weights \(a.pth, b.pth\). Say which: weights='a.pth'"
    ):
        load(pretrained)
    assert load(pretrained, weights="b.pth").spec.dim == 32


def test_missing_left_over_and_misshapen_tensors_are_named(pretrained: Path, rewrite: Rewrite) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["performer.net.layers.1.0.fn.to_k.weight"]
        tensors["extra.weight"] = torch.ones(2)
        tensors["norm.bias"] = torch.ones(3)
        return tensors

    rewrite(pretrained / "panglao_pretrain.pth", change)
    with pytest.raises(CheckpointError) as raised:
        load(pretrained)
    assert "Missing: ['performer.net.layers.1.0.fn.to_k.weight']" in str(raised.value)
    assert "left over: ['extra.weight']" in str(raised.value)
    assert "norm.bias: (3,), not (32,)" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("pos_emb.emb.weight", torch.zeros(401, 31), r"pos_emb.emb.weight is \(401, 31\) of torch.float32"),
        ("pos_emb.emb.weight", torch.zeros(401, 32, dtype=torch.int64), r"of torch.int64, not \(401, 32\) of numbers"),
        ("token_emb.weight", torch.zeros(7), "it has no token_emb.weight"),
        ("performer.net.layers.0.0.fn.to_q.weight", torch.zeros(63, 32), "do not divide the 63 rows"),
    ],
)
def test_tensors_that_contradict_each_other(
    pretrained: Path, rewrite: Rewrite, name: str, tensor: torch.Tensor, message: str
) -> None:
    rewrite(pretrained / "panglao_pretrain.pth", lambda tensors: tensors | {name: tensor})
    with pytest.raises(CheckpointError, match=message):
        load(pretrained)


def test_without_positions_nothing_is_added_and_the_list_tells_their_number(pretrained: Path, rewrite: Rewrite) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["pos_emb.emb.weight"]
        return tensors

    rewrite(pretrained / "panglao_pretrain.pth", change)
    model = load(pretrained)
    assert model.module.layout.n_positions == 401
    bins = torch.zeros((1, 401), dtype=torch.int64)
    assert (model.module.embed(bins) == model.module.tokens.weight[0]).all()
    with pytest.raises(UnsupportedOutput, match=r"trained without gene2vec.*genes='contextual'"):
        model.gene_vectors()


def test_positions_in_single_precision_are_read_too(pretrained: Path, rewrite: Rewrite) -> None:
    rewrite(pretrained / "panglao_pretrain.pth", lambda t: t | {"pos_emb.emb.weight": t["pos_emb.emb.weight"].float()})
    assert load(pretrained).module.positions.dtype == torch.float64


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "list"])
def test_damaged_weights(pretrained: Path, damage: str) -> None:
    path = pretrained / "panglao_pretrain.pth"
    data = path.read_bytes()
    if damage == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"<html>log in</html>"}[damage])
    with pytest.raises(CheckpointError, match="panglao_pretrain.pth"):
        load(pretrained)


def test_hostile_weights(pretrained: Path, bomb: tuple[bytes, Path]) -> None:
    data, created = bomb
    (pretrained / "panglao_pretrain.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="panglao_pretrain.pth"):
        load(pretrained)
    assert not created.exists()


def test_weights_of_another_family(pretrained: Path) -> None:
    torch.save({"bert.embeddings.word_embeddings.weight": torch.ones(3, 2)}, pretrained / "panglao_pretrain.pth")
    with pytest.raises(CheckpointError, match="look like geneformer, not like scbert"):
        load(pretrained)


def test_folders_of_others_are_left_alone(tmp_path: Path, pretrained: Path) -> None:
    fixtures = Path(__file__).parents[2] / "data" / "fixtures"
    for other in ("geneformer/V2_mlm", "scgpt/human"):
        assert models.info(fixtures / other).family == other.split("/")[0]
    # scGPT knows a folder by a vocab.json beside weights, and ours may have one.
    symbols = (pretrained / "genes.txt").read_text().split()
    (pretrained / "genes.txt").unlink()
    (pretrained / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(symbols)}))
    assert models.info(pretrained).family == "scbert"
    assert not cfm.models.scbert.ScbertModel.recognises(tmp_path / "nowhere")


# --- the gene list


def test_all_forms_of_the_list(pretrained: Path, tmp_path: Path) -> None:
    path = pretrained / "genes.txt"
    symbols = path.read_text().split()
    path.unlink()
    forms = tmp_path / "forms"
    forms.mkdir()
    (forms / "windows.txt").write_bytes(("\ufeff" + "\r\n".join(symbols) + "\r\n\r\n").encode())
    (forms / "list.json").write_text(json.dumps(symbols))
    order = np.random.default_rng(0).permutation(len(symbols))
    (forms / "vocab.json").write_text(json.dumps({symbols[i]: int(i) for i in order}))
    data = AnnData(np.zeros((1, len(symbols)), np.float32))
    data.var_names = symbols
    data.write_h5ad(forms / "data.h5ad")
    with h5py.File(forms / "old.h5ad", "w") as handle:
        handle["var"] = np.array([(name.encode(), 0) for name in symbols], [("index", "S20"), ("n", "i4")])
    for file in sorted(forms.iterdir()):
        assert list(load(pretrained, gene_list=file).vocabulary.symbols) == symbols, file
    # Beside the weights: under its usual names, and any .h5ad of the right number of genes.
    AnnData(np.zeros((1, 3), np.float32)).write_h5ad(pretrained / "a_other_cells.h5ad")
    shutil.copy(forms / "data.h5ad", pretrained / "panglao_human.h5ad")
    assert list(load(pretrained).vocabulary.symbols) == symbols


def test_only_the_names_of_an_h5ad_are_read(pretrained: Path) -> None:
    symbols = (pretrained / "genes.txt").read_text().split()
    data = AnnData(np.zeros((1, len(symbols)), np.float32))
    data.var_names = symbols
    data.write_h5ad(pretrained / "data.h5ad")
    with h5py.File(pretrained / "data.h5ad", "r+") as handle:
        del handle["X"]
    assert load(pretrained, gene_list=pretrained / "data.h5ad").spec.max_tokens == 400


def test_a_missing_list_says_what_to_do(pretrained: Path) -> None:
    (pretrained / "genes.txt").unlink()
    with pytest.raises(CheckpointError) as raised:
        load(pretrained)
    assert "has no gene list of 400 genes. It holds ['panglao_pretrain.pth']" in str(raised.value)
    assert "one symbol a line" in str(raised.value)
    assert "gene_list='FILE'" in str(raised.value)
    assert "panglao_human.h5ad" in str(raised.value)


def test_a_list_of_another_length(pretrained: Path) -> None:
    path = pretrained / "genes.txt"
    path.write_text("\n".join(path.read_text().split()[:-1]))
    with pytest.raises(CheckpointError, match=r"genes.txt has 399 genes, and the weights have positions for 400"):
        load(pretrained)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("genes.txt", b"", "has no gene"),
        ("genes.txt", b"CD3E\n\nCD19\n", "no name in line 2"),
        ("genes.txt", b"\xff\xfe\x00", "is no text"),
        ("vocab.json", b'{"CD3E": 0', "is no JSON"),
        ("vocab.json", b'{"CD3E": 0, "CD19": 2}', "does not number its 2 genes from 0"),
        ("vocab.json", b'{"CD3E": "a"}', "neither a list of names nor an object"),
        ("data.h5ad", b"no hdf5", "is no intact .h5ad file"),
    ],
)
def test_damaged_lists(pretrained: Path, name: str, content: bytes, message: str) -> None:
    (pretrained / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(pretrained, gene_list=pretrained / name)


def test_a_list_that_repeats_a_gene(pretrained: Path) -> None:
    path = pretrained / "genes.txt"
    symbols = path.read_text().split()
    path.write_text("\n".join([*symbols[:-1], symbols[0]]))
    with pytest.raises(CheckpointError, match="names a gene twice"):
        load(pretrained)


def test_a_list_by_its_name_beside_the_weights(pretrained: Path) -> None:
    (pretrained / "genes.txt").rename(pretrained / "mine.txt")
    assert len(load(pretrained, gene_list="mine.txt").vocabulary) == 400


def test_other_files_of_cells_do_not_stand_in_the_way(pretrained: Path, cells: AnnData) -> None:
    symbols = (pretrained / "genes.txt").read_text().split()
    (pretrained / "genes.txt").unlink()
    (pretrained / "a.h5ad").write_bytes(b"no cells")
    cells.write_h5ad(pretrained / "b.h5ad")
    AnnData(np.zeros((1, 400), np.float32), var=pd.DataFrame(index=symbols)).write_h5ad(pretrained / "c.h5ad")
    assert list(load(pretrained).vocabulary.symbols) == symbols


def test_names_of_classes_for_a_model_without(pretrained: Path) -> None:
    with pytest.raises(
        OptionError, match="labels= goes with a fine-tuned model, and panglao_pretrain.pth has no classifier"
    ):
        load(pretrained, labels="label_dict")


def test_a_list_that_is_no_file(pretrained: Path) -> None:
    with pytest.raises(
        OptionError, match=r"gene_list='nowhere.txt': there is no such file, here or in .*Give the gene order"
    ):
        load(pretrained, gene_list="nowhere.txt")


def test_the_published_list_is_known_by_its_digest(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a list of our own in the place of the published one, which is not in the repository."""
    symbols = ["CD3E", "CD19", "LYZ"]
    (tmp_path / "genes.txt").write_text("\n".join(symbols) + "\n")
    monkeypatch.setattr(genes_module, "PUBLISHED_GENES", 3)
    genes_module.read_genes(tmp_path, None, 3)
    assert [message for message in said if "is not its list" in message and message.startswith("WARNING")]
    assert "each gene has the vector of another" in said[-1]
    monkeypatch.setattr(genes_module, "_PUBLISHED", "d5d5a0bd8d1b8e7b5ad6b5f1df4b8c67")
    import hashlib

    digest = hashlib.sha256("\n".join(symbols).encode()).hexdigest()
    monkeypatch.setattr(genes_module, "_PUBLISHED", digest)
    genes_module.read_genes(tmp_path, None, 3)
    assert said[-1].endswith("is that of the published scBERT")


# --- names of classes


def test_class_names(fine_tuned: Path) -> None:
    assert load(fine_tuned).classes == ("B cell", "CD4 T cell", "Monocyte", "NK cell")


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", [str, object])
def test_class_names_of_other_pickles(fine_tuned: Path, protocol: int, dtype: type) -> None:
    names = np.array(["a", "b", "c", "d"], dtype)
    (fine_tuned / "label_dict").write_bytes(pickle.dumps(names, protocol))
    assert load(fine_tuned).classes == ("a", "b", "c", "d")


def test_class_names_of_another_number(fine_tuned: Path) -> None:
    (fine_tuned / "label_dict").write_bytes(pickle.dumps(np.array(["a", "b"])))
    with pytest.raises(CheckpointError, match="label_dict names 2 classes, and the weights have 4"):
        load(fine_tuned)


def test_class_names_elsewhere_or_nowhere(fine_tuned: Path, tmp_path: Path) -> None:
    (fine_tuned / "label_dict").rename(tmp_path / "names.pkl")
    assert load(fine_tuned, labels=tmp_path / "names.pkl").classes[0] == "B cell"
    model = load(fine_tuned)
    assert model.classes == ()
    with pytest.raises(UnsupportedOutput, match="no names for its classes. Put the label_dict"):
        model.classify(np.zeros((1, 4), np.float32))
    with pytest.raises(OptionError, match="labels='nowhere': there is no such file"):
        load(fine_tuned, labels="nowhere")


def test_hostile_class_names(fine_tuned: Path, bomb: tuple[bytes, Path]) -> None:
    data, created = bomb
    (fine_tuned / "label_dict").write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"label_dict is refused: it asks for .*files of labels hold numbers and text"
    ):
        load(fine_tuned)
    assert not created.exists()


def test_damaged_class_names(fine_tuned: Path) -> None:
    path = fine_tuned / "label_dict"
    data = path.read_bytes()
    for content in (b"", data[:-30], pickle.dumps(["a", "b", "c", "d"]), pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="label_dict"):
            load(fine_tuned)


# --- the registry


def test_the_registry_knows_the_published_model(tmp_path: Path, said: list[str]) -> None:
    entry = models.registry.entries()["scbert-panglao"]
    assert (entry.family, entry.licence) == ("scbert", "GPL-3.0")
    assert "covers its weights" in entry.notice
    assert cfm.models.list().loc["scbert-panglao", "available"] == "by hand"
    assert logging.getLogger("cfm").propagate is False
    with (
        cfm.settings.override(cache_dir=tmp_path),
        pytest.raises(cfm.errors.DownloadError, match="TencentAILabHealthcare"),
    ):
        cfm.models.fetch("scbert-panglao")
    assert any("GPL-3.0" in message for message in said)


def test_a_bare_state_in_safetensors_is_recognised(tmp_path: Path, fixtures: Path) -> None:
    tensors = load_file(fixtures / "panglao_pretrain.safetensors")
    save_file(tensors, tmp_path / "weights.safetensors")
    shutil.copy(fixtures / "genes.txt", tmp_path)
    assert models.info(tmp_path).family == "scbert"
