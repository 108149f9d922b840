"""Reading tensors from files, and putting them into a network strictly. Nothing from a file is executed."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cfm._core.errors import CheckpointError

WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".torch")

_SHOWN = 8

# What torch and zipfile raise for files with a few wrong bytes.
_DAMAGE = (RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
           struct.error, zipfile.BadZipFile)  # fmt: skip


@dataclass(frozen=True)
class LoadReport:
    """How the tensors of a file went into a network.

    Parameters
    ----------
    matched
        Names in the file of tensors that were loaded.
    ignored
        Names in the file of tensors that are known and not needed, such as copies of others.
    """

    matched: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        ignored = f", {len(self.ignored)} not needed ({', '.join(self.ignored[:3])})" if self.ignored else ""
        return f"{len(self.matched)} of {len(self.matched)} tensors matched, none left over{ignored}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file, or of a file that ``torch.save`` wrote, by name; mapped, not copied.

    Raises
    ------
    CheckpointError
        The file is cut, damaged or of another format, or holds more than tensors: code in a pickle is refused.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, "safetensors file", error) from error
    found = read_saved(path)
    plain = isinstance(found, dict) and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in found.items())
    if not plain:
        what = sorted(map(str, found))[:_SHOWN] if isinstance(found, dict) else type(found).__name__
        raise CheckpointError(f"{path} is no state dict (names and tensors): it holds {what}.")
    return found


def read_saved(path: Path) -> Any:
    """What ``torch.save`` wrote, whatever its structure: containers of tensors, numbers and text. Mapped, not copied.

    Raises
    ------
    CheckpointError
        As in `read_tensors`.
    """
    try:
        # Zip archives can be mapped; the older format of torch is read into memory.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # it loads, or is refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        msg = (
            f"{path} holds more than tensors, or is no file of torch.save: {_first_line(error)}. Files that could run "
            "code are refused. Get the file from its official source, or save its state dict alone."
        )
        raise CheckpointError(msg) from error
    except _DAMAGE as error:
        raise _damaged(path, "file of torch.save", error) from error


def check_family(path: Path, names: Iterable[str], family: str) -> None:
    """That the tensors of a file are not those of another family.

    Raises
    ------
    CheckpointError
        They look like another family's; it is named.
    """
    from .registry import looks_like  # which loads families, which read weights

    found = looks_like(names)
    if found not in (None, family):
        msg = f"{path} holds weights that look like {found}, not like {family}. The files around it are of {family}: "
        raise CheckpointError(f"{msg}copy all files of one model from one source.")


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    where: Path,
    advice: str,
    called: Callable[[str], str] = str,
) -> None:
    """Put tensors into a network made on the meta device; each must be expected, present and of its shape.

    Parameters
    ----------
    module
        The network; its parameters become the tensors, in float32, without a copy where they are that already.
    tensors
        By the names of the network.
    where
        The file, for the message.
    advice
        Last sentence of the message.
    called
        From a name of the network to that in the file, for the message.

    Raises
    ------
    CheckpointError
        Missing, left-over or misshapen tensors; all are named.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        missing, left_over = (
            sorted(map(called, names)) for names in (expected.keys() - found.keys(), found.keys() - expected.keys())
        )
        misshapen = [
            f"{called(name)}: {found[name]}, not {expected[name]}"
            for name in sorted(expected.keys() & found.keys())
            if found[name] != expected[name]
        ]
        matched = len(expected) - len(missing) - len(misshapen)
        msg = (
            f"{where} does not fit its network: {matched} of {len(expected)} tensors match. Missing: {_some(missing)}; "
            f"left over: {_some(left_over)}; other shape: {_some(misshapen)}. {advice}"
        )
        raise CheckpointError(msg)
    whole = [
        f"{called(name)}: {tensors[name].dtype}"
        for name, _ in module.named_parameters()
        if not tensors[name].is_floating_point()
    ]
    if whole:
        raise CheckpointError(
            f"{where} has whole numbers for weights, as quantised models do: {_some(whole)}. {advice}"
        )
    as_float = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    module.load_state_dict(as_float, assign=True)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{names[:_SHOWN]}{more}" if names else "none"


def _damaged(path: Path, kind: str, error: Exception) -> CheckpointError:
    size = path.stat().st_size
    return CheckpointError(
        f"{path} ({size:,} bytes) is no intact {kind}: {_first_line(error)}. It is damaged, cut short (a download that "
        "did not end?), or in another format. Copy it again from where it came."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
