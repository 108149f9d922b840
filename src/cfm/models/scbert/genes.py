"""The gene order of scBERT: a list that users bring, since no tensor holds it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cfm._core.errors import CheckpointError
from cfm._core.logging import logger
from cfm.genes import GeneMatch, Vocabulary
from cfm.models.given import find_file

NAMES = ("genes.txt", "gene_list.txt", "genes.tsv", "vocab.json")
"""What the list is called beside the weights; after these any .h5ad is looked at."""

PUBLISHED_GENES = 16_906
_PUBLISHED = "4c09ba1912e184682fe5e7f32e2b443bdfb7883d0d0191551b38c6c2f155600f"
"""SHA-256 of the symbols of the published model, one after another with a line feed between."""

_HOW = (
    "Give the gene order of the training data as genes.txt beside the weights, one symbol a line, or type gene_list='FILE': "
    "a text file, a vocab.json, or an .h5ad with these genes, such as the panglao_human.h5ad that goes with the published "
    "weights (only the names in its var are read)."
)


def read_genes(folder: Path, given: str | Path | None, n_genes: int | None) -> list[str]:
    """The symbols in the order of the positions.

    Parameters
    ----------
    folder
        Where the weights are.
    given
        A file to read instead of one beside the weights.
    n_genes
        Genes that the network has positions for; None where no tensor tells.

    Raises
    ------
    OptionError
        `given` is no file.
    CheckpointError
        No list, or one that is damaged, repeats a gene, or has another length.
    """
    path = _beside(folder, n_genes) if given is None else find_file(given, "gene_list", folder, _HOW)
    names = _names(path)
    if n_genes is not None and len(names) != n_genes:
        raise CheckpointError(
            f"{path} has {len(names):,} genes, and the weights have positions for {n_genes:,}: it is the list of another "
            f"model. Every vector would be nonsense. {_HOW}"
        )
    if repeated := [name for name, n in Counter(names).items() if n > 1]:
        raise CheckpointError(f"{path} names a gene twice: {repeated[:5]}. {_HOW}")
    _compare(path, names)
    return names


def columns_of(match: GeneMatch, vocabulary: Vocabulary, *, official: bool) -> NDArray[np.int32]:
    """int32[genes of the file]: the position in the list that each column fills, -1 for none.

    Columns that repeat a symbol of the list are added up. A column that is known by another name (a withdrawn or a newer
    symbol) counts where none bears the name of the list. `official` takes the first column of exactly that name, and none else.
    """
    if official:
        tokens = match.exact({name: i for i, name in enumerate(vocabulary.symbols)})
        first = np.zeros(len(tokens), bool)
        first[np.unique(tokens, return_index=True)[1]] = True
        return np.where(first, tokens, np.int32(-1))
    tokens = match.tokens.copy()
    symbols = np.array(["", *vocabulary.symbols], str)[tokens + 1]
    exact = set(tokens[(match.names == symbols) & (tokens >= 0)].tolist())
    for column in np.flatnonzero(match.names != symbols).tolist():
        name, symbol = str(match.names[column]), str(symbols[column])
        if tokens[column] in exact and not re.fullmatch(re.escape(symbol) + r"[-.]\d+", name):
            tokens[column] = -1
    return tokens


def _beside(folder: Path, n_genes: int | None) -> Path:
    """The list beside the weights. Of several .h5ad, which may be anyone's cells, the one with the right number of genes."""
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.glob("*.h5ad"))
    if n_genes is None and len(files) > 1:
        raise CheckpointError(
            f"{folder} has several .h5ad files, {[path.name for path in files]}, and no tensor tells how many genes the model has. "
            "Type gene_list='FILE'."
        )
    for path in files:
        with contextlib.suppress(CheckpointError):  # it may be anything, and need not be the list
            if n_genes is None or len(_names(path)) == n_genes:
                return path
    there = sorted(path.name for path in folder.iterdir())
    genes = f" of {n_genes:,} genes" if n_genes else ""
    raise CheckpointError(f"{folder} has no gene list{genes}. It holds {there}. {_HOW}")


def _names(path: Path) -> list[str]:
    readers = {".json": _of_json, ".h5ad": _of_h5ad}
    names = readers.get(path.suffix.lower(), _of_text)(path)
    if not names or not all(names):
        what = "no gene" if not names else f"no name in line {names.index('') + 1:,}"
        raise CheckpointError(f"{path} has {what}. {_HOW}")
    return names


def _of_text(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text: {error}. {_HOW}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.strip() for line in lines]


def _of_json(path: Path) -> list[str]:
    """A list of names, or an object with the position of each."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}. It is damaged or cut short. Copy it again.") from error
    if isinstance(found, dict) and all(type(i) is int for i in found.values()):
        if sorted(found.values()) != list(range(len(found))):
            raise CheckpointError(f"{path} does not number its {len(found):,} genes from 0 without gaps. {_HOW}")
        found = sorted(found, key=found.__getitem__)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(f"{path} is neither a list of names nor an object of names and positions. {_HOW}")
    return found


def _of_h5ad(path: Path) -> list[str]:
    """The index of var; of the rest of the file nothing is read."""
    try:
        with h5py.File(path) as handle:
            var = handle["var"]
            if isinstance(var, h5py.Dataset):  # a table, as anndata wrote it before 0.7
                names = var.fields("index")[:]
            else:
                index = var[var.attrs.get("_index", "_index")]
                names = (index["values"] if isinstance(index, h5py.Group) else index).asstr()[:]  # a group since 0.12
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is no intact .h5ad file with names in var: {error}. Copy it again.") from error
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _compare(path: Path, names: list[str]) -> None:
    """Say whether this is the list of the published model, where it could be."""
    if len(names) != PUBLISHED_GENES:
        return
    found = hashlib.sha256("\n".join(names).encode()).hexdigest()
    if found == _PUBLISHED:
        logger.info("gene list: %s is that of the published scBERT", path)
        return
    logger.warning(
        "%s has as many genes as the published scBERT, and is not its list (SHA-256 %s..., not %s...). If the weights are "
        "the published ones, each gene has the vector of another; take the var_names of panglao_human.h5ad. If they are "
        "your own, this is as it should be",
        path,
        found[:12],
        _PUBLISHED[:12],
    )
