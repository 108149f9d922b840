"""Getting one file over HTTP through bad connections: a downloader for pooch that goes on where it was cut."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cfm._core.logging import logger, progress

from .entry import ModelFile, readable

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 16
"""Bytes per write: at most this much is lost when a connection is cut."""
_HEADWAY = 8 << 20
"""Bytes after which a new cut counts as the first again."""
_PASSING = (408, 425, 429)
"""Refusals that pass with time, as do all from 500 on."""


class TransferError(Exception):
    """A file could not be had; the message is a sentence that says why."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Parameters
    ----------
    connect
        Seconds until it takes the connection.
    stall
        Seconds in which it may send nothing. A server that keeps sending is never too slow.
    tries
        Attempts in a row without headway.
    pause
        Seconds before the second attempt; doubled before each further one.
    """

    connect: float = 10.0
    stall: float = 30.0
    tries: int = 4
    pause: float = 0.5


@dataclass(frozen=True)
class ResumingDownloader:
    """What `pooch.retrieve` takes as its downloader.

    Parameters
    ----------
    file
        What is expected. Only a file whose checksum is known is resumed: nothing else tells that the halves fit.
    part
        Holds what has come so far. It stays when the download fails or the process ends.
    patience
        How long to wait.
    """

    file: ModelFile
    part: Path
    patience: Patience

    def __call__(self, url: str, output_file: str, _pooch: Any) -> None:
        """Download, check, and move to `output_file`."""
        had = self._have()
        self._receive(url)
        problem = self.file.problem(self.part)
        if problem and had:
            logger.warning("%s, resumed, %s: starting over.", self.file.name, problem)
            self.part.unlink()
            self._receive(url)
            problem = self.file.problem(self.part)
        if problem:
            self.part.unlink(missing_ok=True)
            raise TransferError(
                f"What {url} sent {problem}; it was thrown away, and the cache is as it was. The file was changed at its "
                "source, or by something on the way. Try again later, or update cfm."
            )
        os.replace(self.part, output_file)

    def _receive(self, url: str) -> None:
        """Until the part is complete, or patience ends."""
        import requests

        failures = 0
        with requests.Session() as session, progress(self.file.size or 0, self.file.name, unit="B") as bar:
            while True:
                had = self._have()
                try:
                    return self._request(session, url, bar)
                except requests.RequestException as error:
                    have = self._have()
                    failures = 1 if have - had >= _HEADWAY else failures + 1
                    here = f" {readable(have)} of it are here, and the next attempt goes on from there." if have else ""
                    what = f"{self.file.name} from {urlsplit(url).netloc}: {_reason(error)}.{here}"
                    if failures >= self.patience.tries:
                        raise TransferError(f"{what} Gave up after {failures} attempts without headway.") from error
                    logger.warning("%s Attempt %d of %d follows.", what, failures + 1, self.patience.tries)
                    time.sleep(self.patience.pause * 2 ** (failures - 1))

    def _request(self, session: requests.Session, url: str, bar: Any) -> None:
        """One attempt at what is missing of the part."""
        import requests

        have = self._have()
        if have and have == self.file.size:
            return  # stopped between the last byte and the move
        # Compressed on the way, neither the length nor the range would be that of the file.
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with self._get(session, url, headers) as answer:
            if have and (
                answer.status_code == 416 or (answer.status_code == 206 and not self._continues(answer, have))
            ):
                logger.warning("%s has changed at its source: starting over.", self.file.name)
                self.part.unlink()
                return self._request(session, url, bar)
            _check_status(answer, url)
            start = have if answer.status_code == 206 else 0  # a server that knows no ranges sends all
            length = answer.headers.get("Content-Length", "")
            total = start + int(length) if length.isdecimal() else self.file.size
            if self.file.size not in (None, total):
                raise TransferError(
                    f"{url} has {total:,} bytes, not the {self.file.size:,} that cfm knows: the file was changed at its "
                    "source, or something on the way sent another. Update cfm, or try again later."
                )
            bar.update(start - bar.n)
            self.part.parent.mkdir(parents=True, exist_ok=True)
            with self.part.open("ab" if start else "wb", buffering=0) as out:
                for chunk in answer.iter_content(_CHUNK):
                    out.write(chunk)
                    bar.update(len(chunk))
        if total and self.part.stat().st_size < total:
            raise requests.ConnectionError("the connection was closed early")

    @contextlib.contextmanager
    def _get(self, session: requests.Session, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        timeout = (self.patience.connect, self.patience.stall)
        with session.get(url, headers=headers, stream=True, timeout=timeout) as answer:
            yield answer

    def _have(self) -> int:
        """Bytes to go on from. A part that cannot be the beginning of the file is removed."""
        if not self.part.is_file():
            return 0
        size = self.part.stat().st_size
        if self.file.checksum and size <= (self.file.size or size):
            return size
        self.part.unlink()
        return 0

    def _continues(self, answer: requests.Response, have: int) -> bool:
        """Whether a partial answer is the rest of the file that is expected."""
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if given is None or int(given[1]) != have:
            return False
        return given[2] == "*" or self.file.size in (None, int(given[2]))


def _check_status(answer: requests.Response, url: str) -> None:
    """Refusals that will not pass end the download; the others count as a broken connection."""
    code = answer.status_code
    if code >= 500 or code in _PASSING:
        answer.raise_for_status()
    if code == 404 or code == 410:
        raise TransferError(
            f"{url} is not there ({code} {answer.reason}): the file was moved or removed at its source, or a proxy on the "
            "way hides it. Open the address in a browser; update cfm if it is gone."
        )
    if code not in (200, 206):
        msg = f"{url} was refused ({code} {answer.reason}): it may need an account, or a proxy on the way forbids it."
        raise TransferError(msg)


def _reason(error: Exception) -> str:
    """The innermost reason, without the representations of connection objects that libraries wrap around it."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return "nothing was sent for too long"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    return re.sub(r"^.*?(\[Errno [^)'\"]+|Remote end closed[^)'\"]*).*$", r"\1", str(error)).rstrip(".")
