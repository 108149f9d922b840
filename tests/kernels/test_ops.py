"""The operators: against the formula in float64, seen by autograd and the compiler, and what they refuse."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from cfm._core.errors import OptionError
from cfm.kernels import composite, gene_sums, ops
from cfm.kernels.ragged import checked_known, checked_offsets, row_tiles

LENGTHS = [5, 0, 17, 1, 33, 0]
KNOWN = [2, 0, 17, 0, 9, 0]


def tokens(n: int, heads: int = 2, width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(n, 3, heads, width, generator=generator, dtype=torch.float64).to(dtype).unbind(1))


def places(lengths: list[int]) -> Tensor:
    return torch.tensor(np.cumsum([0, *lengths]))


def call(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, q_offsets: Tensor | None = None,
    n_known: list[int] | None = None, with_lse: bool = True, backend: str = "sdpa",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return ops.varlen_attention(*arguments(q, k, v, offsets, q_offsets, n_known, with_lse, backend))


def arguments(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, q_offsets: Tensor | None = None,
    n_known: list[int] | None = None, with_lse: bool = True, backend: str = "sdpa",
) -> tuple:  # fmt: skip
    known = None if n_known is None else torch.tensor(n_known, dtype=torch.int64)
    scale = composite.default_scale(q.shape[-1])
    return (q, k, v, offsets, q_offsets, known, None, None, 0, scale, with_lse, backend)


def by_mask(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], n_known: list[int] | None) -> tuple[Tensor, Tensor]:
    """Result and log-sum-exp from one score matrix over all tokens of all cells, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    n, starts = len(q), places(lengths).tolist()
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i, (a, b) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        mask[a:b, a : b if n_known is None else a + n_known[i]] = True
    mask |= torch.eye(n, dtype=torch.bool)
    scores = (torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v), scores.logsumexp(-1)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("n_known", [None, KNOWN, LENGTHS, [0] * 6], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=str
)
def test_result_and_log_sum_exp(backend, n_known, dtype, tolerance):
    q, k, v = tokens(sum(LENGTHS), dtype=dtype)
    out, lse = call(q, k, v, places(LENGTHS), n_known=n_known, backend=backend)
    right, right_lse = by_mask(q, k, v, LENGTHS, n_known)
    assert (out.dtype, lse.dtype) == (dtype, composite.lse_dtype(q))
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), right, atol=tolerance, rtol=0)
    # Unknown tokens of 16 bits take their scores as torch multiplies them, in 16 bits.
    torch.testing.assert_close(lse.double(), right_lse, atol=tolerance if dtype == torch.float64 else 2e-2, rtol=0)
    without, none = call(q, k, v, places(LENGTHS), n_known=n_known, backend=backend, with_lse=False)
    assert torch.equal(without, out)
    assert none.shape == (2, 0)


def test_offsets_of_32_bits_do_as_well():
    q, k, v = tokens(sum(LENGTHS))
    found, wide = (call(q, k, v, places(LENGTHS).to(dtype))[0] for dtype in (torch.int32, torch.int64))
    assert torch.equal(found, wide)


def test_a_cell_alone_and_cells_in_another_order_have_the_same_bits():
    q, k, v = tokens(sum(LENGTHS))
    starts = places(LENGTHS).tolist()
    out, lse = call(q, k, v, places(LENGTHS), n_known=KNOWN)
    for i in (0, 2, 3, 4):
        part = slice(starts[i], starts[i + 1])
        alone, alone_lse = call(q[part], k[part], v[part], places([LENGTHS[i]]), n_known=[KNOWN[i]])
        assert torch.equal(alone, out[part])
        assert torch.equal(alone_lse, lse[:, part])


