"""Folders: both layouts, all heads, and what is said of files that do not fit."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors.torch import load_file, save_file
from torch import Tensor

import cfm
from cfm import models
from cfm.errors import CheckpointError
from cfm.models.geneformer import GeneformerModel
from cfm.models.geneformer.checkpoint import read_config, read_module, shape_of
from cfm.models.geneformer.module import CellClassifierHead, GeneClassifierHead, MaskedGeneHead, MultiTaskHead

Copied = Callable[[str], Path]
Load = Callable[..., GeneformerModel]

WORD = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_bin(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def cpu(folder: Path) -> GeneformerModel:
    model = models.load(folder, device="cpu")
    assert isinstance(model, GeneformerModel)
    return model


# Layouts


def test_both_layouts_give_the_same_numbers(copied: Copied, cells: AnnData) -> None:
    folder = copied("V1_mlm")
    found = {}
    for gone in ("pytorch_model.bin", "model.safetensors"):
        other = folder.with_name(f"without {gone}")
        shutil.copytree(folder, other)
        (other / gone).unlink()
        model = cpu(other)
        cfm.tl.embed(cells, model=other, device="cpu", gene_column="ensembl_id")
        found[gone] = (model, cells.obsm["X_cfm"].copy())
    (plain, vectors), (old, others) = found.values()
    assert vectors.any()
    np.testing.assert_array_equal(vectors, others)
    for (name, a), b in zip(plain.module.state_dict().items(), old.module.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert plain.report.ignored == ()
    # Written by transformers 4.6: numbers of positions, and the output layer that shares the embedding.
    ignored = {DECODER, "cls.predictions.decoder.bias", "bert.embeddings.position_ids"}
    assert set(old.report.ignored) == ignored
    assert set(old.report.matched) == set(plain.report.matched)
    assert plain.spec.digest != old.spec.digest


def test_safetensors_are_read_where_both_are_there(copied: Copied) -> None:
    folder = copied("V1_mlm")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert cpu(folder).report.ignored == ()


def test_position_numbers_in_safetensors(copied: Copied) -> None:
    # V1-10M's published file has them.
    folder = copied("V1_mlm")
    change_weights(folder, lambda t: t.update({"bert.embeddings.position_ids": torch.arange(256)[None]}))
    assert cpu(folder).report.ignored == ("bert.embeddings.position_ids",)


def test_half_precision_is_read_as_float32(copied: Copied) -> None:
    folder = copied("V1_mlm")
    change_weights(folder, lambda t: t.update({name: tensor.half() for name, tensor in t.items()}))
    module = cpu(folder).module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "head", "outputs"),
    [
        ("V1_mlm", MaskedGeneHead, {"cell", "token", "logits"}),
        ("V2_mlm", MaskedGeneHead, {"cell", "token", "logits"}),
        ("V2_cell_classifier", CellClassifierHead, {"cell", "token", "logits"}),
        ("V2_gene_classifier", GeneClassifierHead, {"cell", "token", "logits"}),
        ("V2_mtl_attnpool", MultiTaskHead, {"cell", "token", "logits"}),
    ],
)
def test_heads(load: Load, fixtures: Path, name: str, head: type, outputs: set[str]) -> None:
    model = load(name)
    assert isinstance(model.module.head, head)
    assert model.spec.outputs == outputs
    config = json.loads((fixtures / name / "config.json").read_text())
    spec = model.spec
    assert (spec.name, spec.family, spec.species) == (name, "geneformer", "human")
    assert (spec.dim, spec.max_tokens) == (config["hidden_size"], config["max_position_embeddings"])
    assert (spec.version, spec.special_tokens) == (("1", 0) if name.startswith("V1") else ("2", 2))
    assert len(model.module.bert.layers) == config["num_hidden_layers"]
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert str(model.report).startswith(f"{len(model.report.matched)} of {len(model.report.matched)} tensors matched")


def test_the_pooler_of_a_multi_task_model_is_not_needed(load: Load) -> None:
    assert load("V2_mtl_attnpool").report.ignored == ("bert.pooler.dense.weight", "bert.pooler.dense.bias")
    head = load("V2_mtl_attnpool").module.head
    assert [len(part.bias) for part in head.heads] == [3, 2]
    assert head.pool.shape == (16, 1)


def test_a_multi_task_model_without_pooling(copied: Copied, cells: AnnData, load: Load) -> None:
    folder = copied("V2_mtl_attnpool")
    change_bin(folder, lambda t: t.pop("attention_pool.attention_weights"))
    head = cpu(folder).module.head
    assert isinstance(head, MultiTaskHead)
    assert head.pool is None


def test_an_encoder_alone(copied: Copied, cells: AnnData) -> None:
    folder = copied("V2_mlm")
    cfm.tl.embed(cells, model=folder, device="cpu", gene_column="ensembl_id")
    expected = cells.obsm["X_cfm"].copy()
    change_weights(folder, lambda t: [t.pop(name) for name in list(t) if name.startswith("cls.")])
    model = cpu(folder)
    assert model.module.head is None
    assert model.spec.outputs == {"cell", "token"}
    cfm.tl.embed(cells, model=folder, device="cpu", gene_column="ensembl_id")
    np.testing.assert_array_equal(cells.obsm["X_cfm"], expected)


# Missing and damaged files


def test_missing_files_are_named(copied: Copied) -> None:
    folder = copied("V2_mlm")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as raised:
        models.load(folder)
    assert "has neither model.safetensors nor pytorch_model.bin" in str(raised.value)
    assert "It holds ['config.json', 'generation_config.json']" in str(raised.value)
    (folder / "config.json").unlink()
    assert not GeneformerModel.recognises(folder)
    with pytest.raises(CheckpointError, match=r"has no config.json, which a Geneformer folder needs. It holds \['gen"):
        GeneformerModel.load(folder, name="x", device=torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"generation_config.json"):
        models.load(folder)


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _header(data: bytes) -> bytes:
    return data[:5]


def _nothing(data: bytes) -> bytes:
    return b""


def _last_byte(data: bytes) -> bytes:
    return data[:-1]


def _web_page(data: bytes) -> bytes:
    return b"<!DOCTYPE html><html><body>404 not found</body></html>"


DAMAGES = [_half, _header, _nothing, _last_byte, _web_page]


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_weights(copied: Copied, file: str, damage: Callable[[bytes], bytes]) -> None:
    folder = copied("V1_mlm")
    (folder / ({"model.safetensors", "pytorch_model.bin"} - {file}).pop()).unlink()
    path = folder / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{file}.*(damaged, cut short|no file of torch.save)"):
        models.load(folder)


def test_nothing_of_a_hostile_checkpoint_is_executed(copied: Copied, bomb: tuple[bytes, Path]) -> None:
    data, created = bomb
    folder = copied("V1_mlm")
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(data)  # a pickle that published folders have; never opened
    assert cpu(folder).spec.version == "1"
    (folder / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match="pytorch_model.bin.*Files that could run code are refused"):
        models.load(folder)
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="model.safetensors.*is no intact safetensors file"):
        models.load(folder)
    (folder / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError):
        models.load(folder)
    assert not created.exists()


def test_a_hostile_object_among_the_tensors(copied: Copied, bomb: tuple[bytes, Path]) -> None:
    data, created = bomb

    class Smuggled:
        def __reduce__(self) -> tuple[object, ...]:
            return pickle.loads, (data,)

    folder = copied("V1_mlm")
    (folder / "model.safetensors").unlink()
    change_bin(folder, lambda t: t.update({"bert.extra": Smuggled()}))
    with pytest.raises(CheckpointError, match="Files that could run code are refused"):
        models.load(folder)
    assert not created.exists()


# Tensors that do not fit


def test_missing_left_over_and_misshapen_tensors_are_named(copied: Copied) -> None:
    folder = copied("V2_mlm")

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["bert.encoder.layer.7.output.dense.bias"] = torch.ones(32)
        tensors["adapter.weight"] = torch.ones(2)
        del tensors["bert.encoder.layer.0.output.dense.bias"]
        tensors["cls.predictions.bias"] = torch.zeros(5)

    change_weights(folder, change)
    with pytest.raises(CheckpointError) as raised:
        models.load(folder)
    message = str(raised.value)
    assert "model.safetensors does not fit its network: 56 of 58 tensors match" in message
    assert "Missing: ['bert.encoder.layer.0.output.dense.bias']" in message
    assert "left over: ['adapter.weight', 'bert.encoder.layer.7.output.dense.bias']" in message
    assert "other shape: ['cls.predictions.bias: (5,), not (416,)']" in message
    assert "copy config.json and the weights from one source" in message


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_a_part_of_attention_is_missing(copied: Copied, part: str) -> None:
    folder = copied("V2_mlm")
    change_weights(folder, lambda t: t.pop(QUERY.replace("query", part)))
    with pytest.raises(CheckpointError) as raised:
        models.load(folder)
    assert f"Missing: ['{QUERY.replace('query', part)}']" in str(raised.value)


@pytest.mark.parametrize("other", [(64, 32), (32, 31), (32,), ()])
def test_parts_of_attention_of_other_sizes(copied: Copied, other: tuple[int, ...]) -> None:
    folder = copied("V2_mlm")
    change_weights(folder, lambda t: t.update({QUERY: torch.ones(other)}))
    with pytest.raises(CheckpointError) as raised:
        models.load(folder)
    assert f"other shape: ['{QUERY}: {other}, not (32, 32)']" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, r"left over: \['bert.encoder.layer.2"),
        ({"num_hidden_layers": 4}, r"Missing: \['bert.encoder.layer.3"),
        ({"hidden_size": 64}, r"layer.0.attention.self.key.weight: \(32, 32\), not \(64, 64\)"),
        ({"intermediate_size": 64}, r"bert.encoder.layer.0.intermediate.dense.weight: \(128, 32\), not \(64, 32\)"),
        ({"max_position_embeddings": 512}, r"bert.embeddings.position_embeddings.weight: \(256, 32\), not \(512, 32\)"),
        ({"vocab_size": 400}, r"bert.embeddings.word_embeddings.weight: \(416, 32\), not \(400, 32\)"),
    ],
    ids=str,
)
def test_weights_of_another_configuration(copied: Copied, changes: dict[str, int], message: str) -> None:
    folder = copied("V2_mlm")
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        models.load(folder)


def test_dictionaries_of_another_model(copied: Copied, fixtures: Path, tmp_path: Path) -> None:
    folder = copied("V2_mlm")
    shutil.rmtree(tmp_path / "dictionaries")
    shutil.copytree(fixtures / "dictionaries" / "gene_dictionaries_30m", folder / "gene_dictionaries_30m")
    with pytest.raises(CheckpointError) as raised:
        models.load(folder)
    assert "The model has 416 tokens, and no dictionary with as many was found" in str(raised.value)
    assert "token_dictionary_gc30M.pkl has 413" in str(raised.value)


@pytest.mark.parametrize("name", [DECODER, "cls.predictions.decoder.bias"])
def test_an_output_layer_of_its_own_is_refused(copied: Copied, name: str) -> None:
    folder = copied("V1_mlm")
    (folder / "model.safetensors").unlink()

    def change(tensors: dict[str, Tensor]) -> None:
        other = tensors[name].clone()
        other[3] += 1
        tensors[name] = other

    change_bin(folder, change)
    with pytest.raises(CheckpointError, match=f"has a {name} of its own.*Is it another kind of BERT"):
        models.load(folder)


@pytest.mark.parametrize(
    "copy", [torch.ones(2, 2), torch.ones(413, 32, dtype=torch.float64), torch.ones(413, 32).half()]
)
def test_an_output_layer_of_another_kind_is_refused(copied: Copied, copy: Tensor) -> None:
    folder = copied("V1_mlm")
    (folder / "model.safetensors").unlink()
    change_bin(folder, lambda t: t.update({DECODER: copy}))
    with pytest.raises(CheckpointError, match=f"has a {DECODER} of its own"):
        models.load(folder)


def test_the_official_names_all_have_one_of_ours(fixtures: Path) -> None:
    # Every tensor of a file is in the network or among the ignored, with the values that the file has.
    folder = fixtures / "V2_cell_classifier"
    tensors = load_file(folder / "model.safetensors")
    module, report = read_module(folder / "model.safetensors", shape_of(read_config(folder)))
    assert {*report.matched, *report.ignored} == tensors.keys()
    state = module.state_dict()
    assert sum(t.numel() for t in state.values()) == sum(t.numel() for t in tensors.values())
    for part in ("query", "key", "value"):
        official = f"bert.encoder.layer.1.attention.self.{part}.bias"
        assert torch.equal(state[f"bert.layers.1.{part}.bias"], tensors[official])
    assert torch.equal(state["bert.layers.0.norm1.weight"], tensors["bert.encoder.layer.0.attention.output.LayerNorm.weight"])  # fmt: skip
    assert torch.equal(state["bert.layers.0.norm2.weight"], tensors["bert.encoder.layer.0.output.LayerNorm.weight"])
    assert torch.equal(state["bert.layers.0.out.weight"], tensors["bert.encoder.layer.0.attention.output.dense.weight"])
    assert torch.equal(state["head.pooler.weight"], tensors["bert.pooler.dense.weight"])


# Configurations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, r"config.json says {'hidden_act': 'gelu'}; Geneformer models have"),
        ({"position_embedding_type": "relative_key"}, r"says {'position_embedding_type': 'relative_key'}"),
        ({"hidden_size": None}, r"lacks, or has no whole number above 0 for, \['hidden_size'\]"),
        ({"hidden_size": "32"}, r"no whole number above 0 for, \['hidden_size'\]"),
        ({"num_hidden_layers": 0, "vocab_size": -3}, r"\['vocab_size', 'num_hidden_layers'\]"),
        ({"num_attention_heads": 5}, r"hidden_size 32 is no multiple of 5 heads"),
        ({"layer_norm_eps": "small"}, r"config.json has no number for \['layer_norm_eps'\]"),
        ({"hidden_dropout_prob": [0.1]}, r"config.json has no number for \['hidden_dropout_prob'\]"),
    ],
    ids=str,
)
def test_wrong_configurations(copied: Copied, changes: dict[str, Any], message: str) -> None:
    folder = copied("V2_mlm")
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        models.load(folder)


@pytest.mark.parametrize("text", ['{"model_type": "bert", ', "[1, 2]", ""])
def test_configurations_that_are_none(copied: Copied, text: str) -> None:
    folder = copied("V2_mlm")
    (folder / "config.json").write_text(text)
    assert not GeneformerModel.recognises(folder)
    with pytest.raises(CheckpointError, match="config.json (is no JSON|holds list)"):
        read_config(folder)


def test_folders_of_other_families(fixtures: Path, folder: Path, copied: Copied) -> None:
    scgpt = fixtures.parent / "scgpt" / "human"
    assert not GeneformerModel.recognises(scgpt)
    assert not GeneformerModel.recognises(folder), "a folder of cfm-mini"
    assert not GeneformerModel.recognises(fixtures / "dictionaries")
    with pytest.raises(CheckpointError, match=r"has no config.json, which a Geneformer folder needs. It holds"):
        GeneformerModel.load(scgpt, name="x", device=torch.device("cpu"))
    other = copied("V2_mlm")
    change_config(other, model_type="roberta")
    assert not GeneformerModel.recognises(other)
    with pytest.raises(CheckpointError, match="says {'model_type': 'roberta'}; Geneformer models have"):
        read_config(other)
    # The names of its tensors are those of a BERT, so that whoever loads it learns what is wrong with its config.json.
    with pytest.raises(CheckpointError, match="says {'model_type': 'roberta'}; Geneformer models have"):
        models.load(other)
