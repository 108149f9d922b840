"""The corpus of a pretraining run, in memory and in the order of the vocabulary."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm._core.errors import MissingKeyError, OptionError
from cfm._core.logging import logger
from cfm.counts import CountSource, find_counts
from cfm.genes import GeneMatch, Vocabulary, match
from cfm.genes.identifiers import human_ensembl_ids, human_genes
from cfm.tokens import gene_rows

from .recipe import Data, MarkerRule, VocabularyRecipe

UNLABELLED = -1
_CHUNK_CELLS = 4096


@dataclass(frozen=True)
class LabelledFile:
    """One file of the corpus.

    Parameters
    ----------
    name
        File name without its ending.
    counts
        CSR float32, cells x vocabulary; whole numbers.
    measured
        bool[vocabulary]: genes that the file has a column for.
    labels
        int64[n_cells]: position in `Corpus.labels`, -1 for none.
    licence
        Licence of the repository that the data came from.
    source
        That repository, where the file says so in ``uns["source"]["repo"]``.
    """

    name: str
    counts: sp.csr_array
    measured: NDArray[np.bool_]
    labels: NDArray[np.int64]
    licence: str
    source: str

    @property
    def tells_labels_apart(self) -> bool:
        """Whether it holds two labels or more.

        In a file of one label all that is peculiar to the file (chemistry, laboratory) goes with the label, and a
        contrast would learn that instead.
        """
        return len(np.unique(self.labels[self.labels != UNLABELLED])) > 1


@dataclass(frozen=True)
class Corpus:
    """All files over one vocabulary."""

    vocabulary: Vocabulary
    files: tuple[LabelledFile, ...]
    labels: tuple[str, ...]

    @property
    def n_cells(self) -> int:
        """Cells of all files."""
        return sum(file.counts.shape[0] for file in self.files)

    def split(self, share: float, seed: int) -> tuple[Corpus, Corpus]:
        """Training and validation cells, drawn from every file by `seed`."""
        train: list[LabelledFile] = []
        held_out: list[LabelledFile] = []
        for number, file in enumerate(self.files):
            order = np.random.default_rng([seed, number]).permutation(file.counts.shape[0])
            cut = max(1, round(share * len(order))) if len(order) > 1 else 0
            for part, rows in ((train, np.sort(order[cut:])), (held_out, np.sort(order[:cut]))):
                part.append(replace(file, counts=file.counts[rows], labels=file.labels[rows]))
        return replace(self, files=tuple(train)), replace(self, files=tuple(held_out))


def read_corpus(data: Data, vocabulary: VocabularyRecipe) -> Corpus:
    """Read the files of a recipe, choose the vocabulary from them, and bring their labels to common names."""
    if not data.files:
        raise OptionError("The recipe names no files. Add [[data.files]] tables with a path each, or pass data=.")
    table = _label_table(data)
    for entry in data.files:
        if not (data.root / entry.path).is_file():
            msg = (
                f"There is no file {data.root / entry.path}. If a recipe names it, give the folder of its files: "
                "data_root=FOLDER, on the command line --data FOLDER."
            )
            raise OptionError(msg)
    raw = []
    for entry in data.files:
        adata = ad.read_h5ad(data.root / entry.path)
        raw.append(_read(adata, entry.path.stem, entry.species, entry.licence, data, table))
    return _unite(raw, data, vocabulary)


def corpus_of(
    adatas: Mapping[str, ad.AnnData], data: Data, vocabulary: VocabularyRecipe, *, species: str = "human"
) -> Corpus:
    """The corpus of objects in memory, by name."""
    raw = [_read(adata, name, species, "not stated", data, {}) for name, adata in adatas.items()]
    return _unite(raw, data, vocabulary)


@dataclass(frozen=True)
class _RawFile:
    name: str
    counts: sp.csr_array  # over all human genes
    measured: NDArray[np.bool_]
    labels: NDArray[np.object_]  # "" for none
    columns: tuple[str, ...]  # of obs
    licence: str
    source: str


@cache
def _all_genes() -> Vocabulary:
    symbol_of = {identifier: symbol for symbol, identifier in human_genes().items()}
    identifiers = tuple(sorted(human_ensembl_ids()))
    return Vocabulary(identifiers, tuple(symbol_of.get(i, i) for i in identifiers))


def _read(
    adata: ad.AnnData, name: str, species: str, licence: str, data: Data, table: dict[tuple[str, str], str]
) -> _RawFile:
    every_gene = _all_genes()
    source = find_counts(adata)
    found = match(source.var, every_gene, species=species)
    counts = _over_vocabulary(source, found, len(every_gene))
    labels = np.full(adata.n_obs, "", dtype=object)
    if data.label_key is not None and data.label_key in adata.obs:
        given = adata.obs[data.label_key]
        labels[:] = [table.get((name, label), "" if table else label) for label in given.astype(str)]
        labels[given.isna().to_numpy()] = ""
        labels[np.isin(labels, data.ignore_labels)] = ""
    for rule in data.marker_rules:
        chosen = _chosen(counts, every_gene, labels, rule)
        if chosen.any():
            logger.info("%s: %d cells of %r become %r", name, int(chosen.sum()), rule.label, rule.becomes)
            labels[chosen] = rule.becomes
    measured = np.zeros(len(every_gene), bool)
    measured[found.tokens[found.tokens >= 0]] = True
    logger.info("%s: %d cells, %d genes, %d labelled", name, adata.n_obs, found.n_tokens, int((labels != "").sum()))
    return _RawFile(name, counts, measured, labels, tuple(map(str, adata.obs.columns)), licence, _source_of(adata))


def _source_of(adata: ad.AnnData) -> str:
    source = adata.uns.get("source")
    return str(source.get("repo", "")) if isinstance(source, Mapping) else ""


def _over_vocabulary(source: CountSource, found: GeneMatch, n_genes: int) -> sp.csr_array:
    parts = []
    for chunk in source.chunks(_CHUNK_CELLS):
        rows = gene_rows(chunk.counts, found.tokens, n_genes)
        shape = (len(rows.offsets) - 1, n_genes)
        parts.append(sp.csr_array((rows.counts.astype(np.float32), rows.ids, rows.offsets), shape=shape))
    return sp.vstack(parts, format="csr")


def _chosen(
    counts: sp.csr_array, genes: Vocabulary, labels: NDArray[np.object_], rule: MarkerRule
) -> NDArray[np.bool_]:
    """bool[n_cells]: the cells that a rule holds for."""

    def total(symbols: list[str]) -> NDArray[np.float64]:
        columns = [genes.by_symbol[symbol] for symbol in symbols]
        return np.asarray(counts[:, columns].sum(axis=1)).ravel()

    markers = total(rule.markers)
    library_size = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    return np.asarray(
        (labels == rule.label)
        & (markers >= rule.min_counts)
        & (1e4 * markers / library_size >= rule.min_per_10k)
        & (not rule.absent or total(rule.absent) <= rule.max_absent)
        & (not rule.rare or total(rule.rare) <= rule.max_rare)
    )


def _unite(raw: Sequence[_RawFile], data: Data, recipe: VocabularyRecipe) -> Corpus:
    """Choose the genes, cut every file to them, and number the labels."""
    if data.label_key is not None and not any(data.label_key in file.columns for file in raw):
        there = sorted({column for file in raw for column in file.columns})
        raise MissingKeyError(f"obs of no file has the column {data.label_key!r}. There are {there}.")
    every_gene = _all_genes()
    detected = np.array([np.bincount(file.counts.indices, minlength=len(every_gene)) for file in raw])
    min_files = min(recipe.min_files, len(raw))
    often = (detected.sum(axis=0) >= recipe.min_cells) & ((detected >= 2).sum(axis=0) >= min_files)
    if recipe.exclude is not None:
        left_out = re.compile(recipe.exclude)
        often &= np.array([left_out.match(symbol) is None for symbol in every_gene.symbols])
    ranked = np.argsort(-detected.sum(axis=0), kind="stable")
    genes = np.sort(ranked[often[ranked]][: recipe.max_genes])
    if len(genes) < 2:
        raise OptionError("The corpus has too few cells for a vocabulary. Lower vocabulary.min_cells and min_files.")
    vocabulary = Vocabulary(
        tuple(every_gene.ensembl_ids[g] for g in genes), tuple(every_gene.symbols[g] for g in genes)
    )
    names = tuple(sorted({label for file in raw for label in file.labels} - {""}))
    code = {name: number for number, name in enumerate(names)} | {"": UNLABELLED}
    files = tuple(
        LabelledFile(
            name=file.name,
            counts=sp.csr_array(file.counts[:, genes]),
            measured=file.measured[genes],
            labels=np.array([code[label] for label in file.labels], dtype=np.int64),
            licence=file.licence,
            source=file.source,
        )
        for file in raw
    )
    return Corpus(vocabulary, files, names)


def _label_table(data: Data) -> dict[tuple[str, str], str]:
    """(file, label in the file) to common label."""
    if data.label_table is None:
        return {}
    path: Path = data.root / data.label_table
    if not path.is_file():
        msg = (
            f"There is no label table {path}. Give the folder that holds it: data_root=FOLDER, on the command line "
            "--data FOLDER."
        )
        raise OptionError(msg)
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    missing = {"dataset", "cell_type", "coarse"} - rows[0].keys() if rows else {"dataset", "cell_type", "coarse"}
    if missing:
        raise MissingKeyError(f"{path} lacks the columns {sorted(missing)}.")
    return {(row["dataset"], row["cell_type"]): row["coarse"] for row in rows}
