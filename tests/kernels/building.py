"""Builds the emulation's drivers that are programs of their own."""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent / "emulation"
SOURCES = Path(os.environ.get("CFM_KERNEL_SOURCES", HERE.parents[2] / "src" / "cfm" / "kernels" / "cuda"))
"""Where the kernels lie; a mutated copy is tried by naming its folder in the environment."""

FLAGS = ("-std=c++17", "-O2", "-Wall", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g")

WAITS = ("p::sync_block();", "p::sync_warp();", "p::cp_wait<0>();", "p::cp_wait<1>();")


def lacking() -> str | None:
    """Why no driver can be built; None when one can."""
    return None if compiler() else "no C++ compiler: set CXX, or install g++ or clang++"


def compiler() -> str | None:
    """A C++ compiler: CXX, g++ or clang++; None if there is none."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))), None)


def program(driver: str, bf16: bool, flags: Sequence[str] = (), sources: Path = SOURCES) -> Path:
    """A driver of the emulation as a program, built again only when a text that it may include has changed."""
    folder = Path(tempfile.gettempdir()) / f"cfm-kernel-tests-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    command = [compiler() or "", *FLAGS, f"-DCFM_BF16={bf16:d}", *flags]
    texts = [HERE / driver, *sorted(HERE.glob("*.hpp")), *sorted(sources.glob("*.cuh"))]
    key = hashlib.sha256("\0".join([driver, *command]).encode())
    for path in texts:
        key.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    built = folder / f"{Path(driver).stem}-{key.hexdigest()[:24]}"
    if not built.exists():
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as scratch:
            pass
        full = [*command, f"-I{HERE}", f"-I{sources}", "-o", scratch.name, str(HERE / driver)]
        done = subprocess.run(full, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        Path(scratch.name).chmod(0o700)
        os.replace(scratch.name, built)  # two processes that build at once leave one whole file
    return built


def run(built: Path, *words: str) -> str:
    """What a driver prints; it fails when the driver says that something is wrong."""
    done = subprocess.run([built, *words], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def mutants(*files: str) -> list[tuple[str, int, str]]:
    """File, line (from 0) and text of each barrier and each wait."""
    found = []
    for file in files:
        for i, line in enumerate((SOURCES / file).read_text(encoding="utf-8").splitlines()):
            found += [(file, i, text) for text in WAITS if text in line]
    return found


def survives(file: str, line: int, text: str, driver: str, folder: Path) -> bool:
    """Whether the emulation finds nothing wrong with a kernel that lacks one barrier or wait."""
    for path in SOURCES.glob("*.cuh"):
        shutil.copy(path, folder)
    lines = (folder / file).read_text(encoding="utf-8").splitlines(keepends=True)
    lines[line] = lines[line].replace(text, "")
    (folder / file).write_text("".join(lines), encoding="utf-8")
    built = program(driver, True, sources=folder)
    try:
        return not any(
            subprocess.run([built, *words], capture_output=True, check=False).returncode for words in ((), ("races",))
        )
    finally:
        built.unlink()
