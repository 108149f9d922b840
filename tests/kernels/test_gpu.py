"""The kernels on a GPU, against float64 on the CPU. `benchmarks/gpu.py` runs these tests before it takes times."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import cfm
from cfm.kernels import backends, composite, gene_sums, launch, ops, performer
from cfm.kernels.plan import plan
from cfm.nn.attention import attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is False")

DEVICE = torch.device("cuda", 0)
WIDTH = 64
SCALE = WIDTH**-0.5
OURS = ("cuda", "triton")
HALF = (torch.bfloat16, torch.float16)

# Around both sizes of tiles, from which on cells are cut into wide ones (640), the ring of the Hopper kernel reused (more
# than nine tiles of 128 keys), and cells without tokens.
CELLS = {
    "edges": [1, 0, 2, 7, 63, 64, 65, 127, 128, 129, 191, 192, 193, 0],
    "wide": [639, 640, 641, 700, 767, 768, 769],
    "ring": [1290, 0, 520],
    "one": [1000],
    "many": [7] * 200,
}
SHARES = (None, 0.0, 0.5, 1.0)


def known_of(lengths: Sequence[int], share: float | None) -> list[int] | None:
    """Known tokens: a share of each cell, or None; in cells of a tile and more also what meets its edge."""
    if share is None:
        return None
    known = [int(share * n) for n in lengths]
    edges = (64, 63, 65, 128, 127)
    return [
        min(n, edges[i % 5]) if share == 0.5 and n > 128 else k
        for i, (n, k) in enumerate(zip(lengths, known, strict=True))
    ]


def tokens(n: int, heads: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Views of a fused projection on the GPU; made on the CPU, so that all GPUs get the same."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(n, 3, heads, WIDTH, generator=generator).to(dtype).to(DEVICE).unbind(1))


def exactly(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().cpu().double() for x in tensors]


def offsets_of(lengths: Sequence[int]) -> list[int]:
    return np.cumsum([0, *lengths]).tolist()


def forward(
    backend: str, qkv: Sequence[Tensor], lengths: Sequence[int], known: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    offsets = offsets_of(lengths)
    made = plan(offsets, None, known, offsets[-1], offsets[-1], DEVICE, backend)
    return ops.varlen_attention(*qkv, made.offsets, None, made.n_known, made.tiles, made.narrow, made.n_wide, SCALE, True,
                                backend)  # fmt: skip


def right(qkv: Sequence[Tensor], lengths: Sequence[int], known: list[int] | None = None) -> tuple[Tensor, Tensor]:
    offsets = offsets_of(lengths)
    return composite.by_hand(*exactly(qkv), offsets, offsets, known, SCALE)


def plain(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], known: list[int] | None) -> Tensor:
    """Scores, softmax, product in the tokens' own dtype, as one writes it in PyTorch."""
    out = torch.empty_like(q)
    for i, (a, n) in enumerate(zip(offsets_of(lengths), lengths, strict=False)):
        one_q, one_k, one_v = (x[a : a + n].transpose(0, 1) for x in (q, k, v))
        scores = one_q @ one_k.transpose(1, 2) * SCALE
        if known is not None:
            scores = scores.masked_fill(~composite.visible(torch.Size((n, n)), 0, known[i], q.device), -torch.inf)
        out[a : a + n] = (scores.softmax(-1) @ one_v).transpose(0, 1)
    return out


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest error; NaN stays NaN, which no comparison passes."""
    assert found.shape == expected.shape
    return float((found.detach().cpu().double() - expected).abs().max()) if found.numel() else 0.0


@pytest.fixture(params=OURS)
def backend(request: pytest.FixtureRequest) -> str:
    if why := backends.lacks(request.param, backends.Call(DEVICE, torch.bfloat16, WIDTH)):
        pytest.skip(why)
    return request.param


@pytest.fixture
def cuda() -> None:
    if why := backends.lacks("cuda", backends.Call(DEVICE, torch.bfloat16, WIDTH)):
        pytest.skip(why)


# -- Forward ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", SHARES, ids=str)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_result_and_lse_against_float64(backend: str, dtype: torch.dtype, name: str, share: float | None) -> None:
    lengths = CELLS[name]
    known = known_of(lengths, share)
    qkv = tokens(sum(lengths), 3, dtype)
    out, lse = forward(backend, qkv, lengths, known)
    expected, expected_lse = right(qkv, lengths, known)
    assert worst(out, expected) <= 2 * worst(plain(*qkv, lengths, known), expected) + 1e-6
    # log-sum-exp is float32 throughout; exp2 and log2 of the hardware have 2 to 3 units in the last place.
    assert worst(lse, expected_lse) <= 5e-5


@pytest.mark.parametrize("heads", [1, 4, 8, 12, 18, 20])
def test_any_number_of_heads(backend: str, heads: int) -> None:
    lengths = [65, 700]
    qkv = tokens(765, heads, torch.bfloat16)
    assert worst(forward(backend, qkv, lengths)[0], right(qkv, lengths)[0]) <= 2e-2


@pytest.mark.parametrize("share", [None, 0.5], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_twenty_runs_have_the_same_bits(backend: str, name: str, share: float | None) -> None:
    lengths = CELLS[name]
    qkv, known = tokens(sum(lengths), 8, torch.bfloat16), known_of(lengths, share)
    out, lse = forward(backend, qkv, lengths, known)
    for _ in range(20):
        again, lse_again = forward(backend, qkv, lengths, known)
        assert torch.equal(again, out)
        assert torch.equal(lse_again, lse)


@pytest.mark.parametrize("share", [None, 0.5], ids=str)
def test_a_cell_alone_has_the_bits_that_it_has_among_others(backend: str, share: float | None) -> None:
    lengths = [150, 0, 33, 64, 700, 129, 1100]
    known, offsets = known_of(lengths, share), offsets_of(lengths)
    qkv = tokens(offsets[-1], 4, torch.bfloat16)
    out, lse = forward(backend, qkv, lengths, known)
    for i, n in enumerate(lengths):
        cell = slice(offsets[i], offsets[i] + n)
        alone, lse_alone = forward(backend, [x[cell] for x in qkv], [n], known and [known[i]])
        assert torch.equal(alone, out[cell])
        assert torch.equal(lse_alone, lse[:, cell])


def test_views_of_a_fused_projection_have_the_bits_of_copies(backend: str) -> None:
    lengths = [90, 800]
    qkv = tokens(890, 5, torch.bfloat16)
    assert not qkv[0].is_contiguous()
    strided, lse = forward(backend, qkv, lengths)
    packed, lse_packed = forward(backend, [x.contiguous() for x in qkv], lengths)
    assert torch.equal(strided, packed)
    assert torch.equal(lse, lse_packed)
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in qkv]
    assert torch.equal(forward(backend, heads_first, lengths)[0], packed)
    odd = [torch.zeros(890, 5, WIDTH + 1, dtype=x.dtype, device=DEVICE)[..., 1:].copy_(x) for x in qkv]
    assert torch.equal(forward(backend, odd, lengths)[0], packed)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]], ids=str)
def test_cells_without_tokens(backend: str, lengths: list[int]) -> None:
    qkv = tokens(0, 4, torch.bfloat16)
    out, lse = forward(backend, qkv, lengths)
    assert out.shape == (0, 4, WIDTH)
    assert lse.shape == (4, 0)
    torch.cuda.synchronize()


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("lengths", [[70, 60, 65], [700, 650, 700]], ids=str)
def test_a_bad_cell_stays_alone(backend: str, lengths: list[int], bad: float) -> None:
    qkv = [x.contiguous() for x in tokens(sum(lengths), 2, torch.bfloat16)]
    first, second = lengths[0], lengths[0] + lengths[1]
    healthy, _ = forward(backend, qkv, lengths)
    for x in qkv:
        x[first:second] = bad
    out, _ = forward(backend, qkv, lengths)
    assert torch.equal(out[:first], healthy[:first])
    assert torch.equal(out[second:], healthy[second:])
    assert out[first:second].isnan().all()


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("share", SHARES, ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_every_row_is_written_and_none_beyond(name: str, share: float | None) -> None:
    lengths = CELLS[name]
    n, known, offsets = sum(lengths), known_of(lengths, share), offsets_of(lengths)
    qkv = tokens(n, 3, torch.bfloat16)
    made = plan(offsets, None, known, n, n, DEVICE, "cuda")
    wide = torch.full((n + 128, 5, WIDTH), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    lse = torch.full((3, n), torch.nan, device=DEVICE)
    out = wide[:n, 1:4]
    launch.forward(*qkv, out, lse, made.offsets, made.n_known, made.tiles, made.n_wide, SCALE)
    expected, expected_lse = forward("cuda", qkv, lengths, known)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
    assert not out.isnan().any()
    assert wide[n:].isnan().all()
    assert wide[:, [0, 4]].isnan().all()


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(("n", "apart"), [(40, 2**26), (700, 2**22)], ids=["narrow", "wide"])
def test_offsets_beyond_32_bits(n: int, apart: int) -> None:
    # 64-bit offsets: the last tokens begin past element 2^31. Queries, keys and values share the memory.
    if torch.cuda.mem_get_info(DEVICE)[0] < 3 * n * apart:
        pytest.skip("not enough memory on this GPU")
    large = torch.empty(n * apart, dtype=torch.bfloat16, device=DEVICE).view(n, apart // WIDTH, WIDTH)
    near = [x.contiguous() for x in tokens(n, 1, torch.bfloat16)]
    far = [large[:, i : i + 1].copy_(x) for i, x in enumerate(near)]
    assert torch.equal(forward("cuda", far, [n])[0], forward("cuda", near, [n])[0])


@pytest.mark.usefixtures("cuda")
def test_on_a_stream_of_its_own() -> None:
    lengths = [300, 900]
    qkv = tokens(1200, 8, torch.bfloat16)
    expected, _ = forward("cuda", qkv, lengths)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream(DEVICE)
    with torch.cuda.stream(stream):
        # The tokens are made on this stream after a wait: a kernel on another one would read zeros.
        late = [torch.zeros_like(x) for x in qkv]
        if hasattr(torch.cuda, "_sleep"):
            torch.cuda._sleep(50_000_000)
        for into, x in zip(late, qkv, strict=True):
            into.copy_(x)
        out, _ = forward("cuda", late, lengths)
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("size", [0, 100], ids=["all equal", "scores of 1e4"])
def test_extreme_scores(size: float) -> None:
    lengths = [150, 700]
    q, k, v = tokens(850, 2, torch.bfloat16)
    qkv = [q * size, k * size, v.contiguous()]
    out, lse = forward("cuda", qkv, lengths)
    expected, expected_lse = right(qkv, lengths)
    assert worst(out, expected) <= 2e-2
    assert worst(lse, expected_lse) <= 1e-6 * max(20.0, float(expected_lse.abs().max()))


# -- Backward -----------------------------------------------------------------------------------------------------------


def gradients(
    qkv: Sequence[Tensor], lengths: Sequence[int], known: list[int] | None, grad: Tensor
) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in qkv]
    return torch.autograd.grad(forward("cuda", leaves, lengths, known)[0], leaves, grad)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("share", SHARES, ids=str)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gradients_against_float64(dtype: torch.dtype, name: str, share: float | None) -> None:
    lengths = CELLS[name]
    known, offsets = known_of(lengths, share), offsets_of(lengths)
    qkv = tokens(sum(lengths), 2, dtype)
    grad = tokens(sum(lengths), 2, dtype, seed=1)[0].contiguous()
    found = gradients(qkv, lengths, known, grad)
    exact = exactly(qkv)
    out, lse = right(qkv, lengths, known)
    expected = composite.backward(grad.cpu().double(), *exact, out, lse, offsets, offsets, known, SCALE)
    leaves = [x.detach().requires_grad_() for x in qkv]
    naive = torch.autograd.grad(plain(*leaves, lengths, known), leaves, grad)
    for what, mine, theirs, x in zip("qkv", found, naive, expected, strict=True):
        # Where a gradient is 0, as that of q with one key, plain PyTorch may be exact by chance.
        assert worst(mine, x) <= 2 * worst(theirs, x) + 4e-3 * max(1.0, float(x.abs().max())), what


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("share", [None, 0.5], ids=str)
def test_gradients_have_the_same_bits_every_time_and_alone(share: float | None) -> None:
    lengths = [150, 0, 33, 700, 64]
    known, offsets = known_of(lengths, share), offsets_of(lengths)
    qkv = tokens(offsets[-1], 4, torch.bfloat16)
    grad = tokens(offsets[-1], 4, torch.bfloat16, seed=1)[0].contiguous()
    found = gradients(qkv, lengths, known, grad)
    for _ in range(20):
        assert all(map(torch.equal, gradients(qkv, lengths, known, grad), found))
    for i, n in enumerate(lengths):
        cell = slice(offsets[i], offsets[i] + n)
        alone = gradients([x[cell] for x in qkv], [n], known and [known[i]], grad[cell])
        assert all(torch.equal(mine, x[cell]) for mine, x in zip(alone, found, strict=True))


@pytest.mark.usefixtures("cuda")
def test_gradients_of_unknown_keys_come_from_themselves() -> None:
    qkv = tokens(200, 2, torch.bfloat16)
    grad = torch.zeros(200, 2, WIDTH, dtype=torch.bfloat16, device=DEVICE)
    grad[150] = 1
    _, d_k, d_v = gradients(qkv, [200], [100], grad)
    others = torch.arange(100, 200, device=DEVICE) != 150
    assert not d_k[100:][others].any()
    assert not d_v[100:][others].any()
    assert d_v[150].any()


@pytest.mark.usefixtures("cuda")
def test_through_the_function_that_models_call() -> None:
    lengths = [300, 700]
    qkv = tokens(1000, 8, torch.bfloat16)
    with cfm.settings.override(attention="cuda"):
        out = attention(*qkv, offsets_of(lengths))
    assert ("cuda", DEVICE) not in backends._broken
    assert torch.equal(out, forward("cuda", qkv, lengths)[0])


# -- Sums over genes ----------------------------------------------------------------------------------------------------


def sums_of(
    backend: str, qkv: Sequence[Tensor], lse: Tensor, lengths: Sequence[int], known: list[int] | None, genes: Tensor
) -> SimpleNamespace:
    offsets, where = offsets_of(lengths), lse.device
    made = plan(offsets, None, known, offsets[-1], offsets[-1], where, backend)
    found = SimpleNamespace(
        sums=torch.zeros(1000, 1000, dtype=torch.int64, device=where),
        counts=torch.zeros(1000, 1000, dtype=torch.int32, device=where),
        bad=torch.zeros(1, dtype=torch.int64, device=where),
    )
    ops.gene_attention_sum(*qkv[:2], lse, made.offsets, made.n_known, made.narrow, genes, SCALE, found.sums, found.counts,
                           found.bad, backend)  # fmt: skip
    return found


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("share", SHARES, ids=str)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gene_sums_against_float64(dtype: torch.dtype, share: float | None) -> None:
    lengths = [300, 0, 64, 1, 700, 65]
    known = known_of(lengths, share)
    qkv = tokens(sum(lengths), 8, dtype)
    _, lse = forward("cuda", qkv, lengths, known)
    generator = torch.Generator().manual_seed(0)
    genes = torch.cat([torch.randperm(1000, generator=generator)[:n] for n in lengths]).int()
    genes[::7] = -1
    found = sums_of("cuda", qkv, lse, lengths, known, genes.to(DEVICE))
    _, exact_lse = right(qkv, lengths, known)
    expected = sums_of("sdpa", exactly(qkv), exact_lse, lengths, known, genes)
    assert int(found.bad) == int(expected.bad) == 0
    assert torch.equal(found.counts.cpu(), expected.counts)
    # A weight is at most 1, and has the relative error of an exponential in float32 for each cell.
    assert float((found.sums.cpu() - expected.sums).abs().max()) * gene_sums.UNIT <= 5e-5
    for _ in range(20):
        assert torch.equal(sums_of("cuda", qkv, lse, lengths, known, genes.to(DEVICE)).sums, found.sums)


@pytest.mark.usefixtures("cuda")
def test_weights_that_are_no_numbers_are_counted_and_not_added() -> None:
    qkv = [x.contiguous() for x in tokens(100, 2, torch.bfloat16)]
    qkv[0][10] = torch.nan
    _, lse = forward("cuda", qkv, [100])
    found = sums_of("cuda", qkv, lse, [100], None, torch.arange(100, dtype=torch.int32, device=DEVICE))
    assert int(found.bad) == 100
    assert not found.sums[10].any()
    assert found.sums[11].any()


# -- Performer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["cuda", "sdpa"])
@pytest.mark.parametrize("scope", performer.SCOPES)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_performer_against_float64(dtype: torch.dtype, scope: str, by: str) -> None:
    if why := backends.lacks(by, backends.Call(DEVICE, dtype, WIDTH, features=True)):
        pytest.skip(why)
    lengths = [300, 0, 1, 1500]
    qkv = tokens(sum(lengths), 3, dtype)
    offsets = torch.tensor(offsets_of(lengths))
    projection = torch.randn(266, WIDTH, generator=torch.Generator().manual_seed(2))
    expected = ops.performer_attention(*exactly(qkv), offsets, projection, scope, 1e-4)
    with cfm.settings.override(attention=by):
        found = [ops.performer_attention(*qkv, offsets, projection.to(DEVICE), scope, 1e-4) for _ in range(20)]
    assert (by, DEVICE) not in backends._broken
    size = max(1.0, float(expected.abs().max()))
    assert worst(found[0], expected) <= size * {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert all(torch.equal(again, found[0]) for again in found)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("scope", ["head", "cell"])
def test_performer_of_a_cell_alone_has_the_bits_that_it_has_among_others(scope: str) -> None:
    lengths = [300, 0, 1, 1500]
    starts = offsets_of(lengths)
    qkv = tokens(sum(lengths), 3, torch.bfloat16)
    projection = torch.randn(266, WIDTH, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    with cfm.settings.override(attention="cuda"):
        found = ops.performer_attention(*qkv, torch.tensor(starts), projection, scope, 1e-4)
        for a, b in zip(starts, starts[1:], strict=False):
            alone = ops.performer_attention(*(x[a:b] for x in qkv), torch.tensor([0, b - a]), projection, scope, 1e-4)
            assert torch.equal(alone, found[a:b])
    assert ("cuda", DEVICE) not in backends._broken
