"""Which machine this is, compiling the kernels for it, and the tests that have to pass before a clock means anything."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu_cases import columns

from cfm.kernels import backends, cache, compiler, composite, launch_performer, ops, performer
from cfm.kernels.plan import plan
from cfm.kernels.sources import architecture_of, units

ROOT = Path(__file__).parents[1]
PACKAGES = ("triton", "flash-attn", "flash-attn-3", "transformers", "cuda-bindings")
SMI = "name,driver_version,vbios_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"

ALL_RAN = "all small shapes ran"


def machine() -> dict[str, Any]:
    """What this run's numbers are of. nvidia-smi is only asked, and changes nothing."""
    properties = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": said(["git", "rev-parse", "HEAD"]),
        "changed since": bool(said(["git", "status", "--porcelain", "--untracked-files=no"])),
        "GPU": properties.name,
        "capability": list(torch.cuda.get_device_capability()),
        "multiprocessors": properties.multi_processor_count,
        "memory, GiB": round(properties.total_memory / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA of torch": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "NVRTC": compiler.missing() or compiler.version(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    asked = said(["nvidia-smi", f"--query-gpu={SMI}", "--format=csv,noheader", "--id=0"])
    found |= dict(zip((f"nvidia-smi {x}" for x in SMI.split(",")), asked.split(", "), strict=False)) if asked else {}
    print(columns([[key, str(x)] for key, x in found.items()]))
    return found


def said(command: list[str]) -> str:
    """What a command prints; nothing where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def build() -> dict[str, Any]:
    """Compile all kernels for this GPU, or find them in the cache."""
    architecture = architecture_of(torch.cuda.get_device_capability())
    rows: list[dict[str, Any]] = []
    for unit in units(architecture):
        code, seconds = cache.get(unit, architecture)
        rows.append({"kernel": str(unit), "KiB": len(code) / 1024, "seconds": seconds})
    took = ["was there" if x["seconds"] is None else f"{x['seconds']:.1f} s" for x in rows]
    print(columns([[x["kernel"], f"{x['KiB']:.0f} KiB", how] for x, how in zip(rows, took, strict=True)]))
    compiled = [x["seconds"] for x in rows if x["seconds"] is not None]
    print(
        f"{architecture}: {len(compiled)} compiled in {sum(compiled):.1f} s, {len(rows) - len(compiled)} from the cache"
    )
    return {"architecture": architecture, "kernels": rows, "compiled": len(compiled), "seconds": sum(compiled)}


def tests(until: float) -> dict[str, Any]:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "tests/kernels/test_gpu.py", "-v", "-p", "no:cacheprovider"]
    command += ["-W", "default", "--tb=short", "--color=no"]
    with tempfile.TemporaryFile("w+") as log:
        left = max(until - time.time(), 5)
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=left)
        except subprocess.TimeoutExpired:
            code = None
        else:
            code = done.returncode
        log.seek(0)
        output = log.read()
    result = test_result(code, output)
    # What passed is only counted.
    shown = [x for x in output.splitlines() if not re.search(r" PASSED +\[", x)]
    print("\n".join(shown)[-6000:].strip())
    return result


def test_result(code: int | None, output: str) -> dict[str, Any]:
    """What pytest says with -v; code None is for tests that did not come to their end."""
    words = ("PASSED", "FAILED", "ERROR", "SKIPPED")
    counts = {
        word.lower(): len(re.findall(rf"^tests.* {word}(?: \(.*\))? +\[", output, re.MULTILINE)) for word in words
    }
    made: dict[str, Any] = {"passed": code == 0 and counts["passed"] > 0, "counts": counts}
    if bad := re.findall(r"^(?:FAILED|ERROR) .*", output, re.MULTILINE):
        made["failures"] = bad
    if code is None:
        made["hung at"] = output.rstrip().splitlines()[-1:]
    return made


def sanitizer(until: float) -> dict[str, Any]:
    """Run our kernels on small shapes under compute-sanitizer, where it is installed."""
    tool = sanitizer_path()
    if tool is None:
        why = "compute-sanitizer is not installed: it comes with the CUDA toolkit"
        print(why)
        return {"why": why}
    found: dict[str, Any] = {}
    # Each tensor gets memory of its own: inside torch's large blocks a read past the end of one would not show.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for i, name in enumerate(("memcheck", "racecheck")):
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, __file__]
        left = max((until - time.time()) / (2 - i), 5)
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=left
            )
        except subprocess.TimeoutExpired:
            found[name] = {"clean": None, "summary": f"did not come to its end in {left:.0f} s"}
        else:
            found[name] = sanitizer_result(done.returncode, done.stdout + done.stderr)
            if not found[name]["clean"]:
                print((done.stdout + done.stderr)[-4000:])
        print(f"{name}: {found[name]}")
    return found


def sanitizer_result(code: int, output: str) -> dict[str, Any]:
    """Whether nothing was found, and the summaries."""
    summary = re.findall(r"^=+ (.*SUMMARY.*)$", output, re.MULTILINE)
    return {"clean": code == 0 and ALL_RAN in output, "summary": "; ".join(summary)}


def sanitizer_path() -> str | None:
    """Where the tool is: on the path, in a toolkit, or in its package for Python."""
    places = [Path("/usr/local/cuda/bin"), *(p for folder in map(Path, sys.path) for p in folder.glob("nvidia/*/bin"))]
    found = [str(place / "compute-sanitizer") for place in places if (place / "compute-sanitizer").exists()]
    return shutil.which("compute-sanitizer") or next(iter(found), None)


def small_shapes() -> None:
    """Each of our kernels once or twice on small cells, for the sanitizer. Inputs are made on the host."""
    lengths = [1, 65, 0, 700]
    offsets = [0, 1, 66, 66, 766]
    genes = torch.arange(766, dtype=torch.int32) % 97
    for dtype in (torch.bfloat16, torch.float16):
        fused = torch.randn(766, 3, 2, 64, generator=torch.Generator().manual_seed(0)).to(dtype).cuda()
        for known in (None, [n // 2 for n in lengths]):
            q, k, v = (x.detach().requires_grad_() for x in fused.unbind(1))
            made = plan(offsets, None, known, 766, 766, q.device, "cuda")
            scale = composite.default_scale(64)
            out, lse = ops.varlen_attention(
                q, k, v, made.offsets, None, made.n_known, made.tiles, made.narrow, made.n_wide, scale, True, "cuda"
            )
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
            sums = torch.zeros(97, 97, dtype=torch.int64, device="cuda")
            counts, bad = sums.int(), sums[0, :1].clone()
            ops.gene_attention_sum(q.detach(), k.detach(), lse, made.offsets, made.n_known, made.narrow, genes.cuda(),
                                   scale, sums, counts, bad, "cuda")  # fmt: skip
        for scope in performer.SCOPES:
            launch_performer.attend(q.detach(), k.detach(), v.detach(), offsets, torch.randn(100, 64), scope, 1e-4)
    torch.cuda.synchronize()
    print(ALL_RAN)


if __name__ == "__main__":
    if why := backends.lacks("cuda", backends.Call(torch.device("cuda", 0), torch.bfloat16, 64)):
        sys.exit(why)
    small_shapes()
