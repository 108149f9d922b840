"""The runner: order, overlap, errors, and memory that runs out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cfm.infer import run
from cfm.infer.runner import ahead
from cfm.models import ModelSpec, Pack
from cfm.tokens import TokenBatch


class Sums:
    """A model whose vector is (sum of ids, sum of values, tokens), on a device with memory for `limit` tokens.

    Like a real back end it needs memory for the pack padded to its longest cell.
    """

    spec = ModelSpec("sums", "test", "1", "0" * 12, "BSD-3-Clause", "human", 3, 10_000, frozenset({"cell"}))
    device = torch.device("cpu")

    def __init__(self, limit: int = 10**9) -> None:
        self.limit = limit
        self.tried: list[int] = []

    def forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, torch.Tensor]:
        lengths = pack.offsets.diff()
        self.tried.append(int(len(lengths) * lengths.max()))
        if self.tried[-1] > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert outputs == {"cell"}
        assert pack.values is not None
        cell = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        columns = torch.stack([pack.ids.double(), pack.values.double(), torch.ones(len(cell), dtype=torch.double)], 1)
        sums = torch.zeros(len(lengths), 3, dtype=torch.double).index_add_(0, cell, columns)
        return {"cell": sums.float()}


def cells(lengths: list[int], seed: int = 0) -> TokenBatch:
    n = sum(lengths)
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 50, n).astype(np.int32)
    return TokenBatch(ids, rng.integers(0, 9, n).astype(np.float32), np.cumsum([0, *lengths]), np.arange(len(lengths)))


def expected(batch: TokenBatch) -> NDArray[np.float32]:
    assert batch.values is not None
    rows = [slice(a, b) for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
    sums = [(batch.ids[row].sum(), batch.values[row].sum(), row.stop - row.start) for row in rows]
    return np.array(sums, np.float32).reshape(-1, 3)


def in_chunks(batch: TokenBatch, size: int) -> Iterator[TokenBatch]:
    for start in range(0, batch.n_cells, size):
        yield batch.take(np.arange(start, min(start + size, batch.n_cells)))


LENGTHS = np.random.default_rng(3).integers(0, 40, 90).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 90])
@pytest.mark.parametrize("budget", [1, 50, 10**6])
def test_results_stand_in_file_order(chunk: int, budget: int) -> None:
    batch = cells(LENGTHS)
    result = run(Sums(), in_chunks(batch, chunk), batch.n_cells, budget)
    assert result.vectors.dtype == np.float32
    np.testing.assert_array_equal(result.vectors, expected(batch))
    np.testing.assert_array_equal(result.lengths, LENGTHS)


def test_batches_may_come_in_any_order() -> None:
    batch = cells(LENGTHS)
    result = run(Sums(), list(in_chunks(batch, 13))[::-1], batch.n_cells, 200)
    np.testing.assert_array_equal(result.vectors, expected(batch))


def test_empty_cells_get_zeros_and_never_reach_the_model() -> None:
    model = Sums()
    result = run(model, [cells([0, 0, 0])], 3, 100)
    assert not result.vectors.any()
    assert model.tried == []
    assert run(model, [], 0, 100).vectors.shape == (0, 3)


def test_out_of_memory_halves_the_budget_once_and_goes_on(said: list[str]) -> None:
    batch = cells([10] * 400)
    model = Sums(limit=600)
    result = run(model, in_chunks(batch, 200), batch.n_cells, 1000)
    np.testing.assert_array_equal(result.vectors, expected(batch))
    # 2,000 tokens a chunk: the first pack of 1,000 fails, and nothing is tried above 500 again, in either chunk.
    assert model.tried == [1000] + [500] * 8
    assert said == ["WARNING out of GPU memory with packs of 1000 tokens; going on with 500"]


def test_out_of_memory_again_and_again(said: list[str]) -> None:
    batch = cells(LENGTHS)
    model = Sums(limit=max(LENGTHS) + 3)
    result = run(model, in_chunks(batch, 45), batch.n_cells, 10**6)
    np.testing.assert_array_equal(result.vectors, expected(batch))
    np.testing.assert_array_equal(result.lengths, LENGTHS)
    failed = [tokens for tokens in model.tried if tokens > model.limit]
    assert len(failed) == len(said) >= 3
    assert failed == sorted(failed, reverse=True)


def test_one_cell_too_big_raises_and_says_so(said: list[str]) -> None:
    with pytest.raises(torch.OutOfMemoryError) as raised:
        run(Sums(limit=100), [cells([5, 300, 5])], 3, 1000)
    assert raised.value.__notes__ == ["One cell of 300 tokens does not fit on cpu. Type device='cpu'."]
    assert len(said) == 1


def test_other_errors_of_the_model_are_raised_and_end_the_thread() -> None:
    class Broken(Sums):
        def forward(self, pack: Pack, outputs: frozenset[str]) -> dict[str, torch.Tensor]:
            raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        run(Broken(), in_chunks(cells(LENGTHS), 5), len(LENGTHS), 100)
    assert not producers()


def producers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "cfm-tokenise"]


def test_ahead_keeps_the_order() -> None:
    items: list[object] = [*range(50), None, StopIteration, "end"]
    assert list(ahead(items)) == items
    assert list(ahead([])) == []
    assert not producers()


def test_ahead_makes_the_next_item_meanwhile_and_not_more() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    for item in ahead(items()):
        deadline = time.monotonic() + 10
        while item < 9 and item + 1 not in made:  # would never end if items were made on demand
            assert time.monotonic() < deadline
            time.sleep(0.001)
        # One is in hand, one waits in the box, one waits to be put there.
        assert len(made) <= item + 3


def test_ahead_raises_what_the_producer_raised_after_what_it_made() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("disk")

    got = []
    with pytest.raises(OSError, match="disk"):  # noqa: PT012 -- what came before is part of the test
        for item in ahead(items()):
            got.append(item)
    assert got == [1, 2]
    assert not producers()


def test_ahead_ends_its_thread_when_the_consumer_stops() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    stream = ahead(endless())
    assert next(stream) == 0
    assert len(producers()) == 1
    stream.close()  # type: ignore[attr-defined]
    assert not producers()
    after = len(made)
    time.sleep(0.05)
    assert len(made) == after
