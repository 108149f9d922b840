"""Tensors from files, and into a network: strict, and nothing executed."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cfm.errors import CheckpointError
from cfm.models.weights import LoadReport, fill, read_tensors

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1, 2]), "half": torch.ones(3).half()}


def written(folder: Path, kind: str) -> Path:
    path = folder / f"weights.{kind.partition(' ')[0]}"
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        # As torch wrote until 1.5, without a zip archive.
        torch.save(OrderedDict(TENSORS), path, _use_new_zipfile_serialization="old" not in kind)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "bin", "pt", "bin old"])
def test_formats(tmp_path: Path, kind: str) -> None:
    found = read_tensors(written(tmp_path, kind))
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "bin old"])
@pytest.mark.parametrize("part", [0, 1, 7, 100, 0.5, 0.9])
def test_cut_files(tmp_path: Path, kind: str, part: float) -> None:
    path = written(tmp_path, kind)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: part if isinstance(part, int) else int(part * size)])
    with pytest.raises(CheckpointError, match=r"weights\.(safetensors|bin)") as raised:
        read_tensors(path)
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\n"],
    ids=["web page", "pointer"],
)  # fmt: skip
def test_what_came_instead_of_the_file(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"weights.{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"weights.{ending}"):
        read_tensors(path)


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"\(\d+ bytes\) is no intact file of torch.save"):
        read_tensors(path)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_nothing_is_executed(tmp_path: Path, bomb: tuple[bytes, Path], old: bool) -> None:
    data, created = bomb

    class Smuggled:
        def __reduce__(self) -> tuple[Any, ...]:
            return pickle.loads, (data,)

    path = tmp_path / "weights.bin"
    torch.save({"a": torch.ones(2), "b": Smuggled()}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match="Files that could run code are refused"):
        read_tensors(path)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="Files that could run code are refused"):
        read_tensors(path)
    assert not created.exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([torch.ones(2)], "it holds list"),
        (torch.ones(2), "it holds Tensor"),
        ({"model": {"a": torch.ones(2)}, "epoch": 3}, r"it holds \['epoch', 'model'\]"),
        ({0: torch.ones(2)}, r"it holds \['0'\]"),
    ],
    ids=["list", "tensor", "nested", "numbers"],
)
def test_what_is_no_state_dict(tmp_path: Path, content: object, what: str) -> None:
    path = tmp_path / "weights.bin"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"is no state dict \(names and tensors\): {what}"):
        read_tensors(path)


# Into a network


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 2)
        self.two = nn.Linear(2, 2, bias=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


def net() -> Net:
    with torch.device("meta"):
        return Net()


def fitting() -> dict[str, Tensor]:
    return {
        "one.weight": torch.arange(6.0).view(2, 3),
        "one.bias": torch.tensor([0.5, 2.0], dtype=torch.bfloat16),
        "two.weight": torch.eye(2, dtype=torch.float64),
        "steps": torch.tensor(7),
    }


def test_fill_takes_all_in_float32() -> None:
    module, tensors = net(), fitting()
    fill(module, tensors, where=Path("file"), advice="")
    state = module.state_dict()
    assert {name: tensor.dtype for name, tensor in state.items() if name != "steps"} == {
        name: torch.float32 for name in tensors if name != "steps"
    }
    assert state["steps"].item() == 7
    for name, tensor in tensors.items():
        assert torch.equal(state[name].double(), tensor.double())
    # No second copy of what is float32 already: the weights of a large model fit once.
    assert module.one.weight.data_ptr() == tensors["one.weight"].data_ptr()
    assert torch.equal(module.one(torch.ones(1, 3)), torch.tensor([[3.5, 14.0]]))


def test_fill_names_all_that_is_wrong() -> None:
    tensors = fitting()
    del tensors["two.weight"]
    tensors["three.weight"] = torch.ones(2)
    tensors["one.weight"] = torch.ones(3, 2)
    module = net()
    with pytest.raises(CheckpointError) as raised:
        fill(module, tensors, where=Path("some/file.bin"), advice="Copy it again.")
    assert str(raised.value) == (
        "some/file.bin does not fit its network: 2 of 4 tensors match. Missing: ['two.weight']; left over: "
        "['three.weight']; other shape: ['one.weight: (3, 2), not (2, 3)']. Copy it again."
    )
    assert all(tensor.is_meta for tensor in module.state_dict().values()), "nothing was loaded by halves"


def test_fill_shortens_long_lists() -> None:
    tensors = fitting() | {f"more.{i:02}": torch.ones(1) for i in range(30)}
    with pytest.raises(CheckpointError, match=r"'more.07'\] and 22 more; other shape: none"):
        fill(net(), tensors, where=Path("file"), advice="")


def test_fill_refuses_weights_that_are_whole_numbers() -> None:
    # As a file of a quantised model would have them; read as they are, they would be nonsense.
    tensors = fitting() | {"one.weight": torch.ones(2, 3, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match=r"one.weight: torch.int8"):
        fill(net(), tensors, where=Path("file"), advice="")


def test_report() -> None:
    assert str(LoadReport(("a", "b"))) == "2 of 2 tensors matched, none left over"
    told = str(LoadReport(("a",), ("copy", "positions")))
    assert told == "1 of 1 tensors matched, none left over, 2 not needed (copy, positions)"