def test_what_is_in_one_cell_stays_there():
    q, k, v = (x.clone() for x in tokens(24))
    offsets = places([8, 8, 8])
    before, lse = call(q, k, v, offsets)
    for x in (q, k, v):
        x[8:16] = torch.nan
    after, after_lse = call(q, k, v, offsets)
    healthy = [*range(8), *range(16, 24)]
    assert torch.equal(after[healthy], before[healthy])
    assert torch.equal(after_lse[:, healthy], lse[:, healthy])


def test_one_vector_added_to_all_keys_moves_only_the_log_sum_exp():
    q, k, v = tokens(sum(LENGTHS), dtype=torch.float64)
    extra = torch.linspace(-1, 1, 8, dtype=torch.float64)
    out, lse = call(q, k, v, places(LENGTHS), n_known=KNOWN)
    moved, moved_lse = call(q, k + extra, v, places(LENGTHS), n_known=KNOWN)
    torch.testing.assert_close(moved, out)
    torch.testing.assert_close(moved_lse, lse + (q @ extra).T / 8**0.5)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_no_tokens(backend):
    for lengths in ([], [0, 0]):
        q, k, v = tokens(0)
        out, lse = call(q, k, v, places(lengths), backend=backend)
        assert (out.shape, lse.shape) == ((0, 2, 8), (2, 0))


# --- gradients


@pytest.mark.parametrize("n_known", [None, [2, 0, 4]], ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_gradients_against_differences(n_known, backend):
    lengths = [3, 0, 4]
    q, k, v = (x.contiguous().requires_grad_() for x in tokens(7, width=4, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda *x: call(*x, places(lengths), n_known=n_known, backend=backend)[0], (q, k, v)
    )


@pytest.mark.parametrize("with_lse", [False, True])
@pytest.mark.parametrize("n_known", [None, KNOWN], ids=str)
def test_gradients_against_autograd(n_known, with_lse):
    ours = [x.contiguous().requires_grad_() for x in tokens(sum(LENGTHS))]
    exact = [x.detach().double().requires_grad_() for x in ours]
    (weights,) = tokens(sum(LENGTHS), seed=1)[:1]
    (call(*ours, places(LENGTHS), n_known=n_known, with_lse=with_lse)[0] * weights).sum().backward()
    (by_mask(*exact, LENGTHS, n_known)[0] * weights.double()).sum().backward()
    for mine, right in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), right.grad, atol=3e-6, rtol=0)


@pytest.mark.parametrize("n_known", [None, 0.5], ids=["all", "some"])
def test_gradients_of_200_cells_of_mixed_length(n_known):
    lengths = np.random.default_rng(0).integers(0, 20, 200).tolist()
    known = None if n_known is None else [n // 2 for n in lengths]
    ours = [x.contiguous().requires_grad_() for x in tokens(sum(lengths))]
    exact = [x.detach().double().requires_grad_() for x in ours]
    (weights,) = tokens(sum(lengths), seed=1)[:1]
    (call(*ours, places(lengths), n_known=known)[0] * weights).sum().backward()
    (by_mask(*exact, lengths, known)[0] * weights.double()).sum().backward()
    for mine, right in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), right.grad, atol=3e-6, rtol=0)


@pytest.mark.parametrize("n_known", [None, [20]], ids=["all", "some"])
def test_gradients_at_scores_of_10_000(n_known):
    q, k, v = tokens(40)
    q, k = 100 * q, 100 * k
    leaves, written_out = ([x.clone().requires_grad_() for x in (q, k, v)] for _ in range(2))
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    (weights,) = tokens(40, seed=1)[:1]
    (call(*leaves, places([40]), n_known=n_known)[0] * weights).sum().backward()
    sees = torch.eye(40, dtype=torch.bool)
    sees[:, : 40 if n_known is None else n_known[0]] = True
    for inputs in (written_out, exact):
        scores = torch.einsum("qhd,khd->hqk", inputs[0], inputs[1]) / 8**0.5
        assert scores.max() > 1e4
        assert scores.min() < -1e4
        right = torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, -torch.inf).softmax(-1), inputs[2])
        (right * weights.to(right)).sum().backward()
    for mine, plain, right in zip(leaves, written_out, exact, strict=True):
        # Weights come back as exp(score - log-sum-exp), and both are rounded where they are: so far off are weights.
        # The formula written out subtracts the largest score itself, and can be exact here.
        rounding = float(scores.detach().abs().max()) * 2**-23
        ours, its = ((x.grad - right.grad).abs().max() for x in (mine, plain))
        assert ours <= 2 * its + rounding * right.grad.abs().max().clamp(min=1)


