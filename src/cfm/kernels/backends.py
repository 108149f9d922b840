"""Who computes a call of attention, and what the others lack for it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from cfm._core.errors import OptionError
from cfm._core.logging import logger

from .errors import KernelError

ORDER = ("cuda", "triton", "varlen", "sdpa")
"""Whom ``"auto"`` asks on a GPU, first to last. The last one can always."""

ABOUT = {
    "cuda": "the kernels of this package in CUDA C++",
    "triton": "the kernel of this package in Triton",
    "varlen": "torch's own attention for ragged cells",
    "sdpa": "torch's attention, cell by cell",
    "eager": "the formula written out, for comparison",
}

WIDTH = 64
"""Width of a head for which there are CUDA kernels."""

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Call:
    """What decides about a call of attention.

    Attributes
    ----------
    device
        Where the tokens are.
    dtype
        Their dtype.
    width
        Width of a head.
    unknown
        Whether cells have unknown tokens.
    some_ask
        Whether only some tokens ask.
    gradients
        Whether gradients are wanted.
    features
        Whether random features stand in the place of the softmax (Performer).
    """

    device: torch.device
    dtype: torch.dtype
    width: int
    unknown: bool = False
    some_ask: bool = False
    gradients: bool = False
    features: bool = False


@dataclass(frozen=True)
class Choice:
    """Who computes a call.

    Attributes
    ----------
    name
        The backend.
    lacking
        Of those that stood before it, what they lack.
    """

    name: str
    lacking: dict[str, str] = field(default_factory=dict)


_broken: dict[tuple[str, torch.device], str] = {}
_said: set[str] = set()


def broke(name: str, device: torch.device, why: str) -> None:
    """Note that a backend failed on a device, so that `choose` passes it over from now on."""
    _broken[name, device] = why


def choose(call: Call, asked: str) -> Choice:
    """Who computes a call.

    Parameters
    ----------
    call
        The call.
    asked
        `cfm.settings.attention`. What cannot do the call is passed over, unless nothing could make it do it.

    Raises
    ------
    OptionError
        A GPU kernel is asked for, and the tokens are on the CPU.
    """
    if asked in ("sdpa", "eager"):
        return Choice(asked)
    on_gpu = call.device.type == "cuda"
    if asked != "auto" and not on_gpu and not (asked == "triton" and interpreted()):
        raise OptionError(
            f"attention={asked!r} runs on a GPU of NVIDIA, and the tokens are on {str(call.device)!r}. "
            "Type cfm.settings.attention = 'auto', or choose another device."
        )
    if asked == "auto" and not on_gpu:
        return Choice("sdpa")
    # The one that is asked for goes first, the others come in their order.
    order = ORDER if asked == "auto" else (asked, *(name for name in ORDER if name != asked))
    lacking: dict[str, str] = {}
    for name in order:
        why = lacks(name, call)
        if why is None:
            return Choice(name, lacking)
        lacking[name] = why
    raise AssertionError("sdpa can always")


def run[R](call: Call, asked: str, by: Callable[[str], R]) -> R:
    """What ``by(backend)`` gives for the first backend that can do a call and does not fail at it."""
    while True:
        choice = choose(call, asked)
        say(choice, asked)
        try:
            return by(choice.name)
        except KernelError as error:
            # A compiler or driver that fails once fails again: the next backend takes over, for good.
            logger.debug("where it happened", exc_info=error)
            broke(choice.name, call.device, str(error))


def say(choice: Choice, asked: str) -> None:
    """Tell the user once what the backend that should have come first lacks, and who takes its place."""
    if not choice.lacking:
        return
    first, why = next(iter(choice.lacking.items()))
    message = f"attention by {choice.name} ({ABOUT[choice.name]}), not by {first}: {why}."
    if message not in _said:
        _said.add(message)
        (logger.info if asked == "auto" else logger.warning)(message)


def lacks(name: str, call: Call) -> str | None:
    """What a backend lacks for a call; None when nothing does. Starts nothing and compiles nothing."""
    if why := _broken.get((name, call.device)):
        return why
    return _LACKS[name](call)


def _cuda(call: Call) -> str | None:
    if why := _no_gpu(call) or _no_package("cuda.bindings", "cuda-bindings"):
        return why
    if torch.version.hip is not None:
        return "this torch is for GPUs of AMD"
    if call.width != WIDTH:
        return f"heads are {call.width} wide, and there are kernels for {WIDTH}"
    if call.dtype not in _HALF:
        return f"numbers are {_name(call.dtype)}, and there are kernels for float16 and bfloat16"
    if call.some_ask:
        return "only some tokens ask, and the kernels answer all"
    if (capability := torch.cuda.get_device_capability(call.device)) < (8, 0):
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, and 8.0 is needed"
    return None


def _triton(call: Call) -> str | None:
    if call.features:
        return "random features stand in the place of the softmax, and it has none"
    if why := _no_package("triton", "triton"):
        return why
    if not interpreted() and (why := _no_gpu(call)):
        return why
    if call.gradients:
        return "gradients are wanted, and it has none"
    if call.width not in (16, 32, 64, 128):
        return f"heads are {call.width} wide, and it takes 16, 32, 64 or 128"
    if call.dtype not in (*_HALF, torch.float32):
        return f"numbers are {_name(call.dtype)}"
    return None


def _varlen(call: Call) -> str | None:
    if call.features:
        return "random features stand in the place of the softmax, and it has none"
    if why := _no_gpu(call):
        return why
    if not _has_varlen():
        return f"torch {torch.__version__} has no torch.nn.attention.varlen that takes a scale"
    if call.unknown:
        return "cells have unknown tokens, and it has no rule for them"
    if call.dtype not in _HALF:
        return f"numbers are {_name(call.dtype)}, and it takes float16 and bfloat16"
    if call.width % 8 or call.width > 256:
        return f"heads are {call.width} wide, and it takes multiples of 8 up to 256"
    if torch.cuda.get_device_capability(call.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def _sdpa(_: Call) -> str | None:
    return None


_LACKS: dict[str, Callable[[Call], str | None]] = {"cuda": _cuda, "triton": _triton, "varlen": _varlen, "sdpa": _sdpa}


def _no_gpu(call: Call) -> str | None:
    if call.device.type != "cuda":
        return f"it runs on a GPU of NVIDIA, and the tokens are on {str(call.device)!r}"
    # Asked before anything else of the driver: without one, other calls may wait for ever.
    if not torch.cuda.is_available():
        return "torch finds no GPU (torch.cuda.is_available() is False)"
    return None


@lru_cache
def _no_package(module: str, distribution: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    return None if found else f"{distribution} is not installed: pip install 'cfm-tools[cuda]'"


@lru_cache
def _has_varlen() -> bool:
    import inspect

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "scale" in inspect.signature(varlen_attn).parameters


def interpreted() -> bool:
    """Whether Triton runs in its interpreter, which needs no GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
