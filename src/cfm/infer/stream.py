"""A stream of tokenised cells: made from counts on the fly, or taken from stored tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm._core.errors import OptionError
from cfm.counts import CountSource
from cfm.models import Tokenizer
from cfm.models.contract import NO_COLUMNS
from cfm.tokens import TokenBatch


class TokenStream:
    """Tokenises the chunks of a source, and adds up the counts of each column on the way.

    Parameters
    ----------
    source
        Where the counts are.
    tokenizer
        A model's tokeniser for the genes of that source.
    chunk_cells
        Cells read at a time.
    columns
        Numbers of each cell that go along with its tokens.
    """

    def __init__(
        self,
        source: CountSource,
        tokenizer: Tokenizer,
        chunk_cells: int,
        columns: Mapping[str, NDArray[Any]] = NO_COLUMNS,
    ) -> None:
        self.totals: NDArray[np.float64] = np.zeros(len(source.var))
        """float64[genes]: counts of each column over the cells read so far."""
        self._source, self._tokenizer, self._chunk_cells = source, tokenizer, chunk_cells
        self._columns = columns

    def __iter__(self) -> Iterator[TokenBatch]:
        if self._source.n_cells == 0:
            # One empty batch all the same: it tells whether this family's tokens have values.
            yield self._tokenizer(sp.csr_array((0, len(self.totals)), dtype=np.float32), 0)
        for chunk in self._source.chunks(self._chunk_cells):
            self.totals += np.bincount(chunk.counts.indices, chunk.counts.data, len(self.totals))
            yield with_columns(self._tokenizer(chunk.counts, chunk.start), self._columns)


def with_columns(batch: TokenBatch, columns: Mapping[str, NDArray[Any]]) -> TokenBatch:
    """The batch with numbers of its cells beside the tokens."""
    scalars = {name: numbers[batch.rows].astype(np.float32) for name, numbers in columns.items()}
    return replace(batch, cell_scalars=batch.cell_scalars | scalars)


def stored_tokens(
    tokens: sp.csr_matrix | sp.csr_array,
    values: sp.csr_matrix | sp.csr_array | None,
    chunk_cells: int,
    columns: Mapping[str, NDArray[Any]] = NO_COLUMNS,
) -> Iterator[TokenBatch]:
    """Token batches from what `cfm.pp.tokenize` stored: column = position, value = token id, zeros count."""
    if values is not None and not np.array_equal(tokens.indptr, values.indptr):
        raise OptionError("Stored tokens and values have different lengths per cell. Run cfm.pp.tokenize again.")
    for start in range(0, tokens.shape[0], chunk_cells):
        stop = min(start + chunk_cells, tokens.shape[0])
        batch = TokenBatch(
            ids=_rows(tokens, start, stop).astype(np.int32, copy=False),
            values=None if values is None else _rows(values, start, stop).astype(np.float32, copy=False),
            offsets=tokens.indptr[start : stop + 1].astype(np.int64) - tokens.indptr[start],
            rows=np.arange(start, stop),
        )
        yield with_columns(batch, columns)


def _rows(matrix: Any, start: int, stop: int) -> NDArray[Any]:
    part: NDArray[Any] = matrix.data[matrix.indptr[start] : matrix.indptr[stop]]
    return part
