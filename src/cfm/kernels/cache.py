"""Machine code that was compiled once, kept on disk for all later processes.

The name of a file is a digest of all that its content follows from, so nothing can be stale. It starts with a digest of
the content, so a damaged file is seen, and made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cfm._core.logging import logger
from cfm._core.resources import atomic_path
from cfm._core.settings import settings

from . import compiler
from .sources import Unit, included, text

_MARK = b"cfm kernel 1\n"
_told: set[str] = set()


def folder() -> Path:
    """Where machine code is kept: ``kernels`` in `cfm.settings.cache_dir`, or in the folder for caches of the system."""
    import pooch

    return Path(os.path.expanduser(settings.cache_dir or pooch.os_cache("cfm"))).absolute() / "kernels"


def digest(unit: Unit, architecture: str, version: str) -> str:
    """Digest of all that the machine code of a unit follows from."""
    name = f"{unit.file}.cuh"
    hashed = hashlib.sha256()
    for part in (version, architecture, *compiler.OPTIONS, *unit.options):
        hashed.update(f"{part}\0".encode())
    for file in (name, *sorted(included(name))):
        hashed.update(f"{file}\0{text(file)}\0".encode())
    return hashed.hexdigest()[:32]


def cubin(unit: Unit, architecture: str) -> bytes:
    """Machine code of a unit: from the cache, or compiled and put there.

    Parameters
    ----------
    unit
        What is wanted.
    architecture
        Such as ``"sm_80"``.

    Raises
    ------
    KernelError
        It does not compile.
    """
    return get(unit, architecture)[0]


def get(
    unit: Unit, architecture: str, compile_unit: Callable[[Unit, str], tuple[bytes, str]] | None = None
) -> tuple[bytes, float | None]:
    """As `cubin`, and how many seconds the compiler took; None when the cache had it."""
    compile_unit = compile_unit or compiler.compile_unit
    path = folder() / f"{unit.file}-{architecture}-{digest(unit, architecture, compiler.version())}.cubin"
    if (kept := _read(path)) is not None:
        return kept, None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(path))
        except OSError as error:
            _warn(error)
            return _timed(unit, architecture, compile_unit)
        # Another process may have been faster.
        if (kept := _read(path)) is not None:
            return kept, None
        made, seconds = _timed(unit, architecture, compile_unit)
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(_MARK + hashlib.sha256(made).hexdigest().encode() + b"\n" + made)
        except OSError as error:
            _warn(error)
        return made, seconds


def _timed(
    unit: Unit, architecture: str, compile_unit: Callable[[Unit, str], tuple[bytes, str]]
) -> tuple[bytes, float]:
    start = time.perf_counter()
    made, _ = compile_unit(unit, architecture)
    seconds = time.perf_counter() - start
    logger.info("compiled %s for %s in %.1f s; later processes find it in the cache.", unit, architecture, seconds)
    return made, seconds


def _read(path: Path) -> bytes | None:
    """What a file holds; None when there is none, or a damaged one."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head, _, made = content.removeprefix(_MARK).partition(b"\n")
    if content.startswith(_MARK) and made and head == hashlib.sha256(made).hexdigest().encode():
        return made
    logger.warning("%s is damaged: it is compiled again.", path)
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time for each file: the others wait, and find what it made."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.stem}.lock")):
        yield


def _warn(error: OSError) -> None:
    place = folder()
    if str(place) not in _told:
        _told.add(str(place))
        logger.warning(
            "%s cannot be written to (%s): kernels are compiled anew in every process. Choose another folder: "
            "cfm.settings.cache_dir, or CFM_CACHE_DIR in the environment.",
            place,
            error.strerror or error,
        )
