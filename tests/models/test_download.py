"""Fetching models, against a real HTTP server on loopback that misbehaves on request, and from folders."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest

import cfm
from cfm import models
from cfm.errors import DownloadError, OptionError, UnknownModelError
from cfm.models import registry
from cfm.models.download import cache_folder, fetch_files
from cfm.models.entry import Entry, ModelFile
from cfm.models.transfer import Patience

ROOT = Path(__file__).parent.parent / "data" / "fixtures"
SERVED = ROOT / "geneformer"
CONFIG, WEIGHTS = "V2_mlm/config.json", "V2_mlm/model.safetensors"
TOKENS, MEDIANS = "dictionaries/token_dictionary_gc104M.pkl", "dictionaries/gene_median_dictionary_gc104M.pkl"
HALF = 1 << 17
HASTY = Patience(connect=5, stall=0.4, tries=3, pause=0.01)


@dataclass
class Server:
    """What the server does with each path, and what it was asked for."""

    url: str = ""
    ranges: bool = True
    tricks: dict[str, list[str]] = field(default_factory=dict)
    """By path, what to do at the first request, the second...; and then behave."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and range of each request."""
    sent: int = 0
    """Bytes of files."""

    def requests(self, path: str) -> list[str]:
        return [wanted for asked, wanted in self.asked if asked == path]


@pytest.fixture
def server() -> Iterator[Server]:
    """Serves the Geneformer fixtures."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.lstrip("/")
            wanted = self.headers.get("Range", "")
            state.asked.append((path, wanted))
            trick = state.tricks.get(path, []).pop(0) if state.tricks.get(path) else ""
            if trick.isdecimal():
                self.send_error(int(trick))
                return
            body = (SERVED / path).read_bytes()
            match trick:
                case "changed":  # the same length, other content
                    body = bytes(reversed(body))
                case "truncated":  # complete, as far as HTTP goes
                    body = body[:HALF]
                case "longer":
                    body += b"more"
                case "no json":
                    body = b"<html>Please log in</html>"
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and state.ranges else 0  # type: ignore[index]
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            rest = body[start:]
            if trick == "no length":
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            if trick in ("cut", "stall"):
                rest = rest[: HALF if not start else 70_000]
            pieces = 8 if trick == "slow" else 1
            for i in range(pieces):
                piece = rest[len(rest) * i // pieces : len(rest) * (i + 1) // pieces]
                self.wfile.write(piece)
                state.sent += len(piece)
                time.sleep(0.15 if trick == "slow" else 0)
            if trick == "stall":
                time.sleep(1)
            if trick in ("cut", "stall"):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{httpd.server_port}/"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def known(path: str) -> ModelFile:
    data = (SERVED / path).read_bytes()
    return ModelFile(path, len(data), hashlib.sha256(data).hexdigest())


def entry_for(url: str, *, folder: str = "V2_mlm", files: tuple[ModelFile, ...] = ()) -> Entry:
    files = files or (ModelFile(CONFIG), known(WEIGHTS), known(TOKENS), known(MEDIANS))
    return Entry(
        "a-model", "geneformer", "human", "MIT", "A model.", store="fixtures", folder=folder, files=files, url=url
    )


@pytest.fixture
def entry(server: Server) -> Entry:
    return entry_for(server.url)


@pytest.fixture
def weights(server: Server) -> Entry:
    """An entry with one file."""
    return entry_for(server.url, files=(known(WEIGHTS),))


def content(folder: Path) -> dict[str, str]:
    """Files below a folder, locks left out, and what they hold."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}
    return {name: digest for name, digest in digests.items() if not name.startswith(".locks")}


def source(*paths: str) -> dict[str, str]:
    return {f"fixtures/{path}": hashlib.sha256((SERVED / path).read_bytes()).hexdigest() for path in paths}


PART = f".incoming/fixtures/{WEIGHTS}.part"


