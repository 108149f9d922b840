"""Reading packaged files, and writing files so that a cut never leaves half of one."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import os
import tempfile
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path


def read_tsv(package: str, name: str) -> list[dict[str, str]]:
    """Rows of a packaged ``.tsv.gz`` table as dictionaries of text."""
    with as_file(files(package) / name) as path, gzip.open(path, "rt", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hexdigest(path, "sha256")


def hexdigest(path: Path, kind: str) -> str:
    """Hexadecimal checksum of a file, ``"sha256"`` or ``"md5"``."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, kind).hexdigest()


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `target`, renamed onto it when the block ends well and removed when it does not."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Same folder: a rename is atomic only within one file system. The suffix stays: writers look at it.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        yield temporary
        if temporary.is_file():
            # Some writers make files that only their owner reads; the user's umask decides instead.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
