"""The official gene dictionaries: tokens, medians, and names of genes. They come with a checkpoint and never with cfm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfm._core.errors import CheckpointError, OptionError
from cfm.genes import Vocabulary
from cfm.models.pickles import read_pickled

PAD, MASK, CLS, EOS = "<pad>", "<mask>", "<cls>", "<eos>"

TOKENS, MEDIANS, MAPPING, NAMES = (
    "token_dictionary",
    "gene_median_dictionary",
    "ensembl_mapping_dict",
    "gene_name_id_dict",
)

_SUBFOLDERS = (
    "",
    "geneformer",
    "dictionaries",
    "gene_dictionaries_30m",
    "geneformer/gene_dictionaries_30m",
    "dictionaries/gene_dictionaries_30m",
)


@dataclass(frozen=True)
class Dictionaries:
    """What the tokeniser needs to know of the genes of a model.

    Parameters
    ----------
    vocabulary
        The genes in the order of their token ids, with the official further names.
    tokens
        int32[genes]: token id of each.
    medians
        float64[genes]: median of its non-zero normalised counts over the training cells.
    specials
        Token id of ``<pad>``, ``<mask>`` and, since V2, ``<cls>`` and ``<eos>``.
    """

    vocabulary: Vocabulary
    tokens: NDArray[np.int32]
    medians: NDArray[np.float64]
    specials: dict[str, int]

    @property
    def ends(self) -> tuple[int, int] | None:
        """Token ids of ``<cls>`` and ``<eos>``, between which V2 puts the genes of a cell; None for V1."""
        return (self.specials[CLS], self.specials[EOS]) if CLS in self.specials else None

    @classmethod
    def of(
        cls,
        tokens: dict[str, int],
        medians: dict[str, float],
        mapping: dict[str, str] | None = None,
        names: dict[str, str] | None = None,
    ) -> Dictionaries:
        """Put the official dictionaries together.

        Parameters
        ----------
        tokens
            Token id of each Ensembl id and special token.
        medians
            Median of each Ensembl id; it may hold more genes.
        mapping
            Ensembl id of each further name (upper case). Names that lead to no token are left out.
        names
            Ensembl id of each symbol.
        """
        specials = {name: int(token) for name, token in tokens.items() if name.startswith("<")}
        genes = sorted((name for name in tokens if name not in specials), key=tokens.__getitem__)
        if lacking := [gene for gene in genes if gene not in medians]:
            msg = f"{len(lacking)} genes have a token and no median, for example {lacking[:3]}."
            raise CheckpointError(f"{msg} The dictionaries belong to different models: copy all from one source.")
        symbols: dict[str, str] = {}
        for symbol, gene in (names or {}).items():
            symbols.setdefault(gene, symbol)
        aliases = {name: gene for name, gene in (mapping or {}).items() if gene in tokens and name != gene}
        vocabulary = Vocabulary(tuple(genes), tuple(symbols.get(gene, "") for gene in genes), aliases=aliases)
        return cls(
            vocabulary,
            np.array([tokens[gene] for gene in genes], np.int32),
            np.array([medians[gene] for gene in genes], np.float64),
            specials,
        )


def find_dictionaries(folder: Path, given: str | Path | None, n_tokens: int) -> Dictionaries:
    """Read the dictionaries that go with a checkpoint.

    Parameters
    ----------
    folder
        The checkpoint; it, its parent and their usual subfolders are looked at.
    given
        A folder to look at instead.
    n_tokens
        Rows of the model's embedding: of several token dictionaries, the one with as many entries is taken.

    Raises
    ------
    OptionError
        `given` is no folder.
    CheckpointError
        None that fits, or a damaged or hostile file.
    """
    if given is not None and not Path(str(given)).expanduser().is_dir():
        raise OptionError(f"dictionaries={str(given)!r} is no folder. Name the one that holds {TOKENS}_gc104M.pkl.")
    roots = [folder, folder.parent] if given is None else [Path(given).expanduser()]
    places = [place for root in roots for sub in _SUBFOLDERS if (place := root / sub).is_dir()]
    sizes = {}
    damaged = ""
    for path in (path for place in places for path in sorted(place.glob(f"{TOKENS}*.pkl"))):
        try:
            tokens = _read(path, int)
        except CheckpointError as error:
            damaged = f" {error}"  # a half pulled clone has stand-ins beside good files
            continue
        if len(tokens) == n_tokens:
            return _beside(path, tokens)
        sizes[str(path)] = len(tokens)
    raise CheckpointError(_none_found(places, sizes, n_tokens, given) + damaged)


def _beside(path: Path, tokens: dict[str, int]) -> Dictionaries:
    """The dictionaries with the ending of a token dictionary, in its folder."""
    ending = path.name.removeprefix(TOKENS)

    def named(stem: str) -> Path:
        return path.with_name(stem + ending)

    if not named(MEDIANS).is_file():
        there = sorted(p.name for p in path.parent.glob("*.pkl"))
        raise CheckpointError(f"{path.parent} has {path.name} and lacks {named(MEDIANS).name}. It holds {there}.")
    optional: list[dict[str, str] | None] = [
        _read(named(stem), str) if named(stem).is_file() else None for stem in (MAPPING, NAMES)
    ]
    _check_tokens(path, tokens)
    medians = _read(named(MEDIANS), float)
    if bad := [gene for gene, median in medians.items() if not 0 < median < np.inf]:
        raise CheckpointError(f"{named(MEDIANS)} has medians that are not above 0, for example of {bad[:3]}.")
    return Dictionaries.of(tokens, medians, *optional)


def _read[T: (int, float, str)](path: Path, kind: type[T]) -> dict[str, T]:
    """A dictionary from text to values of one kind."""
    found = read_pickled(path)
    plain = isinstance(found, dict) and all(
        isinstance(key, str) and isinstance(value, kind) for key, value in found.items()
    )
    if not plain:
        raise CheckpointError(f"{path} is no dictionary from text to {kind.__name__}. Copy the official file again.")
    return dict(found)


def _check_tokens(path: Path, tokens: dict[str, int]) -> None:
    if sorted(tokens.values()) != list(range(len(tokens))):
        raise CheckpointError(f"{path} does not number its {len(tokens):,} entries from 0 without gaps.")
    if lacking := [name for name in (PAD, MASK) if name not in tokens]:
        raise CheckpointError(f"{path} has no {' and no '.join(lacking)}: it is no token dictionary of Geneformer.")
    if (CLS in tokens) != (EOS in tokens):
        raise CheckpointError(f"{path} has one of {CLS} and {EOS} and lacks the other.")


def _none_found(places: list[Path], sizes: dict[str, int], n_tokens: int, given: str | Path | None) -> str:
    looked = ", ".join(map(str, places))
    found = "; ".join(f"{path} has {n:,}" for path, n in sizes.items()) or "no token dictionary there"
    advice = (
        f"Copy {TOKENS}_*.pkl, {MEDIANS}_*.pkl, {MAPPING}_*.pkl and {NAMES}_*.pkl of this model beside it, or type "
        "dictionaries='FOLDER'."
    )
    where = f"dictionaries={str(given)!r}" if given is not None else looked
    return f"The model has {n_tokens:,} tokens, and no dictionary with as many was found in {where}: {found}. {advice}"
