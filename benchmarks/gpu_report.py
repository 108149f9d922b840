"""What a step of `gpu.py` is told, what it notes while it runs, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_cases import Row, line, no_row

LONGEST = 75
"""Seconds after which a rival that does not come back ends its process. FlexAttention compiles for half of that."""


@dataclass(frozen=True)
class Options:
    """What a step is told.

    Parameters
    ----------
    quick
        Fewer cases.
    repeats
        Repeats of each measurement, where `seconds` are enough for them.
    seconds
        For one measurement.
    until
        By `time.time`: after this no new measurement begins.
    ceiling
        TFLOP/s of a large matrix product in this run.
    """

    quick: bool
    repeats: int
    seconds: float
    until: float
    ceiling: float | None


def write_json(path: Path, data: object) -> None:
    """Write a file at once: a reader finds the old one or the new one."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as scratch:
        try:
            json.dump(data, scratch, indent=1, default=str)
            scratch.close()
            os.chmod(scratch.name, 0o644)  # temporary files are for their owner only
            os.replace(scratch.name, path)
        except BaseException:
            os.unlink(scratch.name)
            raise


class Progress:
    """Rows of a step in a file, written after each, so that what a dying process had measured is there.

    A process that takes over from a dead one reads the file: it leaves out what was done, and whom the other one died of.
    """

    def __init__(self, path: Path, table: str) -> None:
        self.path, self.table = path, table
        self.rows: list[Row] = []
        self.broken: dict[str, str] = {}
        self._now: list[str] | None = None
        self._title = ""
        if path.exists():
            kept = json.loads(path.read_text())
            self.rows, self.broken = kept["rows"], kept["broken"]
            if kept["now"]:
                case, rival = kept["now"]
                self.broken[rival] = f"ended the process, or never ended, at {case}"
                self.add(no_row(table, case, rival, "run", self.broken[rival]))

    def has(self, case: str, rival: str) -> bool:
        """Whether there is a row."""
        return any((x["case"], x["rival"]) == (case, rival) for x in self.rows)

    def title(self, text: str) -> None:
        """What the next rows are of; printed with the first."""
        self._title = text

    @contextlib.contextmanager
    def trying(self, case: str, rival: str) -> Iterator[None]:
        """A block in which a rival runs. Whoever ends the process in it, or hangs, is known to the next process."""
        self._now = [case, rival]
        self._write()
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
        self._now = None
        self._write()

    def add(self, made: Row) -> None:
        """Note a row and print it."""
        if self._title:
            print(self._title)
            self._title = ""
        self.rows.append(made)
        print(line(made), flush=True)
        self._write()

    def done(self) -> dict[str, Any]:
        """All rows."""
        self._write()
        return {"rows": self.rows}

    def _write(self) -> None:
        write_json(self.path, {"rows": self.rows, "broken": self.broken, "now": self._now})