def test_all_files_arrive_and_are_not_asked_for_again(server: Server, entry: Entry, tmp_path: Path) -> None:
    folder = fetch_files(entry, tmp_path, patience=HASTY)
    assert folder == tmp_path / "fixtures" / "V2_mlm"
    assert content(tmp_path) == source(CONFIG, WEIGHTS, TOKENS, MEDIANS)
    assert len(server.asked) == 4
    assert fetch_files(entry, tmp_path, patience=HASTY) == folder
    assert fetch_files(entry, tmp_path, offline=True) == folder
    assert len(server.asked) == 4
    # Files that another model of the source needs too are there already.
    other = entry_for(server.url, folder="V1_mlm", files=(ModelFile("V1_mlm/config.json"), known(TOKENS)))
    assert other.available(tmp_path) == "download, 0 bytes"
    fetch_files(other, tmp_path, patience=HASTY)
    assert [path for path, _ in server.asked[4:]] == ["V1_mlm/config.json"]
    # What arrived is readable by whoever may read the cache, and pooch is as loud as before.
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == (SERVED / WEIGHTS).stat().st_mode & 0o666
    assert pooch.get_logger().level != 30


def test_a_cut_connection_goes_on_where_it_stopped(
    server: Server, weights: Entry, tmp_path: Path, said: list[str]
) -> None:
    server.tricks[WEIGHTS] = ["cut", "cut"]
    fetch_files(weights, tmp_path, patience=HASTY)
    assert content(tmp_path) == source(WEIGHTS)
    # What comes is written in pieces of 64 kB, and only a piece that was cut is asked for again.
    assert server.requests(WEIGHTS) == ["", f"bytes={HALF}-", f"bytes={HALF + 65_536}-"]
    assert server.sent == (SERVED / WEIGHTS).stat().st_size + 70_000 - 65_536
    assert (
        sum(
            "the connection was cut. 131 kB of it are here, and the next attempt goes on from there. Attempt 2 of 3"
            in m
            for m in said
        )
        == 1
    )


def test_a_part_stays_for_the_next_call(server: Server, weights: Entry, tmp_path: Path) -> None:
    server.tricks[WEIGHTS] = ["cut", "503", "503"]
    with pytest.raises(DownloadError, match=r"answered 503 .*131 kB of it are here.* after 3 attempts") as raised:
        fetch_files(weights, tmp_path, patience=HASTY)
    assert 'cfm.models.fetch("a-model", folder="FOLDER")' in str(raised.value)
    assert isinstance(raised.value, OSError)
    assert list(content(tmp_path)) == [PART]
    assert (tmp_path / PART).read_bytes() == (SERVED / WEIGHTS).read_bytes()[:HALF]
    asked = len(server.asked)
    fetch_files(weights, tmp_path, patience=HASTY)
    assert server.asked[asked:] == [(WEIGHTS, f"bytes={HALF}-")]
    assert content(tmp_path) == source(WEIGHTS)


def test_a_server_without_ranges_sends_all(server: Server, weights: Entry, tmp_path: Path) -> None:
    server.ranges = False
    server.tricks[WEIGHTS] = ["cut"]
    fetch_files(weights, tmp_path, patience=HASTY)
    assert server.requests(WEIGHTS) == ["", f"bytes={HALF}-"]
    assert content(tmp_path) == source(WEIGHTS)


def test_a_server_that_tells_no_length(server: Server, entry: Entry, tmp_path: Path) -> None:
    server.tricks = {WEIGHTS: ["no length"], CONFIG: ["no length"]}
    fetch_files(entry, tmp_path, patience=HASTY)
    assert content(tmp_path) == source(CONFIG, WEIGHTS, TOKENS, MEDIANS)