def test_unknown_keys_get_a_gradient_from_their_own_query_only():
    q, k, v = (x.contiguous().requires_grad_() for x in tokens(22))
    out, _ = call(q, k, v, places([10, 12]), n_known=[4, 3])
    d_q, d_k, d_v = torch.autograd.grad(out[6].sum(), (q, k, v))
    reached = [*range(4), 6]
    for grad, rows in ((d_q, [6]), (d_k, reached), (d_v, reached)):
        assert grad.flatten(1).any(1).nonzero().flatten().tolist() == rows


@pytest.mark.parametrize("lengths", [[], [0, 0]], ids=str)
def test_gradients_of_no_tokens(lengths):
    q, k, v = (x.contiguous().requires_grad_() for x in tokens(0))
    call(q, k, v, places(lengths), n_known=[0] * len(lengths))[0].sum().backward()
    assert q.grad.shape == k.grad.shape == v.grad.shape == (0, 2, 8)


def test_gradients_without_the_cpu_kernel():
    # What the other devices use: the formula of torch's operations.
    q, k, v = (x.double() for x in tokens(300, dtype=torch.float64))
    out, lse = composite.with_lse(q, k, v, [0, 300], [0, 300], None, 0.3)
    (grad,) = tokens(300, seed=2, dtype=torch.float64)[:1]
    right = composite._one_backward(grad, q, k, v, out, lse, 0.3)
    ours = composite._one_backward(*(x.to("meta") for x in (grad, q, k, v, out, lse)), 0.3)
    assert [x.shape for x in ours] == [x.shape for x in right]


def test_a_gradient_through_the_log_sum_exp_is_refused():
    q, k, v = (x.requires_grad_() for x in tokens(4))
    _, lse = call(q, k, v, places([4]))
    assert not lse.requires_grad


def test_only_some_ask_with_gradients():
    lengths = [5, 2, 9]
    asking = [0, 3, 5, 7, 8]
    q, k, v = (x.contiguous().requires_grad_() for x in tokens(16, dtype=torch.float64))
    out, _ = call(q[asking], k, v, places(lengths), q_offsets=torch.tensor([0, 2, 3, 5]))
    right, _ = by_mask(q, k, v, lengths, None)
    torch.testing.assert_close(out, right[asking])
    found = torch.autograd.grad(out.square().sum(), (q, k, v))
    expected = torch.autograd.grad(right[asking].square().sum(), (q, k, v))
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, exact)


# --- the compiler


@pytest.mark.parametrize("n_known", [None, KNOWN], ids=str)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(n_known, gradients):
    q, k, v = (x.contiguous().requires_grad_(gradients) for x in tokens(sum(LENGTHS)))
    opcheck(ops.varlen_attention, arguments(q, k, v, places(LENGTHS), None, n_known))
    opcheck(ops.varlen_attention, arguments(q, k, v, places(LENGTHS), None, n_known, False))


