"""The genes a model can read, in the order of its token ids."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from cfm._core.errors import CheckpointError

from .identifiers import human_genes, human_previous_symbols, strip_version

Duplicates = Literal["sum", "reject"]

_ID_IN_NAME = re.compile(r"(?:^|_)(ENSG\d{11})$")


@dataclass(frozen=True)
class Vocabulary:
    """Genes of a model. The position of a gene is its token id; special tokens, if any, come from the model.

    Parameters
    ----------
    ensembl_ids
        One Ensembl id per gene, without version; empty text where none is known.
    symbols
        One symbol per gene.
    species
        Species whose genes these are.
    duplicates
        What a model wants done with several columns that name one gene: add their counts, or refuse.
    case_sensitive
        Whether symbols must agree in case. With False, ``by_symbol`` has upper-case keys.
    identifier
        The kind of name that the model itself uses; the other kind was looked up in a table.
    aliases
        A model's own table of further names, such as withdrawn ids: Ensembl id by name in upper case. It is asked
        before the packaged tables.
    """

    ensembl_ids: tuple[str, ...]
    symbols: tuple[str, ...]
    species: str = "human"
    duplicates: Duplicates = "sum"
    case_sensitive: bool = True
    identifier: Literal["ensembl", "symbol"] = "ensembl"
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ensembl_ids)

    def alias(self, name: str) -> int | None:
        """Token id of a further name, or None."""
        return self.by_ensembl.get(self.aliases.get(name.upper(), ""))

    def fold(self, symbol: str) -> str:
        """A symbol as it is looked up: unchanged, or in upper case where case does not count."""
        return symbol if self.case_sensitive else symbol.upper()

    @cached_property
    def by_ensembl(self) -> dict[str, int]:
        """Token id of each Ensembl id."""
        return {identifier: token for token, identifier in enumerate(self.ensembl_ids) if identifier}

    @cached_property
    def by_symbol(self) -> dict[str, int]:
        """Token id of each symbol: the model's own, and the current human ones."""
        table: dict[str, int] = {}
        for token, symbol in enumerate(self.symbols):
            if symbol:  # genes without a symbol are no match for columns without a name
                table.setdefault(self.fold(symbol), token)
        return self._known(human_genes()) | table

    @cached_property
    def by_previous_symbol(self) -> dict[str, int]:
        """Token id of each withdrawn human symbol; to be asked only where no column has the current symbol."""
        return self._known(human_previous_symbols())

    def _known(self, identifiers: dict[str, str]) -> dict[str, int]:
        """Token id of each name whose Ensembl id the model has; packaged tables are human."""
        if self.species != "human":
            return {}
        tokens = self.by_ensembl
        return {self.fold(name): tokens[ensembl] for name, ensembl in identifiers.items() if ensembl in tokens}

    @classmethod
    def of_symbols(cls, names: Sequence[str], *, case_sensitive: bool = True) -> Vocabulary:
        """The vocabulary of a model whose genes are human symbols, with Ensembl ids where they can be told.

        An id is the one that a name holds (``MATR3_ENSG00000280987``), else the packaged one of the symbol, current or
        withdrawn. Proteins and other features stay without one.

        Parameters
        ----------
        names
            Symbols in the order of tokens.
        case_sensitive
            As in `Vocabulary`; without it, `names` are in upper case.

        Examples
        --------
        >>> Vocabulary.of_symbols(["TP53", "p_CD4"]).ensembl_ids
        ('ENSG00000141510', '')
        """
        ids = _ensembl_ids(names, str if case_sensitive else str.upper)
        return cls(ids, tuple(names), case_sensitive=case_sensitive, identifier="symbol")

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read a tab-separated table with the columns ``ensembl_id`` and ``symbol``, one gene a row."""
        try:
            return cls._read(path)
        except (UnicodeDecodeError, csv.Error) as error:
            raise CheckpointError(f"{path} is no gene table: {error}. Copy it again from where it came.") from error

    @classmethod
    def _read(cls, path: Path) -> Vocabulary:
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle, delimiter="\t")
            missing = {"ensembl_id", "symbol"} - set(reader.fieldnames or ())
            if missing:
                msg = (
                    f"{path} is no gene table: it has the columns {list(reader.fieldnames or ())} and lacks "
                    f"{sorted(missing)}. Write a tab-separated file whose first line is 'ensembl_id<TAB>symbol'."
                )
                raise CheckpointError(msg)
            rows = []
            for row in reader:
                if row["ensembl_id"] is None or row["symbol"] is None:
                    raise CheckpointError(f"{path} is cut or damaged: line {reader.line_num} has too few columns.")
                rows.append((strip_version(row["ensembl_id"]), row["symbol"]))
        identifiers = [identifier for identifier, _ in rows]
        if len(set(identifiers)) != len(identifiers):
            repeated = sorted(name for name, n in Counter(identifiers).items() if n > 1)[:5]
            raise CheckpointError(f"{path} names a gene twice: {repeated}. Keep one row for each Ensembl id.")
        return cls(tuple(identifiers), tuple(symbol for _, symbol in rows))

    def write(self, path: Path) -> None:
        """Write the table that `read` takes."""
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
            writer.writerow(["ensembl_id", "symbol"])
            writer.writerows(zip(self.ensembl_ids, self.symbols, strict=True))


def _ensembl_ids(names: Sequence[str], fold: Callable[[str], str]) -> tuple[str, ...]:
    """One id for each name, or empty text; no id twice, and the surest source first."""
    found: dict[str, str] = {}
    taken: set[str] = set()

    def add(pairs: Iterable[tuple[str, str]]) -> None:
        for name, identifier in pairs:
            if name not in found and identifier not in taken:
                found[name] = identifier
                taken.add(identifier)

    add((name, match[1]) for name in names if (match := _ID_IN_NAME.search(name)))
    for table in (human_genes(), human_previous_symbols()):
        folded = {fold(symbol): identifier for symbol, identifier in table.items()}
        add((name, folded[name]) for name in names if name in folded)
    return tuple(found.get(name, "") for name in names)