@pytest.mark.parametrize("size", [HALF, 251_424, 300_000])
def test_a_part_of_another_file_is_started_over(server: Server, weights: Entry, tmp_path: Path, size: int) -> None:
    (tmp_path / PART).parent.mkdir(parents=True)
    (tmp_path / PART).write_bytes(b"x" * size)
    fetch_files(weights, tmp_path, patience=HASTY)
    assert content(tmp_path) == source(WEIGHTS)
    assert server.requests(WEIGHTS) == {HALF: [f"bytes={HALF}-", ""]}.get(size, [""])


def test_a_part_that_is_complete_needs_no_request(server: Server, weights: Entry, tmp_path: Path) -> None:
    (tmp_path / PART).parent.mkdir(parents=True)
    shutil.copy(SERVED / WEIGHTS, tmp_path / PART)
    fetch_files(weights, tmp_path, patience=HASTY)
    assert (server.asked, content(tmp_path)) == ([], source(WEIGHTS))


@pytest.mark.parametrize("trick", ["longer", "truncated"])
def test_a_resumed_file_of_another_size(server: Server, weights: Entry, tmp_path: Path, trick: str) -> None:
    server.tricks[WEIGHTS] = ["cut", trick]
    fetch_files(weights, tmp_path, patience=HASTY)
    assert server.requests(WEIGHTS) == ["", f"bytes={HALF}-", ""]
    assert content(tmp_path) == source(WEIGHTS)


def test_a_truncated_file_is_refused_before_it_is_read(server: Server, weights: Entry, tmp_path: Path) -> None:
    server.tricks[WEIGHTS] = ["truncated"]
    with pytest.raises(DownloadError, match=rf"{WEIGHTS} has 131,072 bytes, not the 251,424 that cfm knows"):
        fetch_files(weights, tmp_path, patience=HASTY)
    assert content(tmp_path) == {}


def test_a_wrong_checksum_never_lands(server: Server, weights: Entry, tmp_path: Path) -> None:
    server.tricks[WEIGHTS] = ["changed"]
    found = hashlib.sha256(bytes(reversed((SERVED / WEIGHTS).read_bytes()))).hexdigest()
    with pytest.raises(
        DownloadError, match=rf"has the SHA-256 {found}, not {weights.files[0].sha256}; it was thrown away"
    ):
        fetch_files(weights, tmp_path, patience=HASTY)
    assert (content(tmp_path), len(server.asked)) == ({}, 1)


def test_what_has_no_checksum_has_to_be_json(server: Server, entry: Entry, tmp_path: Path) -> None:
    server.tricks[CONFIG] = ["no json"]
    with pytest.raises(DownloadError, match=r"config.json sent is no JSON"):
        fetch_files(entry, tmp_path, patience=HASTY)
    assert content(tmp_path) == {}


@pytest.mark.parametrize(("code", "says"), [("404", "is not there"), ("403", "was refused")])
def test_refusals_name_the_address_and_are_final(
    server: Server, weights: Entry, tmp_path: Path, code: str, says: str
) -> None:
    server.tricks[WEIGHTS] = [code, code]
    with pytest.raises(DownloadError, match=rf"{server.url}{WEIGHTS} {says} \({code} "):
        fetch_files(weights, tmp_path, patience=HASTY)
    assert (content(tmp_path), len(server.asked)) == ({}, 1)


def test_a_slow_server_is_waited_for(server: Server, weights: Entry, tmp_path: Path) -> None:
    server.tricks[WEIGHTS] = ["slow"]
    before = time.monotonic()
    fetch_files(weights, tmp_path, patience=HASTY)
    assert time.monotonic() - before > 2 * HASTY.stall
    assert len(server.asked) == 1


def test_a_server_that_falls_silent_is_asked_again(
    server: Server, weights: Entry, tmp_path: Path, said: list[str]
) -> None:
    server.tricks[WEIGHTS] = ["stall"]
    fetch_files(weights, tmp_path, patience=HASTY)
    assert server.requests(WEIGHTS) == ["", f"bytes={HALF}-"]
    assert content(tmp_path) == source(WEIGHTS)
    assert any("nothing was sent for too long" in message for message in said)


