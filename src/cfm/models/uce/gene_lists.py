"""The order of the genes of a species: the only thing that is needed of the files of protein vectors."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

from cfm._core.errors import CheckpointError
from cfm._core.logging import logger
from cfm._core.resources import atomic_path
from cfm.models.weights import read_saved

SPECIES = {
    "human": "Homo_sapiens",
    "mouse": "Mus_musculus",
    "frog": "Xenopus_tropicalis",
    "zebrafish": "Danio_rerio",
    "mouse_lemur": "Microcebus_murinus",
    "pig": "Sus_scrofa",
    "macaca_fascicularis": "Macaca_fascicularis",
    "macaca_mulatta": "Macaca_mulatta",
}
"""The species that UCE was trained on, and how the names of their files begin."""

ENDING = ".gene_symbol_to_embedding_ESM2.pt"
ARCHIVE = "protein_embeddings.tar.gz"
_FOLDER = "protein_embeddings"


def list_name(species: str) -> str:
    """Name of the file that holds the order of the genes alone.

    Examples
    --------
    >>> list_name("mouse")
    'mouse_genes.txt'
    """
    return f"{species}_genes.txt"


def gene_order(places: list[Path], species: str) -> list[str]:
    """Symbols of a species in the order of their rows, in upper case, each once.

    Looked for are, in this order: a list of one symbol a line, the file of protein vectors, of which the vectors are not
    read, and the archive of all these files, out of which the lists of all species are written once.

    Parameters
    ----------
    places
        Folders to look at, the first one first.
    species
        One of `SPECIES`.

    Raises
    ------
    CheckpointError
        There is none of them, or one is damaged.
    """
    for place in places:
        if (path := place / list_name(species)).is_file():
            return read_list(path)
        for folder in (place, place / _FOLDER):
            for path in sorted(folder.glob(f"{SPECIES[species]}.*{ENDING}")):
                return list(symbols_of(protein_vectors(path)))
    for place in places:
        if (archive := place / ARCHIVE).is_file():
            found = _unpack(archive)
            if species in found:
                return found[species]
    raise CheckpointError(_lacking(places, species))


def read_list(path: Path) -> list[str]:
    """Symbols of a list, one a line, in upper case, each once."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text: {error}. It takes one symbol a line.") from error
    symbols = [line.strip() for line in lines if line.strip()]
    if not symbols or any(len(symbol.split()) > 1 for symbol in symbols):
        raise CheckpointError(
            f"{path} is no list of genes: it has {len(symbols):,} lines, and takes one symbol a line."
        )
    return list(dict.fromkeys(symbol.upper() for symbol in symbols))


def protein_vectors(path: Path) -> dict[str, torch.Tensor]:
    """The vector of each symbol, mapped and not read.

    Raises
    ------
    CheckpointError
        The file is cut or damaged, would run code, or holds something else.
    """
    found = read_saved(path)
    vectors = isinstance(found, dict) and all(
        isinstance(symbol, str) and isinstance(vector, torch.Tensor) and vector.ndim == 1
        for symbol, vector in found.items()
    )
    if not vectors or not found:
        raise CheckpointError(f"{path} holds no vectors of proteins by symbol. Copy the official file again.")
    return dict(found)


def symbols_of(vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same by symbol in upper case: the first place and the last vector of those that become one."""
    return {symbol.upper(): vector for symbol, vector in vectors.items()}


def _unpack(archive: Path) -> dict[str, list[str]]:
    """The order of the genes of each species in an archive; written beside it, so that it is read once."""
    logger.info("reading the order of genes out of %s: this takes some minutes, once", archive)
    found: dict[str, list[str]] = {}
    try:
        for species, path in _members(archive):
            found[species] = list(symbols_of(protein_vectors(path)))
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, EOFError):
            raise CheckpointError(
                f"{archive} cannot be unpacked into {tempfile.gettempdir()}: {error}. Free space there, or set TMPDIR."
            ) from error
        size = archive.stat().st_size
        msg = f"{archive} ({size:,} bytes) is no intact archive: {error}. It is damaged or cut short. Copy it again."
        raise CheckpointError(msg) from error
    try:
        for species, symbols in found.items():
            with atomic_path(archive.with_name(list_name(species))) as path:
                path.write_text("\n".join(symbols) + "\n", encoding="utf-8")
        logger.info("the archive is no longer needed: the lists are beside it")
    except OSError as error:
        logger.warning("the lists cannot be kept beside %s (%s), and are read out of it each time", archive, error)
    return found


def _members(archive: Path) -> Iterator[tuple[str, Path]]:
    """Species and a temporary copy of each protein file; one is on the disk at a time."""
    with tarfile.open(archive, "r|gz") as members, tempfile.TemporaryDirectory(prefix="cfm-uce-") as folder:
        path = Path(folder) / "proteins.pt"
        for member in members:
            name = Path(member.name).name
            species = next((s for s, latin in SPECIES.items() if name.startswith(f"{latin}.")), None)
            source = members.extractfile(member) if species and name.endswith(ENDING) else None
            if species is None or source is None:
                continue
            with path.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            yield species, path


def _lacking(places: list[Path], species: str) -> str:
    there = sorted(path.name for path in places[0].iterdir())
    return (
        f"The order of the genes of {species} was not found in {', '.join(map(str, places))}. It is the order of the keys of "
        f"{SPECIES[species]}...{ENDING}, one of the files in {ARCHIVE} (2.7 GB), which is published with UCE; its vectors "
        f"are not needed. Put that file, the archive, or a list of the symbols, one a line, called {list_name(species)}, "
        f"beside the weights. {places[0]} holds {there}."
    )