def test_opcheck_of_the_others():
    q, k, v = tokens(sum(LENGTHS))
    offsets = places(LENGTHS)
    out, lse = call(q, k, v, offsets)
    opcheck(
        ops.varlen_attention_backward, (torch.ones_like(out), q, k, v, out, lse, offsets, None, None, None, 0.3, "sdpa")
    )
    genes = torch.arange(len(q), dtype=torch.int32) % 7
    opcheck(ops.gene_attention_sum, (q, k, lse, offsets, None, None, genes, 0.3, *tables(7), "sdpa"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("n_known", [None, KNOWN], ids=str)
def test_compiled_whole_and_for_every_length(n_known):
    def step(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, known: Tensor | None) -> Tensor:
        out, _ = ops.varlen_attention(q * 2, k, v, offsets, None, known, None, None, 0, 0.3, True, "sdpa")
        return out.flatten(1) + 1

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for lengths in (LENGTHS, [1, 70, 4]):
        if n_known is not None:
            n_known = [n // 2 for n in lengths]
        known = None if n_known is None else torch.tensor(n_known)
        results = []
        for function in (step, compiled):
            inputs = [x.contiguous().requires_grad_() for x in tokens(sum(lengths))]
            out = function(*inputs, places(lengths), known)
            out.square().sum().backward()
            results.append([out.detach(), *(x.grad for x in inputs)])
        for plain, made in zip(*results, strict=True):
            torch.testing.assert_close(made, plain, atol=1e-6, rtol=1e-6)


# --- genes by genes


def tables(n_genes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Empty sums, counts, and the number of bad weights."""
    sums, counts = (torch.zeros(n_genes, n_genes, dtype=dtype) for dtype in (torch.int64, torch.int32))
    return sums, counts, torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize("n_known", [None, KNOWN], ids=str)
def test_gene_sums_are_the_mean_over_heads_of_the_written_out_weights(n_known):
    lengths, n_genes = [200, 0, 17, 1, 33, 0], 40
    n = sum(lengths)
    q, k, v = tokens(n)
    offsets = places(lengths)
    _, lse = call(q, k, v, offsets, n_known=n_known)
    # Some tokens are no gene of the table; a gene stands once in a cell, except in the first, which has more tokens than genes.
    genes = torch.cat(
        [torch.randperm(max(m, n_genes), generator=torch.Generator().manual_seed(m))[:m] for m in lengths]
    )
    genes = torch.where(genes < n_genes - 5, genes, -1).int()
    sums, counts, bad = tables(n_genes)
    known = None if n_known is None else torch.tensor(n_known)
    ops.gene_attention_sum(q, k, lse, offsets, known, None, genes, 8**-0.5, sums, counts, bad, "sdpa")
    assert not bad.any()

    right, n_right = np.zeros((n_genes, n_genes)), np.zeros((n_genes, n_genes), np.int32)
    starts = offsets.tolist()
    for i, (a, b) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        scores = torch.einsum("qhd,khd->hqk", q[a:b].double(), k[a:b].double()) * 8**-0.5
        sees = torch.eye(b - a, dtype=torch.bool)
        sees[:, : b - a if n_known is None else n_known[i]] = True
        scores = scores.masked_fill(~sees, -torch.inf)
        weights = scores.softmax(-1).mean(0).numpy()
        for x, row in enumerate(genes[a:b].tolist()):
            for y, column in enumerate(genes[a:b].tolist()):
                if row >= 0 <= column and sees[x, y]:
                    right[row, column] += weights[x, y]
                    n_right[row, column] += 1
    np.testing.assert_array_equal(counts, n_right)
    np.testing.assert_allclose(sums.numpy() * gene_sums.UNIT, right, atol=2e-6)
    assert np.isnan(gene_sums.mean(sums, counts).numpy()).sum() == (n_right == 0).sum() > 0


def test_gene_sums_have_the_same_bits_in_any_order_and_rows_of_a_cell_sum_to_one():
    lengths = [50, 20, 31]
    q, k, v = tokens(sum(lengths))
    _, lse = call(q, k, v, places(lengths))
    genes = torch.cat([torch.randperm(60, generator=torch.Generator().manual_seed(n))[:n] for n in lengths]).int()
    starts = places(lengths).tolist()

    def summed(cells: list[int]) -> Tensor:
        sums, counts, bad = tables(60)
        for i in cells:
            part = slice(starts[i], starts[i + 1])
            ops.gene_attention_sum(
                q[part], k[part], lse[:, part], places([lengths[i]]), None, None, genes[part], 8**-0.5, sums, counts, bad,
                "sdpa",
            )  # fmt: skip
        return sums

    assert torch.equal(summed([0, 1, 2]), summed([2, 0, 1]))
    rows = summed([0]).sum(1).double() * gene_sums.UNIT
    present = torch.zeros(60, dtype=torch.bool).index_fill(0, genes[:50].long(), True)
    torch.testing.assert_close(rows[present], torch.ones(50, dtype=torch.float64), atol=2e-6, rtol=0)
    assert not rows[~present].any()


def test_weights_that_are_no_numbers_are_counted_and_left_out():
    q, k, v = tokens(6)
    _, lse = call(q, k, v, places([3, 3]))
    lse[0, 1] = torch.nan
    sums, counts, bad = tables(6)
    ops.gene_attention_sum(
        q, k, lse, places([3, 3]), None, None, torch.arange(6).int(), 8**-0.5, sums, counts, bad, "sdpa"
    )
    assert bad.item() == 3
    assert not sums[1].any()
    assert (sums[[0, 2]][:, :3] > 0).all()
    assert counts.sum() == 18


# --- what is refused


def test_tokens_that_cannot_be():
    q, k, v = tokens(6)
    offsets = places([6])
    for bad, words in [
        ((q.double(), k, v), "one dtype"),
        ((q.long(), k.long(), v.long()), "floating point"),
        ((q[:, 0], k, v), "shape"),
        ((q, k[:, :1], v), "same heads and width"),
        ((q, k, v[:5]), "as many tokens"),
        ((q, k.to("meta"), v), "one device"),
        ((q.transpose(1, 2).contiguous().transpose(1, 2), k, v), r"q\.contiguous\(\)"),
        ((q[:4], k, v), "q_offsets has to say"),
    ]:
        with pytest.raises(OptionError, match=words):
            call(*bad, offsets)


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([0, 4, 2, 6], "do not ascend: number 1 is 4, the next one 2"),
        ([0, 3], "end at 3, and there are 6 tokens"),
        ([0, 9], "end at 9, and there are 6 tokens"),
        ([1, 6], "start at 1"),
        ([], "one whole number"),
        ([[0, 6]], "one whole number"),
        ([0.0, 6.0], "int32 or int64"),
    ],
)
def test_offsets_that_cannot_be(offsets, words):
    tensor = torch.tensor(offsets) if offsets else torch.tensor(offsets, dtype=torch.int64)
    with pytest.raises(OptionError, match=words):
        call(*tokens(6), tensor)


def test_known_tokens_and_queries_that_cannot_be():
    q, k, v = tokens(6)
    for known, words in [([7, 0], "cell 0 is 7"), ([-1, 0], "cell 0 is -1"), ([1], "2 cells")]:
        with pytest.raises(OptionError, match=words):
            call(q, k, v, places([4, 2]), n_known=known)
    with pytest.raises(OptionError, match="do not go together"):
        call(q, k, v, places([4, 2]), q_offsets=places([4, 2]), n_known=[1, 1])
    with pytest.raises(OptionError, match="for 1 cells, offsets for 2"):
        call(q, k, v, places([4, 2]), q_offsets=places([6]))
    with pytest.raises(OptionError, match="Cell 1 has queries and no keys"):
        call(q, k, v, places([6, 0]), q_offsets=places([4, 2]))


def test_other_backends():
    q, k, v = tokens(6)
    with pytest.raises(OptionError, match="there are 'cuda', 'triton', 'sdpa', 'eager'"):
        call(q, k, v, places([6]), backend="fast")
    with pytest.raises(OptionError, match="needs tiles"):
        call(q, k, v, places([6]), backend="cuda")
    with pytest.raises(OptionError, match="'triton' has no gradients"):
        ops.varlen_attention_backward(q, q, k, v, q, q[..., 0], places([6]), None, None, None, 1.0, "triton")


def test_tables_that_cannot_be():
    q, k, v = tokens(6)
    lse, genes, (table, counts, bad_weights) = torch.zeros(2, 6), torch.zeros(6, dtype=torch.int32), tables(3)
    for bad, words in [
        ((lse[:, :0], genes, table, counts, bad_weights), "ask for with_lse"),
        ((lse, genes.long(), table, counts, bad_weights), "int32"),
        ((lse, genes + 3, table, counts, bad_weights), "3 rows"),
        ((lse, genes, table.float(), counts, bad_weights), "sums is torch.float32"),
        ((lse, genes, table, counts[:2, :2], bad_weights), "contiguous and of one shape"),
        ((lse, genes, table, counts, bad_weights[:0]), "bad is torch.int64"),
    ]:
        with pytest.raises(OptionError, match=words):
            ops.gene_attention_sum(q, k, bad[0], places([6]), None, None, bad[1], 1.0, *bad[2:], "sdpa")
    with pytest.raises(OptionError, match="needs tiles"):
        ops.gene_attention_sum(q, k, lse, places([6]), None, None, genes, 1.0, table, counts, bad_weights, "cuda")


def test_more_than_2_31_elements_between_the_first_and_the_last_number():
    # Memory that nobody writes to is not used; only the rows are.
    n, stride = 5, 2**29 + 64
    try:
        buffer = torch.empty((n - 1) * stride + 64, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no 4 GiB of addresses: {error}")
    far = buffer.as_strided((n, 1, 64), (stride, 64, 1))
    assert (n - 1) * far.stride(0) > 2**31
    near = torch.randn(n, 1, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    far.copy_(near)
    for n_known in (None, [3]):
        right, right_lse = call(near, near, near, places([n]), n_known=n_known)
        out, lse = call(far, far, far, places([n]), n_known=n_known)
        assert torch.equal(out, right)
        assert torch.equal(lse, right_lse)
    with pytest.raises(OptionError, match="more than 2,147,483,647"):
        checked_offsets([0, 2**31], 2**31)


# --- tiles


@pytest.mark.parametrize("n_known", [None, 0.5], ids=str)
def test_tiles_cover_every_row_once_and_the_longest_come_first(n_known):
    lengths = np.array([0, 1, 63, 64, 65, 639, 640, 641, 1300, 0, 128, 2000])
    offsets = np.cumsum([0, *lengths])
    known = None if n_known is None else (n_known * lengths).astype(int)
    tiles = row_tiles(offsets, known)
    assert (tiles.cells.dtype, tiles.rows.dtype) == (np.int32, np.int32)
    sizes = np.where(np.arange(len(tiles.cells)) < tiles.n_wide, 128, 64)
    seen = np.zeros(offsets[-1], int)
    for cell, row, size in zip(tiles.cells, tiles.rows, sizes, strict=True):
        assert row % size == 0
        assert row < lengths[cell]
        assert size == (128 if lengths[cell] >= 640 else 64)
        seen[offsets[cell] + row : offsets[cell] + min(row + size, lengths[cell])] += 1
    assert (seen == 1).all()
    for part in (slice(tiles.n_wide), slice(tiles.n_wide, None)):
        work = (lengths if known is None else known)[tiles.cells[part]]
        if known is None:
            assert (np.diff(work) <= 0).all()
        else:
            assert (np.diff(work) <= 128).all()


def test_no_tiles_where_there_are_no_tokens():
    for offsets in ([0], [0, 0, 0]):
        tiles = row_tiles(offsets)
        assert (len(tiles.cells), len(tiles.rows), tiles.n_wide) == (0, 0, 0)


def test_known_of_no_cells():
    assert len(checked_known([], np.array([0]))) == 0
