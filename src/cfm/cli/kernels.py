"""``cfm kernels build`` and ``cfm kernels explain``."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from .options import add_command as add
from .options import add_device, finish, positive
from .tables import columns, pairs

if TYPE_CHECKING:
    from .options import Commands


def add_command(commands: Commands) -> None:
    """Add ``kernels`` with its two parts."""
    parser = add(
        commands,
        "kernels",
        _explain,
        summary="compile the kernels for GPUs ahead, or explain which one is used",
        description="""\
The attention of large models has kernels of its own for GPUs of NVIDIA. They are compiled when they are first used and
kept in the cache; `build` does it ahead, on any machine, with or without a GPU. `explain` says who computes attention,
and what the others lack.""",
        examples="""\
  cfm kernels build --arch sm_80 sm_90a
  cfm kernels explain --device cuda --dtype bfloat16 --width 64""",
    )
    parts = parser.add_subparsers(title="parts", metavar="PART", required=True)
    build = add(
        parts,
        "build",
        _build,
        summary="compile the kernels into the cache",
        description="""\
Compile the kernels into the cache: CFM_CACHE_DIR in the environment chooses another one. What is there stays. Needs
no GPU. sm_80 is A100, sm_86 RTX 30, sm_89 RTX 40 and L4, sm_90a H100 and H200, sm_100 B200, sm_120 RTX 50.""",
        examples="  cfm kernels build\n  CFM_CACHE_DIR=/shared/cfm cfm kernels build --arch sm_80 sm_90a",
    )
    build.add_argument("--arch", nargs="+", type=_architecture, metavar="ARCH",
                       help="architectures (default: all those above)")  # fmt: skip
    finish(build)
    explain = add(
        parts,
        "explain",
        _explain,
        summary="say who computes attention, and what the others lack",
        description="""\
Say who computes attention for a device, a dtype and a width of heads, and what each of the others lacks. Nothing is
compiled. CFM_ATTENTION in the environment is heeded.""",
        examples="  cfm kernels explain\n  cfm kernels explain --device cuda --dtype float16 --width 64 --unknown",
    )
    add_device(explain)
    explain.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                         help="of the tokens (default: bfloat16 on a GPU, else float32)")  # fmt: skip
    explain.add_argument(
        "--width", type=positive, default=64, metavar="N", help="width of a head (default: %(default)s)"
    )
    explain.add_argument("--unknown", action="store_true", help="cells have unknown tokens, as in generative models")
    explain.add_argument("--gradients", action="store_true", help="gradients are wanted, as in training")
    finish(explain)
    finish(parser)


def _build(args: argparse.Namespace) -> None:
    from cfm.kernels import cache, compiler
    from cfm.kernels.errors import KernelError
    from cfm.kernels.sources import ARCHITECTURES, units

    if why := compiler.missing():
        raise KernelError(why)
    known = compiler.architectures()
    wanted = args.arch or [name for name in ARCHITECTURES if name.rstrip("a") in known]
    if strange := [name for name in wanted if name.rstrip("a") not in known]:
        raise KernelError(
            f"NVRTC {compiler.version()} does not know {', '.join(strange)}. It knows {', '.join(known)}."
        )
    rows = []
    for architecture in dict.fromkeys(wanted):
        for unit in units(architecture):
            code, seconds = cache.get(unit, architecture)
            how = "was there" if seconds is None else f"{seconds:.1f} s"
            rows.append([architecture, str(unit), f"{len(code) / 1024:.0f} KiB", how])
    print(columns([["architecture", "kernel", "size", "compiled"], *rows]))
    print(f"\nin {cache.folder()}")


def _explain(args: argparse.Namespace) -> None:
    import torch

    from cfm._core.settings import settings
    from cfm.kernels import backends, cache, compiler

    device = torch.device(args.device if args.device not in (None, "auto") else _device())
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    call = backends.Call(device, dtype, args.width, args.unknown, False, args.gradients)
    choice = backends.choose(call, settings.attention)
    rows = [
        ("device", str(device)),
        ("dtype", str(dtype).removeprefix("torch.")),
        ("width of a head", str(args.width)),
        ("setting", settings.attention),
        ("attention by", f"{choice.name}: {backends.ABOUT[choice.name]}"),
    ]
    print(pairs("attention", rows))
    print()
    print(pairs("the others", [(name, backends.lacks(name, call) or "could do it") for name in backends.ORDER
                               if name != choice.name]))  # fmt: skip
    print()
    why = compiler.missing()
    made = [("compiler", why or f"NVRTC {compiler.version()}"), ("kept in", str(cache.folder()))]
    print(pairs("kernels", made))


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _architecture(text: str) -> str:
    if not re.fullmatch(r"sm_\d{2,3}a?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no architecture: they are called sm_80, sm_90a...")
    # Hopper runs what is compiled with its own instructions only.
    return "sm_90a" if text == "sm_90" else text.rstrip("a") if text != "sm_90a" else text
