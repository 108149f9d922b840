"""The cfm-mini family: files, tokeniser, network."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors.torch import load_file, save_file

from cfm import models
from cfm.errors import CheckpointError, UnsupportedOutput
from cfm.genes import match
from cfm.models import Pack
from cfm.models.mini import checkpoint

FILES = ("config.json", "vocabulary.tsv", "weights.safetensors")


def test_what_was_written_is_what_is_read(folder: Path, write_model: Callable[..., None], tmp_path: Path) -> None:
    model = models.load(folder)
    stored = load_file(folder / "weights.safetensors")
    for name, tensor in model.module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())
    write_model(tmp_path / "again", 0)
    for file in FILES:
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), "same model, same bytes"
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert not model.module.training


@pytest.mark.parametrize("file", FILES)
def test_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError) as raised:
        models.load(folder)
    kept = sorted({*FILES, "reference.safetensors"} - {file})
    assert f"has no {file}" in str(raised.value)
    assert f"It holds {kept}" in str(raised.value)


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _header_cut(data: bytes) -> bytes:
    return data[:5]


def _huge_header(data: bytes) -> bytes:
    return (2**62).to_bytes(8, "little") + data[8:]


def _flipped(data: bytes) -> bytes:
    return data[:9] + bytes(byte ^ 255 for byte in data[9:40]) + data[40:]


def _nothing(data: bytes) -> bytes:
    return b""


def _web_page(data: bytes) -> bytes:
    return b"<!DOCTYPE html><html><body>404 not found</body></html>"


def _git_lfs_pointer(data: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n"


DAMAGES = [_truncated, _header_cut, _huge_header, _flipped, _nothing, _web_page, _git_lfs_pointer]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_weights(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError) as raised:
        models.load(folder)
    size = path.stat().st_size
    assert f"{path} ({size:,} bytes) is no intact safetensors file" in str(raised.value)
    assert "Copy it again from where it came" in str(raised.value)


@pytest.mark.parametrize("file", [*FILES, "reference.safetensors"])
def test_nothing_of_a_hostile_file_is_executed(folder: Path, file: str, bomb: tuple[bytes, Path]) -> None:
    data, created = bomb
    (folder / file).write_bytes(data)
    with pytest.raises(CheckpointError, match=file):
        models.load(folder).reference()
    assert not created.exists()


def test_a_pickled_checkpoint_under_another_name_is_refused(folder: Path, bomb: tuple[bytes, Path]) -> None:
    data, created = bomb

    class Smuggled:
        def __reduce__(self) -> tuple[object, ...]:
            return pickle.loads, (data,)

    torch.save({"state_dict": Smuggled()}, folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match="no intact safetensors file"):
        models.load(folder)
    assert not created.exists()


def test_missing_left_over_and_misshapen_tensors_are_named(folder: Path) -> None:
    path = folder / "weights.safetensors"
    tensors = load_file(path)
    tensors["extra.weight"] = torch.ones(2)
    del tensors["encoder.2.bias"]
    tensors["output.bias"] = tensors["output.bias"][:-1].clone()
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as raised:
        models.load(folder)
    message = str(raised.value)
    assert "Missing: ['encoder.2.bias']" in message
    assert "left over: ['extra.weight']" in message
    assert "other shape: ['output.bias: (399,), not (400,)']" in message
    assert "copy all files of one folder from one source" in message


def test_weights_of_another_vocabulary(folder: Path) -> None:
    path = folder / "vocabulary.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-5]))
    with pytest.raises(
        CheckpointError, match=r"It has to go with config.json and vocabulary.tsv \(395 genes\)"
    ) as raised:
        models.load(folder)
    assert "embedding.weight: (400, 16), not (395, 16)" in str(raised.value)


def test_vocabulary_of_another_training_with_as_many_genes(folder: Path) -> None:
    # The shapes fit; only the order of the genes tells. Read silently, every vector would be nonsense.
    path = folder / "vocabulary.tsv"
    header, first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, second, first, *rest]))
    with pytest.raises(CheckpointError, match=r"vocabulary.tsv has other genes, or another order"):
        models.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": None}, "lacks or mistypes {'dim': 'int'}"),
        ({"width": "16", "licence": 3}, "lacks or mistypes {'licence': 'str', 'width': 'int'}"),
        ({"width": 32}, "other shape: .*16.*not .*32"),
        ({"dim": -8}, "config.json"),
    ],
    ids=["missing", "wrong types", "wrong size", "no size"],
)
def test_wrong_configuration(folder: Path, change: dict[str, Any], message: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(CheckpointError, match=message):
        models.load(folder)


def test_a_configuration_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"family": "mini", ')
    with pytest.raises(CheckpointError, match="config.json is no JSON"):
        models.load(folder)


def test_a_configuration_of_another_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"family": "geneformer"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="says family 'geneformer'"):
        checkpoint.read_config(folder)


def test_a_model_without_reference_says_so(folder: Path) -> None:
    (folder / "reference.safetensors").unlink()
    assert models.load(folder).reference() is None


def test_outputs_it_cannot_give(pbmc: AnnData) -> None:
    model = models.load("cfm-mini", device="cpu")
    batch = model.tokenizer(match(pbmc.var, model.vocabulary))(pbmc.X[:2], 0)
    with pytest.raises(UnsupportedOutput, match=r"gives \['cell'\], not \['attention_sum'\]"):
        model.forward(Pack.of(batch, model.device), frozenset({"cell", "attention_sum"}))


def test_tokens_are_the_known_genes_with_log_normalised_counts(few: AnnData) -> None:
    model = models.load("cfm-mini", device="cpu")
    tokens = match(few.var, model.vocabulary).tokens
    batch = model.tokenizer(match(few.var, model.vocabulary))(few.X, 100)
    assert batch.rows.tolist() == list(range(100, 160))
    dense = few.X.toarray().astype(np.float64)
    assert batch.values is not None
    for cell in range(few.n_obs):
        known = {int(t): n for t, n in zip(tokens, dense[cell], strict=True) if t >= 0 and n > 0}
        part = slice(batch.offsets[cell], batch.offsets[cell + 1])
        assert batch.ids[part].tolist() == sorted(known)
        counts = np.array([known[token] for token in sorted(known)])
        # log1p of two libraries may differ in the last bit of float32.
        np.testing.assert_allclose(batch.values[part], np.log1p(1e4 * counts / counts.sum()), rtol=1.2e-7)


def test_tokenizer_can_be_sent_to_another_process(few: AnnData) -> None:
    model = models.load("cfm-mini", device="cpu")
    tokenizer = model.tokenizer(match(few.var, model.vocabulary))
    here, there = tokenizer(few.X, 0), pickle.loads(pickle.dumps(tokenizer))(few.X, 0)
    np.testing.assert_array_equal(here.ids, there.ids)
    np.testing.assert_array_equal(here.values, there.values)


def test_vectors_have_length_one_and_follow_the_formula(few: AnnData) -> None:
    model = models.load("cfm-mini", device="cpu")
    batch = model.tokenizer(match(few.var, model.vocabulary))(few.X, 0)
    vectors = model.forward(Pack.of(batch, model.device), frozenset({"cell"}))["cell"]
    assert vectors.shape == (60, model.spec.dim)
    np.testing.assert_allclose(vectors.norm(dim=1), 1, rtol=1e-6)
    # The bag written out: sum of v_g E_g with v brought to length 8, then the encoder.
    embedding = model.module.embedding.weight
    bags = []
    for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        values = torch.from_numpy(batch.values[a:b]).double()
        weights = 8 * values / values.norm()
        bags.append((weights[:, None] * embedding[torch.from_numpy(batch.ids[a:b]).long()].double()).sum(0))
    out = model.module.encoder(torch.stack(bags).float())
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(out, dim=-1), atol=2e-6)


def test_the_packaged_files_are_small_enough_to_ship() -> None:
    folder = models.load("cfm-mini", device="cpu").folder
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    for told in ("licence", "cells", "seed", "validation loss"):
        assert told in card.lower()