def test_no_server_at_all(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = entry_for(f"http://127.0.0.1:{taken.getsockname()[1]}/", files=(known(WEIGHTS),))
        with pytest.raises(
            DownloadError, match=r"Connection refused.* after 3 attempts .*\n.*`cfm info a-model` lists the addr"
        ):
            fetch_files(nobody, tmp_path, patience=HASTY)


def test_offline_touches_no_network_and_says_what_is_missing_where(
    server: Server, entry: Entry, tmp_path: Path
) -> None:
    with pytest.raises(DownloadError) as raised:
        fetch_files(entry, tmp_path, offline=True)
    for file in entry.files:
        assert f"{tmp_path / 'fixtures' / file.path} is missing" in str(raised.value)
    assert "CFM_OFFLINE" in str(raised.value)
    assert (server.asked, content(tmp_path)) == ([], {})


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_file_is_replaced_only_by_a_good_one(
    server: Server, weights: Entry, tmp_path: Path, said: list[str], damage: str
) -> None:
    target = fetch_files(weights, tmp_path, patience=HASTY) / "model.safetensors"
    good = target.read_bytes()
    bad = good[:-1] if damage == "cut" else bytes(reversed(good))
    target.write_bytes(bad)
    # Each load looks at sizes, each fetch at the content.
    assert weights.available(tmp_path) == {"cut": "download, 251 kB", "changed": "cached"}[damage]
    server.tricks[WEIGHTS] = ["404"]
    with pytest.raises(DownloadError):
        fetch_files(weights, tmp_path, patience=HASTY)
    assert target.read_bytes() == bad
    with pytest.raises(DownloadError, match="has 251,423 bytes" if damage == "cut" else "has the SHA-256"):
        fetch_files(weights, tmp_path, offline=True)
    fetch_files(weights, tmp_path, patience=HASTY)
    assert target.read_bytes() == good
    assert any(f"{target} has" in message and "replaced as soon as" in message for message in said)


def test_more_than_the_disk_holds(server: Server, tmp_path: Path) -> None:
    huge = entry_for(server.url, files=(replace(known(WEIGHTS), size=10**18),))
    with pytest.raises(DownloadError, match=r"needs 1,000,000,000 GB more, and the disk of .* CFM_CACHE_DIR"):
        fetch_files(huge, tmp_path, patience=HASTY)
    assert server.asked == []


_PROCESS = """
import sys
from pathlib import Path
from cfm.models.download import fetch_files
from cfm.models.entry import Entry, ModelFile
url, cache, path, size, digest = sys.argv[1:]
file = ModelFile(path, int(size), digest)
entry = Entry("a-model", "x", "human", "MIT", "A model.", store="fixtures", folder="V2_mlm", files=(file,), url=url)
print("ready", flush=True)
sys.stdin.readline()
fetch_files(entry, Path(cache))
"""


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Callable[[int], list[subprocess.Popen[str]]]]:
    """``start(n)``: processes that fetch the weights at the same time."""
    file = known(WEIGHTS)
    words = [sys.executable, "-c", _PROCESS, server.url, str(tmp_path), file.path, str(file.size), str(file.sha256)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started: list[subprocess.Popen[str]] = []

    def make(n: int) -> list[subprocess.Popen[str]]:
        started.extend(subprocess.Popen(words, text=True, **pipes) for _ in range(n))  # type: ignore[call-overload]
        assert [process.stdout.readline() for process in started] == ["ready\n"] * n
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        return started

    yield make
    for process in started:
        process.kill()
        process.communicate()


def test_one_process_downloads_and_the_other_waits(server: Server, tmp_path: Path, start) -> None:
    server.tricks[WEIGHTS] = ["slow"]
    processes = start(2)
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert server.requests(WEIGHTS) == [""]
    assert content(tmp_path) == source(WEIGHTS)
    assert sum("another process is bringing model.safetensors" in text for text in said) == 1


def test_a_killed_process_leaves_its_part_and_no_half_file(
    server: Server, weights: Entry, tmp_path: Path, start
) -> None:
    server.tricks[WEIGHTS] = ["slow"]
    (process,) = start(1)
    deadline = time.monotonic() + 30
    while not (tmp_path / PART).is_file() or (tmp_path / PART).stat().st_size < 1 << 16:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    have = (tmp_path / PART).stat().st_size
    assert 0 < have < weights.files[0].size
    assert not (tmp_path / "fixtures" / WEIGHTS).exists()
    # The lock ended with the process.
    fetch_files(weights, tmp_path, patience=HASTY)
    assert server.requests(WEIGHTS) == ["", f"bytes={have}-"]
    assert (tmp_path / "fixtures" / WEIGHTS).read_bytes() == (SERVED / WEIGHTS).read_bytes()


# -- From folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["source", "model's folder", "flat"])
def test_a_folder_takes_the_place_of_the_network(entry: Entry, server: Server, tmp_path: Path, layout: str) -> None:
    given = SERVED if layout == "source" else SERVED / "V2_mlm"
    if layout == "flat":
        given = tmp_path / "given"
        given.mkdir()
        for file in entry.files:
            shutil.copy(SERVED / file.path, given)
    fetch_files(entry, tmp_path / "cache", folder=given, offline=True)
    assert content(tmp_path / "cache") == source(CONFIG, WEIGHTS, TOKENS, MEDIANS)
    assert server.asked == []


def test_what_a_folder_lacks_is_downloaded(entry: Entry, server: Server, tmp_path: Path) -> None:
    shutil.copytree(SERVED / "V2_mlm", tmp_path / "given")
    by_hand = tuple(replace(file, by_hand=file.path.startswith("V2_mlm")) for file in entry.files)
    removed = replace(entry, files=by_hand, where="Look in the attic.")
    cache = tmp_path / "cache"
    assert removed.available(cache) == "by hand"
    with pytest.raises(DownloadError, match=r"cannot download it\. Look in the attic\.\nFiles: config\.json, model\."):
        fetch_files(removed, cache, patience=HASTY)
    assert server.asked == []
    fetch_files(removed, cache, folder=tmp_path / "given", patience=HASTY)
    assert content(cache) == source(CONFIG, WEIGHTS, TOKENS, MEDIANS)
    assert {path for path, _ in server.asked} == {TOKENS, MEDIANS}


def test_a_wrong_file_in_a_folder_is_named_and_nothing_is_taken(entry: Entry, tmp_path: Path) -> None:
    given = tmp_path / "given"
    shutil.copytree(SERVED / "V2_mlm", given)
    with (given / "model.safetensors").open("r+b") as handle:
        handle.write(b"x")
    with pytest.raises(
        DownloadError, match=rf"model.safetensors has the SHA-256 .*, not {entry.files[1].sha256}: it is"
    ):
        fetch_files(entry, tmp_path / "cache", folder=given, patience=HASTY)
    (given / "model.safetensors").write_bytes(b"half")
    with pytest.raises(DownloadError, match=r"model.safetensors has 4 bytes, not 251,424.*half downloaded"):
        fetch_files(entry, tmp_path / "cache", folder=given, patience=HASTY)
    assert content(tmp_path / "cache") == {} if (tmp_path / "cache").exists() else True


# -- By name --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and no network."""
    with cfm.settings.override(cache_dir=tmp_path / "cache", offline=True):
        registry._show_notice.cache_clear()
        yield tmp_path / "cache" / "models"


def test_by_hand_one_message_says_where_what_and_how(cache: Path, said: list[str]) -> None:
    for call in (models.fetch, models.load):
        with pytest.raises(DownloadError) as raised:
            call("scgpt-human")
        for word in (
            "https://github.com/bowang-lab/scGPT",
            "whole-human",
            "args.json, best_model.pt, vocab.json",
            'cfm.models.fetch("scgpt-human", folder="~/Downloads/scGPT_human")',
            "cfm fetch scgpt-human --folder ~/Downloads/scGPT_human",
            str(cache),
            'model="scgpt-human"',
        ):
            assert word in str(raised.value)
    assert [m for m in said if m.startswith("WARNING scgpt-human: the licence")] == said, "the notice, and once"
    assert len(said) == 1


def test_by_hand_a_folder_is_checked_and_copied(cache: Path, tmp_path: Path, said: list[str]) -> None:
    given = ROOT / "scgpt" / "human"
    with pytest.raises(DownloadError, match=r"args.json has the SHA-256 .*, not c18e0.* \(checksum from the log of a"):
        models.fetch("scgpt-human", folder=given)
    assert not cache.exists()
    folder = models.fetch("scgpt-brain", folder=str(given))
    assert folder == cache / "scgpt" / "scGPT_brain"
    assert (folder / "best_model.pt").read_bytes() == (given / "best_model.pt").read_bytes()
    assert any("best_model.pt: no checksum of this file is known" in message for message in said)
    assert models.list().loc[["scgpt-brain", "scgpt-human"], "available"].tolist() == ["cached", "by hand"]
    assert models.fetch("scgpt-brain") == folder


def test_by_hand_a_folder_that_lacks_a_file(cache: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "scgpt" / "human" / "vocab.json", tmp_path)
    with pytest.raises(
        DownloadError, match=r"does not have all files of scgpt-brain. It holds .*vocab.json.*\nFiles: args"
    ):
        models.fetch("scgpt-brain", folder=tmp_path)
    with pytest.raises(OptionError, match=r"folder= takes a folder that exists"):
        models.fetch("scgpt-brain", folder=tmp_path / "vocab.json")
    assert not cache.exists()


def test_offline_by_name(cache: Path) -> None:
    with pytest.raises(DownloadError, match=r"Geneformer-V2-104M/model.safetensors is missing"):
        models.load("geneformer-v2-104m")
    assert models.fetch("cfm-mini").is_dir()
    assert not cache.exists()


def test_names_that_are_none(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"Did you mean 'geneformer-v2-104m'"):
        models.fetch("geneformer-v2-104")
    with pytest.raises(OptionError, match=r"fetch takes a name, and .* is a folder"):
        models.fetch(str(tmp_path))
    with pytest.raises(OptionError, match=r"not NoneType"):
        models.fetch(None)  # type: ignore[arg-type]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == Path(pooch.os_cache("cfm")) / "models"
    monkeypatch.setenv("HOME", str(tmp_path))
    with cfm.settings.override(cache_dir="~/here"):
        assert cache_folder() == tmp_path / "here" / "models"


def test_a_model_that_was_downloaded_works(entry: Entry, tmp_path: Path, few: Callable[..., object]) -> None:
    # The dictionaries lie below the folder's parent, as those of the official repository do.
    folder = fetch_files(entry, tmp_path, patience=HASTY)
    model = models.load(folder)
    assert (model.spec.family, model.spec.name) == ("geneformer", "V2_mlm")


@pytest.mark.parametrize("name", [name for name, entry in registry.entries().items() if not entry.packaged])
def test_entries_are_complete(name: str) -> None:
    entry = registry.entries()[name]
    assert entry.family in registry._registry()["families"]
    assert entry.url.endswith("/") or (entry.where and not entry.url)
    assert all(entry.url_of(file) or entry.where for file in entry.files)
    assert any(file.path.startswith(f"{entry.folder}/") for file in entry.files)
    assert len({file.path for file in entry.files}) == len(entry.files)
    for file in entry.files:
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert file.checksum or file.path.endswith(".json") or not entry.url
