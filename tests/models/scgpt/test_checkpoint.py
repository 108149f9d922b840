"""Reading folders of scGPT: every naming works, and nothing goes missing without a word."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors.torch import load_file, save_file
from torch import Tensor

import cfm
from cfm import models
from cfm.errors import CheckpointError, OptionError
from cfm.models.scgpt import ScgptModel, checkpoint

FOLDERS = {"human": 55, "integration": 82, "annotation": 49, "perturbation": 56, "multiomic": 68}
BY_BATCH = {"integration": {"batch_key": "batch"}}
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def load(folder: Path, **options: object) -> ScgptModel:
    found = models.load(folder, device="cpu", **BY_BATCH.get(folder.name, {}), **options)
    assert isinstance(found, ScgptModel)
    return found


def renamed(*pairs: tuple[str, str]) -> Change:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        def rename(name: str) -> str:
            for old, new in pairs:
                name = name.replace(old, new)
            return name

        return {rename(name): tensor for name, tensor in tensors.items()}

    return change


NAMINGS = {
    "torch": renamed(("Wqkv.", "in_proj_")),
    "0.2.5": renamed(("self_attn.", "self_attn._impl.")),
    "distributed": lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_tensor_of_every_layout_is_loaded(fixtures: Path, name: str) -> None:
    model = load(fixtures / name)
    stored = torch.load(fixtures / name / "best_model.pt", weights_only=True)
    assert set(model.report.matched) == set(stored)
    assert len(stored) == FOLDERS[name]
    assert str(model.report) == f"{len(stored)} of {len(stored)} tensors matched, none left over"
    ours = checkpoint.official_tensors(model.module)
    assert ours.keys() == stored.keys()
    for key, tensor in stored.items():
        assert torch.equal(ours[key], tensor)
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("name", ["human", "multiomic"])
def test_every_naming_gives_the_same_network(
    fixtures: Path, copied: Callable[[str], Path], rewrite: Callable[[Path, Change], None], name: str, naming: str
) -> None:
    """Official loaders drop these without a word: torch's names into a flash layer, those of 0.2.5 in 0.2.4, and, in
    the multi-omic model, the names of flash-attn themselves."""
    expected = load(fixtures / name).module.state_dict()
    folder = copied(name)
    rewrite(folder, NAMINGS[naming])
    found = load(folder).module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_safetensors_and_other_file_names(copied: Callable[[str], Path], fixtures: Path) -> None:
    expected = load(fixtures / "human").module.state_dict()
    folder = copied("human")
    (folder / "best_model.pt").unlink()
    assert load(folder).report.matched[-1].startswith("value_encoder")
    for name in ("model.pt", "epoch_6.pt"):
        (folder / "best_model.in_proj.safetensors").unlink(missing_ok=True)
        torch.save(torch.load(fixtures / "human" / "best_model.pt", weights_only=True), folder / name)
        found = load(folder).module.state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
        (folder / name).unlink()


def test_half_precision_is_read_as_single(
    copied: Callable[[str], Path], rewrite: Callable[[Path, Change], None]
) -> None:
    folder = copied("human")
    rewrite(folder, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    assert {tensor.dtype for tensor in load(folder).module.state_dict().values()} == {torch.float32}


def test_missing_attention_weights_are_named(
    copied: Callable[[str], Path], rewrite: Callable[[Path, Change], None]
) -> None:
    folder = copied("human")
    rewrite(folder, lambda tensors: {name: t for name, t in tensors.items() if "layers.1.self_attn.Wqkv" not in name})
    with pytest.raises(CheckpointError, match=r"lacks the attention weights") as raised:
        load(folder)
    assert "transformer_encoder.layers.1.self_attn.Wqkv.weight" in str(raised.value)


def test_missing_left_over_and_misshapen_tensors_are_named(
    copied: Callable[[str], Path], rewrite: Callable[[Path, Change], None]
) -> None:
    folder = copied("human")

    def damage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        del tensors["value_encoder.norm.bias"]
        tensors["surprise.weight"] = torch.ones(2)
        tensors["decoder.fc.2.bias"] = torch.ones(3)
        return tensors

    rewrite(folder, damage)
    with pytest.raises(CheckpointError) as raised:
        load(folder)
    message = str(raised.value)
    assert "Missing: ['value_encoder.norm.bias']" in message
    assert "left over: ['surprise.weight']" in message
    assert "other shape: ['decoder.fc.2.bias: (3,), not (32,)']" in message


def test_a_value_encoder_that_is_missing_is_no_other_style(
    copied: Callable[[str], Path], rewrite: Callable[[Path, Change], None]
) -> None:
    folder = copied("human")
    rewrite(folder, lambda tensors: {name: t for name, t in tensors.items() if not name.startswith("value_encoder")})
    with pytest.raises(CheckpointError, match="value_encoder.linear1.bias"):
        load(folder)


def test_one_tensor_under_two_names(copied: Callable[[str], Path], rewrite: Callable[[Path, Change], None]) -> None:
    folder = copied("human")
    rewrite(folder, lambda tensors: tensors | NAMINGS["torch"](tensors))
    with pytest.raises(CheckpointError, match="one tensor under two names"):
        load(folder)


@pytest.mark.parametrize("file", ["vocab.json", "best_model.pt"])
def test_missing_file_is_named(copied: Callable[[str], Path], file: str) -> None:
    folder = copied("human")
    (folder / "best_model.in_proj.safetensors").unlink()
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"has no {file}"):
        load(folder)


def test_missing_modalities_are_named(copied: Callable[[str], Path]) -> None:
    folder = copied("multiomic")
    (folder / "vocab_mod.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no vocab_mod\.json"):
        load(folder)


def test_several_files_of_no_usual_name(copied: Callable[[str], Path]) -> None:
    folder = copied("human")
    (folder / "best_model.pt").rename(folder / "a.pt")
    with pytest.raises(CheckpointError, match=r"several files with weights \(a.pt, best_model.in_proj.safetensors\)"):
        load(folder)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_half_a_download(copied: Callable[[str], Path], kept: float) -> None:
    path = copied("human") / "best_model.pt"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CheckpointError, match=r"best_model\.pt"):
        load(path.parent)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("packed", [True, False])
def test_code_in_a_pickle_is_refused(copied: Callable[[str], Path], bomb: tuple[bytes, Path], packed: bool) -> None:
    data, created = bomb
    path = copied("human") / "best_model.pt"

    class Smuggled:
        def __reduce__(self) -> tuple[object, ...]:
            return pickle.loads, (data,)

    if packed:
        torch.save({"encoder.embedding.weight": Smuggled()}, path)
    else:
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"best_model\.pt"):
        load(path.parent)
    assert not created.exists()


def test_vocabulary_of_another_model(copied: Callable[[str], Path]) -> None:
    path = copied("human") / "vocab.json"
    tokens = json.loads(path.read_text())
    path.write_text(json.dumps(tokens | {"NEW": len(tokens)}))
    with pytest.raises(CheckpointError, match=r"has 454 tokens, best_model.pt has vectors for 453"):
        load(path.parent)


@pytest.mark.parametrize("special", ["<pad>", "<cls>"])
def test_special_tokens_are_not_made_up(copied: Callable[[str], Path], special: str) -> None:
    """The official loader appends them, so that the size of the embedding no longer fits, and drops the embedding."""
    path = copied("human") / "vocab.json"
    tokens = json.loads(path.read_text())
    kept = sorted(tokens.keys() - {special}, key=tokens.__getitem__)
    path.write_text(json.dumps({token: i for i, token in enumerate(kept)}))
    with pytest.raises(CheckpointError, match=f"lacks {special}"):
        load(path.parent)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"A": 0, "B": 2}', '{"A": 0, "B": 0}', '{"A": 0, "B": true}'])
def test_damaged_vocabulary(copied: Callable[[str], Path], text: str) -> None:
    path = copied("human") / "vocab.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        load(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embsize": 64}, "embsize 64 and 32"),
        ({"nlayers": 12}, "nlayers 12 and 3"),
        ({"nheads": 5}, "nheads = 5, which does not divide 32"),
        ({"nheads": "four"}, "nheads = 'four', which is no whole number"),
        ({"input_emb_style": "guess"}, "input_emb_style = 'guess'"),
        ({"cell_emb_style": "guess"}, "cell_emb_style = 'guess'"),
        ({"pad_value": "x"}, "pad_value = 'x'"),
        ({"input_style": "log1p"}, "input_style = 'log1p'"),
    ],
)
def test_settings_of_another_model(copied: Callable[[str], Path], change: dict[str, object], message: str) -> None:
    path = copied("human") / "args.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load(path.parent)


def test_heads_are_told_or_guessed_aloud(fixtures: Path, copied: Callable[[str], Path], said: list[str]) -> None:
    assert load(fixtures / "human").module.layout.heads == 4
    assert not [message for message in said if "heads" in message]
    folder = copied("annotation")
    assert load(folder).module.layout.heads == 2
    warned = [message for message in said if message.startswith("WARNING")]
    assert len(warned) == 1
    assert "taking 2, each 8 wide" in warned[0]
    assert "heads= sets it" in warned[0]
    assert load(folder, heads=4).module.layout.heads == 4
    with pytest.raises(OptionError, match="heads=3 does not divide"):
        load(folder, heads=3)


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (["bert.embeddings.word_embeddings.weight"], "geneformer"),
        (["performer.net.layers.0.0.fn.to_q.weight"], "scbert"),
        (["pe_embedding.weight", "transformer_encoder.layers.0.linear1.weight"], "uce"),
    ],
)
def test_weights_of_another_family(copied: Callable[[str], Path], keys: list[str], family: str) -> None:
    folder = copied("human")
    torch.save({key: torch.ones(2, 2) for key in keys}, folder / "best_model.pt")
    with pytest.raises(CheckpointError, match=f"look like {family}, not like scgpt"):
        load(folder)


def test_folder_of_another_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"bert.x": torch.ones(1)}, tmp_path / "model.safetensors")
    assert not ScgptModel.recognises(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no vocab\.json.*looks like a Geneformer checkpoint"):
        ScgptModel.load(tmp_path, name="x", device=torch.device("cpu"))


def test_recognises_folders_with_a_file_missing_but_no_others(
    fixtures: Path, copied: Callable[[str], Path], folder: Path, tmp_path: Path
) -> None:
    assert all(ScgptModel.recognises(fixtures / name) for name in FOLDERS)
    assert not ScgptModel.recognises(folder)
    assert not ScgptModel.recognises(tmp_path / "nowhere")
    other = copied("human")
    (other / "config.json").write_text("{}")
    assert ScgptModel.recognises(other), "args.json says more than a config.json beside it"
    (other / "config.json").unlink()
    for file in ("args.json", "vocab.json"):
        (other / file).unlink()
        assert ScgptModel.recognises(other)


def test_both_files_of_a_fixture_hold_the_same_numbers(fixtures: Path) -> None:
    for name in FOLDERS:
        flash = torch.load(fixtures / name / "best_model.pt", weights_only=True)
        torch_names = load_file(fixtures / name / "best_model.in_proj.safetensors")
        assert {checkpoint.our_name(key) for key in flash} == {checkpoint.our_name(key) for key in torch_names}


def test_a_vector_hangs_on_every_attention_weight(
    cells: AnnData, fixtures: Path, copied: Callable[[str], Path], rewrite: Callable[[Path, Change], None]
) -> None:
    """Names that are mapped but never used would pass the tests above."""
    cfm.tl.embed(cells, model=fixtures / "human", device="cpu")
    before = cells.obsm["X_cfm"].copy()
    folder = copied("human")
    rewrite(folder, lambda tensors: {n: t + 0.5 * torch.sin(torch.arange(t.numel()) * 1.0).view(t.shape)
                                     if "layers.2.self_attn.out_proj.weight" in n else t
                                     for n, t in tensors.items()})  # fmt: skip
    cfm.tl.embed(cells, model=folder, device="cpu")
    assert np.abs(cells.obsm["X_cfm"] - before).max() > 1e-3
