"""Running a model over a stream of tokenised cells."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from cfm._core.logging import logger, progress
from cfm.models import CellModel, Pack
from cfm.tokens import TokenBatch

from .packing import packs


@dataclass(frozen=True)
class Result:
    """What a run gives, one row per cell in file order.

    Parameters
    ----------
    vectors
        float32[n_cells, dim]; a row of zeros where there was nothing to read.
    lengths
        int64[n_cells]: genes of each cell that were read.
    gene_means
        float32[genes of the vocabulary, any]: mean vector of each gene over the cells that express it, NaN for genes
        that no cell does, or over all cells where the model sees every gene; None where it was not asked for.
    """

    vectors: NDArray[np.float32]
    lengths: NDArray[np.int64]
    gene_means: NDArray[np.float32] | None = None


def run(model: CellModel, batches: Iterable[TokenBatch], n_cells: int, budget: int, *, genes: bool = False) -> Result:
    """Put every cell through the model.

    The next batch is read and tokenised while this one is in the model. When a CUDA device runs out of memory the
    budget halves and the run goes on, unless a single cell is too big.

    Parameters
    ----------
    model
        Weights on a device.
    batches
        Tokenised cells, each with its rows in the file.
    n_cells
        Number of cells in the file.
    budget
        Tokens that go through the model at a time.
    genes
        Also average the vectors of each gene in its cells.
    """
    vectors = np.zeros((n_cells, model.spec.dim), np.float32)
    lengths = np.zeros(n_cells, np.int64)
    means = GeneMeans(model) if genes else None
    outputs = frozenset({"cell"} if means is None else {"cell", means.output})
    for pack, found in passes(model, batches, n_cells, budget, outputs):
        lengths[pack.rows] = genes_read(model, pack)
        vectors[pack.rows] = found["cell"]
        if means is not None:
            means.add(pack.ids, found[means.output])
    return Result(vectors, lengths, None if means is None else means.result())


def passes(
    model: CellModel, batches: Iterable[TokenBatch], n_cells: int, budget: int, outputs: frozenset[str]
) -> Iterator[tuple[TokenBatch, dict[str, NDArray[np.float32]]]]:
    """Outputs of a model for all cells that have tokens, pack by pack; parameters as in `run`."""
    positions = max(model.spec.positions.get(output, 0) for output in outputs)
    with progress(n_cells, f"{model.spec.name} on {model.device.type}") as bar:
        for batch in ahead(batches):
            waiting = list(packs(batch, budget, positions))[::-1]
            while waiting:
                pack = waiting.pop()
                found = _outputs(model, pack, outputs)
                if found is not None:
                    yield pack, found
                    continue
                budget = _smaller(pack, positions)
                # All that wait were cut for the old budget: each of them would fail, and halve it again.
                waiting = [part for whole in [*waiting, pack] for part in list(packs(whole, budget, positions))[::-1]]
            bar.update(batch.n_cells)


def genes_read(model: CellModel, batch: TokenBatch) -> NDArray[np.int64]:
    """int64[n_cells]: genes among the tokens of each cell."""
    if model.spec.special_tokens is not None:
        return np.maximum(batch.lengths - model.spec.special_tokens, 0)
    is_gene = np.zeros(max(int(batch.ids.max(initial=0)), int(model.gene_tokens().max(initial=0))) + 1, bool)
    is_gene[model.gene_tokens()] = True
    known = is_gene[batch.ids]
    cells = np.repeat(np.arange(batch.n_cells), batch.lengths)[known]
    distinct = np.unique(cells * len(is_gene) + batch.ids[known])
    return np.bincount(distinct // len(is_gene), minlength=batch.n_cells)


class GeneMeans:
    """Sums of the vectors of each gene, in float64: a common gene stands in every cell of a large file.

    Parameters
    ----------
    model
        Whose vectors are averaged: those of all genes in each cell, where it gives them, else those of its tokens.
    """

    def __init__(self, model: CellModel) -> None:
        self.output = "gene" if "gene" in model.spec.outputs else "token"
        """The output of the model that is averaged."""
        self._tokens, self._dim = model.gene_tokens(), model.spec.dim
        n = int(self._tokens.max(initial=0)) + 1
        self._counts = np.zeros(n, np.int64)
        self._sums = np.zeros((n, 0))

    def add(self, ids: NDArray[np.int32], vectors: NDArray[np.float32]) -> None:
        """Take in the vectors of some cells: of their tokens, or [n_cells, genes, any]."""
        if not self._sums.shape[1]:
            self._sums = np.zeros((len(self._counts), vectors.shape[-1]))
        if self.output == "gene":
            self._counts[self._tokens] += len(vectors)
            for cell in vectors:
                self._sums[self._tokens] += cell
            return
        known = np.flatnonzero(ids < len(self._counts))
        present, place = np.unique(ids[known], return_inverse=True)
        which = (np.ones(len(known)), (place, known))
        self._sums[present] += sp.csr_array(which, shape=(len(present), len(ids))) @ vectors.astype(np.float64)
        self._counts += np.bincount(ids[known], minlength=len(self._counts))

    def result(self) -> NDArray[np.float32]:
        """float32[genes of the vocabulary, any]: the means."""
        if not self._sums.shape[1]:
            return np.full((len(self._tokens), self._dim), np.nan, np.float32)
        with np.errstate(invalid="ignore"):
            means = self._sums / self._counts[:, None]
        return means[self._tokens].astype(np.float32)


def _outputs(model: CellModel, pack: TokenBatch, outputs: frozenset[str]) -> dict[str, NDArray[np.float32]] | None:
    """Outputs for a pack, or None where the device has no memory for it but may have for a part.

    The error ends here and is not handed on: it would keep the tensors of the failed attempt alive.
    """
    try:
        found = model.forward(Pack.of(pack, model.device), outputs)
        return {key: value.float().cpu().numpy() for key, value in found.items()}
    except torch.OutOfMemoryError as error:
        if pack.n_cells > 1:
            return None
        error.add_note(f"One cell of {len(pack.ids):,} tokens does not fit on {model.device}. Type device='cpu'.")
        raise


def _smaller(pack: TokenBatch, positions: int) -> int:
    """Half of the budget that just failed."""
    torch.cuda.empty_cache()
    failed = pack.n_cells * max(int(pack.lengths.max()), positions)
    logger.warning("out of GPU memory with packs of %d tokens; going on with %d", failed, failed // 2)
    return failed // 2


def ahead[T](items: Iterable[T]) -> Iterator[T]:
    """Iterate with one item made ahead in another thread. An error there is raised here; stopping early ends it."""
    done = object()
    box: queue.Queue[object] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                box.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def produce() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(done)
        except BaseException as error:  # noqa: BLE001 -- handed to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=produce, name="cfm-tokenise", daemon=True)
    thread.start()
    try:
        while (item := box.get()) is not done:
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
