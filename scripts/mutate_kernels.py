"""Removes each barrier, wait and fence of the forward kernels in turn, and shows that the emulation notices.

A suite that passes without one of them proves nothing about it. For each such call the kernel is copied without it, built for
the CPU, and run over the cases of `tests/kernels/test_emulation_forward.py`; the first failure ends it. Prints a table; the exit
code is 1 if a mutant survives.

    python scripts/mutate_kernels.py [--kernel varlen_fwd] [--line 123] [--jobs 2]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "cfm" / "kernels" / "cuda"
EMULATION = ROOT / "tests" / "kernels" / "emulation"

VARIANTS = {"varlen_fwd": "bf16_m64", "varlen_fwd_sm90": "bf16_sm90"}
"""Each kernel file, and the variant in which its mutants run: the tile size changes no barrier."""

CALLS = re.compile(
    r"p::(?:sync_block|sync_warp|cp_wait<\d>|cp_commit|mbar_wait|mbar_arrive|mbar_expect|mbar_fence_init|named_sync<[^>]*>"
    r"|named_arrive<[^>]*>|fence_async|wgmma_fence|wgmma_commit|wgmma_wait<\d>)\("
)

CHILD = """
import sys
from pathlib import Path
import harness
variant = harness.VARIANTS[sys.argv[1]]
library = harness.build("forward.cpp", variant.defines, sources=Path(sys.argv[2]), flags=("-Wno-unused-variable",))
print("built", flush=True)
# The cheap ones first, since one failure is enough.
for case, races in sorted(harness.cases(variant), key=lambda item: (sum(item[0].lengths), item[1])):
    try:
        harness.check(variant, case, 1, races=races, library=library)
    except (AssertionError, harness.EmulationError) as error:
        print(f"{case.name}{' with race clocks' if races else ''}: {error}")
        raise SystemExit(3)
"""


@dataclass(frozen=True)
class Mutant:
    """A kernel file without one call."""

    kernel: str
    line: int
    call: str
    text: str


def mutants(kernel: str) -> list[Mutant]:
    """All of a kernel, in the order of its text."""
    text = (SOURCES / f"{kernel}.cuh").read_text()
    made = []
    for found in CALLS.finditer(text):
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if text.rfind("//", text.rfind("\n", 0, found.start()) + 1, found.start()) >= 0:
            continue
        made.append(
            Mutant(
                kernel,
                text.count("\n", 0, found.start()) + 1,
                text[found.start() : end],
                f"{text[: found.start()]}(void)0{text[end:]}",
            )
        )
    return made


def laxer(kernel: str) -> list[Mutant]:
    """Waits that let one group more run on."""
    text = (SOURCES / f"{kernel}.cuh").read_text()
    made = []
    for found in re.finditer(r"p::(cp_wait|wgmma_wait)<(\d)>", text):
        changed = f"p::{found[1]}<{int(found[2]) + 1}>"
        line = text.count("\n", 0, found.start()) + 1
        made.append(
            Mutant(kernel, line, f"{found[0]} -> {changed[3:]}", text[: found.start()] + changed + text[found.end() :])
        )
    return made


def verdict(mutant: Mutant) -> tuple[bool, str, float]:
    """Whether the suite failed, of what, and the seconds that it took."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for path in SOURCES.glob("*.cuh"):
            shutil.copy(path, folder)
        (Path(folder) / f"{mutant.kernel}.cuh").write_text(mutant.text)
        environment = {**os.environ, "PYTHONPATH": str(EMULATION), "TMPDIR": folder, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CHILD, VARIANTS[mutant.kernel], folder]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        except subprocess.TimeoutExpired:
            return True, "never ends", time.monotonic() - start
    seconds = time.monotonic() - start
    if not done.stdout.startswith("built"):
        raise SystemExit(f"{mutant.kernel}:{mutant.line} without {mutant.call} does not build:\n{done.stderr}")
    if done.returncode == 0:
        return False, "SURVIVED", seconds
    said = done.stdout.splitlines()[1:] or [f"crashed ({done.returncode})"]
    return True, said[-1], seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=VARIANTS, help="only this file")
    parser.add_argument("--line", type=int, help="only mutants of this line")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    kernels = [arguments.kernel] if arguments.kernel else list(VARIANTS)
    found = [mutant for kernel in kernels for make in (mutants, laxer) for mutant in make(kernel)]
    found = [mutant for mutant in found if arguments.line in (None, mutant.line)]
    survived = 0
    print("| kernel | line | without | noticed by | s |\n| --- | --- | --- | --- | --- |")
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, (noticed, how, seconds) in zip(found, pool.map(verdict, found), strict=True):
            survived += not noticed
            call = mutant.call.replace("p::", "")
            print(f"| {mutant.kernel} | {mutant.line} | `{call}` | {how} | {seconds:.0f} |", flush=True)
    print(f"\n{len(found)} mutants, {survived} survived")
    return int(survived > 0)


if __name__ == "__main__":
    raise SystemExit(main())
