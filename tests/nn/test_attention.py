"""Attention over ragged cells, against the formula written out in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cfm.nn.attention import attention, biased_attention

HEADS, WIDTH = 3, 4
LENGTHS = [5, 1, 9, 2]


def random_tensors(*lengths: int, seed: int = 0) -> list[Tensor]:
    """A tensor float32[n, heads, width] for each number of tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, HEADS, WIDTH, generator=generator) for n in lengths]


def offsets_of(lengths: list[int]) -> list[int]:
    return np.cumsum([0, *lengths]).tolist()


def by_hand(q: NDArray, k: NDArray, v: NDArray, sees: NDArray[np.bool_]) -> NDArray[np.float64]:
    """softmax(q k^T / sqrt(width)) v for one cell, over the keys that each query sees."""
    found = np.zeros(q.shape)
    for token in range(len(q)):
        for head in range(q.shape[1]):
            scores = k[:, head] @ q[token, head] / np.sqrt(q.shape[2])
            weights = np.exp(np.where(sees[token], scores, -np.inf) - scores[sees[token]].max())
            found[token, head] = (weights / weights.sum()) @ v[:, head]
    return found


def reference(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], rule: Callable[[int, int], NDArray[np.bool_]]
) -> NDArray[np.float64]:
    """`by_hand` over cells; ``rule(cell, length)`` gives who sees whom."""
    parts, starts = [np.zeros((0, HEADS, WIDTH))], offsets_of(lengths)
    for cell, n in enumerate(lengths):
        span = slice(starts[cell], starts[cell + 1])
        parts.append(by_hand(*(x[span].double().numpy() for x in (q, k, v)), rule(cell, n)))
    return np.concatenate(parts)


def everything(cell: int, n: int) -> NDArray[np.bool_]:
    del cell
    return np.ones((n, n), bool)


def test_every_token_sees_its_cell_and_no_other() -> None:
    q, k, v = random_tensors(*[sum(LENGTHS)] * 3)
    found = attention(q, k, v, offsets_of(LENGTHS))
    assert found.shape == q.shape
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, reference(q, k, v, LENGTHS, everything), atol=1e-6)


def test_strides_do_not_matter() -> None:
    (packed,) = random_tensors(3 * sum(LENGTHS))
    q, k, v = packed.view(sum(LENGTHS), 3, HEADS, WIDTH).unbind(1)
    assert not q.is_contiguous()
    contiguous = [x.contiguous() for x in (q, k, v)]
    assert torch.equal(attention(q, k, v, offsets_of(LENGTHS)), attention(*contiguous, offsets_of(LENGTHS)))


def test_a_cell_does_not_depend_on_the_cells_beside_it() -> None:
    q, k, v = random_tensors(*[sum(LENGTHS)] * 3)
    together = attention(q, k, v, offsets_of(LENGTHS))
    for start, n in zip(offsets_of(LENGTHS), LENGTHS, strict=False):
        alone = attention(*(x[start : start + n] for x in (q, k, v)), [0, n])
        assert torch.equal(together[start : start + n], alone)


def test_cells_without_tokens_are_passed_over() -> None:
    q, k, v = random_tensors(*[sum(LENGTHS)] * 3)
    found = attention(q, k, v, offsets_of([0, 5, 1, 0, 9, 2, 0]))
    assert torch.equal(found, attention(q, k, v, offsets_of(LENGTHS)))


def test_no_cells() -> None:
    q, k, v = random_tensors(0, 0, 0)
    assert attention(q, k, v, [0]).shape == (0, HEADS, WIDTH)
    assert attention(q, k, v, [0], n_known=[]).shape == (0, HEADS, WIDTH)


def test_only_some_tokens_ask() -> None:
    q, k, v = random_tensors(*[sum(LENGTHS)] * 3)
    starts = offsets_of(LENGTHS)
    # Of the cells the first 2, 1, 0 and 2 tokens.
    asking = [0, 1, 5, 15, 16]
    found = attention(q[asking], k, v, starts, q_offsets=[0, 2, 3, 3, 5])
    np.testing.assert_allclose(found, reference(q, k, v, LENGTHS, everything)[asking], atol=1e-6)
    firsts = attention(q[starts[:-1]], k, v, starts, q_offsets=list(range(len(starts))))
    np.testing.assert_allclose(firsts, attention(q, k, v, starts)[starts[:-1]], atol=1e-6)


def known_first(n_known: list[int]) -> Callable[[int, int], NDArray[np.bool_]]:
    """The rule of scGPT as an explicit mask: known tokens are seen by all, unknown ones by themselves alone."""

    def sees(cell: int, n: int) -> NDArray[np.bool_]:
        mask = np.eye(n, dtype=bool)
        mask[:, : n_known[cell]] = True
        return mask

    return sees


# All known, none known, half, and a single unknown one: of each cell.
@pytest.mark.parametrize("n_known", [[5, 1, 9, 2], [0, 0, 0, 0], [2, 1, 4, 1], [4, 0, 8, 1], [1, 0, 1, 1]], ids=str)
def test_unknown_tokens_see_the_known_ones_and_themselves(n_known: list[int]) -> None:
    q, k, v = random_tensors(*[sum(LENGTHS)] * 3, seed=1)
    found = attention(q, k, v, offsets_of(LENGTHS), n_known=n_known)
    np.testing.assert_allclose(found, reference(q, k, v, LENGTHS, known_first(n_known)), atol=1e-6)
    mask = torch.zeros(sum(LENGTHS), sum(LENGTHS), dtype=torch.bool)
    for cell, (start, n) in enumerate(zip(offsets_of(LENGTHS), LENGTHS, strict=False)):
        mask[start : start + n, start : start + n] = torch.from_numpy(known_first(n_known)(cell, n))
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    masked = F.scaled_dot_product_attention(*heads_first, attn_mask=mask)[0].transpose(0, 1)
    torch.testing.assert_close(found, masked, atol=1e-6, rtol=0)


def test_all_known_is_the_plain_rule() -> None:
    q, k, v = random_tensors(*[sum(LENGTHS)] * 3)
    plain = attention(q, k, v, offsets_of(LENGTHS))
    assert torch.equal(attention(q, k, v, offsets_of(LENGTHS), n_known=LENGTHS), plain)


def test_large_scores_stay_finite() -> None:
    # exp of such scores is infinite in float32: the largest has to be taken off first.
    q, k, v = (300 * x for x in random_tensors(6, 6, 6))
    for n_known in (None, [3]):
        found = attention(q, k, v, [0, 6], n_known=n_known)
        rule = everything if n_known is None else known_first(n_known)
        np.testing.assert_allclose(found, reference(q, k, v, [6], rule), rtol=1e-4)


@pytest.mark.parametrize("n_known", [None, [2, 1, 4, 0]], ids=str)
def test_gradients(n_known: list[int] | None) -> None:
    rule = everything if n_known is None else known_first(n_known)
    (weights,) = random_tensors(sum(LENGTHS), seed=2)
    ours = [x.requires_grad_() for x in random_tensors(*[sum(LENGTHS)] * 3)]
    (attention(*ours, offsets_of(LENGTHS), n_known=n_known) * weights).sum().backward()

    exact = [x.detach().double().requires_grad_() for x in ours]
    parts = []
    for cell, (start, n) in enumerate(zip(offsets_of(LENGTHS), LENGTHS, strict=False)):
        q, k, v = (x[start : start + n] for x in exact)
        scores = torch.einsum("qhd,khd->hqk", q, k) / WIDTH**0.5
        hidden = torch.from_numpy(~rule(cell, n))
        parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    (torch.cat(parts) * weights.double()).sum().backward()
    for mine, right in zip(ours, exact, strict=True):
        assert right.grad.abs().max() > 0.1
        np.testing.assert_allclose(mine.grad, right.grad, atol=2e-6)


@pytest.mark.parametrize("n_known", [None, [2, 1, 4, 0]], ids=str)
def test_dropout_is_of_weights_and_keeps_the_mean(n_known: list[int] | None) -> None:
    draws = 1000
    starts = offsets_of(LENGTHS)
    single = random_tensors(*[sum(LENGTHS)] * 3)
    exact = attention(*single, starts, n_known=n_known)
    # A head for each draw: all heads of one token have the same vectors, and draw on their own.
    many = (x[:, None].expand(-1, draws, -1, -1).flatten(1, 2) for x in single)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = attention(*many, starts, n_known=n_known, dropout=0.3).view(-1, draws, HEADS, WIDTH)
    assert (found.std(1) > 0).all()
    # Six standard errors of the mean.
    assert ((found.mean(1) - exact).abs() < 6 * found.std(1) / draws**0.5).all()


@pytest.mark.parametrize("asking", [None, [0, 1, 2, 3, 4]])
def test_a_number_added_to_the_scores_of_a_key(asking: list[int] | None) -> None:
    """Against torch's own attention with a float mask; very low numbers leave keys out."""
    q, k, v = random_tensors(*[sum(LENGTHS)] * 3)
    places = offsets_of(LENGTHS)
    bias = torch.randn(sum(LENGTHS), generator=torch.Generator().manual_seed(4))
    bias[[2, 8]] = -1e9
    asked = places if asking is None else asking
    queries = q if asking is None else q[places[:-1]]
    found = biased_attention(queries, k, v, places, bias, q_offsets=asking)
    for i in range(len(LENGTHS)):
        own, seen = slice(asked[i], asked[i + 1]), slice(places[i], places[i + 1])
        parts = (queries[own].transpose(0, 1), k[seen].transpose(0, 1), v[seen].transpose(0, 1))
        expected = F.scaled_dot_product_attention(*parts, attn_mask=bias[seen].expand(asked[i + 1] - asked[i], -1))
        torch.testing.assert_close(found[own], expected.transpose(0, 1), atol=2e-6, rtol=0)
    for nothing in (torch.zeros(sum(LENGTHS)), torch.full((sum(LENGTHS),), 0.5)):
        plain = attention(queries, k, v, places, q_offsets=asking)
        torch.testing.assert_close(biased_attention(queries, k, v, places, nothing, q_offsets=asking), plain)
