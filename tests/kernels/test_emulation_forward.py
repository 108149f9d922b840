"""The forward kernels, run on the CPU from their own source, against attention written out in float64."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import harness
import numpy as np
import pytest
import torch
from harness import ORDERS, VARIANTS, Case, D, EmulationError, Variant, forward, reference, to_bits, to_float
from threadpoolctl import threadpool_limits

pytestmark = pytest.mark.skipif(harness.compiler() is None, reason="no C++ compiler (CXX, g++ or clang++)")

# Fresh inputs in every run; the seed of a failure stands in its output, and CFM_TEST_SEED repeats it.
SEED = int(os.environ.get("CFM_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
BF16 = [variant for variant in VARIANTS.values() if variant.bf16]


def name(x: object) -> str:
    return getattr(x, "name", str(x))


@pytest.fixture(autouse=True)
def _seed_and_threads() -> Iterator[None]:
    print(f"CFM_TEST_SEED={SEED}")
    with threadpool_limits(1):
        yield


@pytest.fixture(params=BF16, ids=name)
def variant(request: pytest.FixtureRequest) -> Variant:
    return request.param


@pytest.mark.parametrize(
    ("variant", "case", "races"),
    [
        pytest.param(v, c, r, id=f"{v.name}-{c.name}{'-races' * r}")
        for v in VARIANTS.values()
        for c, r in harness.cases(v)
    ],
)
def test_kernel_against_float64_in_three_thread_orders(variant: Variant, case: Case, races: bool) -> None:
    harness.check(variant, case, SEED, races=races)


def normal(shape: tuple[int, ...], seed: int, variant: Variant, size: float = 1) -> harness.Bits:
    return to_bits(size * np.random.default_rng([SEED, seed]).standard_normal(shape, np.float32), variant.bf16)


@pytest.mark.parametrize("heads", [4, 8, 18, 20])
def test_any_number_of_heads(variant: Variant, heads: int) -> None:
    harness.check(variant, Case((5, 66), (3, 66), heads), SEED, orders=ORDERS[:2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_cell_stays_alone(variant: Variant, bad: float) -> None:
    lengths = [70, 60, 65]
    q, k, v = (normal((195, 1, D), i, variant) for i in range(3))
    healthy, healthy_lse = forward(variant, q, k, v, lengths)
    for x in (q, k, v):
        x[70:130] = to_bits(np.full((60, 1, D), bad, np.float32), variant.bf16)
    for order in ORDERS:
        o, lse = forward(variant, q, k, v, lengths, order=order)
        for rows in (slice(0, 70), slice(130, 195)):
            assert np.array_equal(o[rows], healthy[rows])
            assert np.array_equal(lse[:, rows], healthy_lse[:, rows])
        assert np.isnan(to_float(o[70:130], variant.bf16)).all()


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=name)
@pytest.mark.parametrize("size", [0, 100], ids=["all_equal", "scores_of_1e4"])
def test_extreme_scores(variant: Variant, size: float) -> None:
    q, k, v = (normal((150, 1, D), i, variant, 1 if i == 2 else size) for i in range(3))
    o, lse = forward(variant, q, k, v, [150], order="random")
    exact = reference(*(to_float(x, variant.bf16) for x in (q, k, v)), [150])
    # Scores of 1e4 in float32 are exact to about 1e-3, and so are the weights of two keys that nearly tie.
    assert np.abs(to_float(o, variant.bf16) - exact.o).max() < 2e-2
    assert np.abs(lse - exact.lse).max() <= 1e-6 * max(20, np.abs(exact.lse).max())


def test_one_dominant_key(variant: Variant) -> None:
    q, k, v = (normal((200, 1, D), i, variant) for i in range(3))
    q[:] = to_bits(np.ones((200, 1, D), np.float32), variant.bf16)
    k[137] = to_bits(np.full((1, D), 20, np.float32), variant.bf16)
    o, _ = forward(variant, q, k, v, [200])
    assert np.array_equal(o, np.broadcast_to(v[137], o.shape))


def test_strided_views_of_a_fused_projection(variant: Variant) -> None:
    lengths, heads = [90, 40], 3
    fused = normal((130, 3, heads, D), 0, variant)
    q, k, v = (fused[:, i] for i in range(3))
    packed, lse = forward(variant, *(np.ascontiguousarray(x) for x in (q, k, v)), lengths)
    wide = np.full((130, heads + 2, D), 0xFFFF, np.uint16)
    strided, strided_lse = forward(variant, q, k, v, lengths, out=wide[:, 1 : heads + 1])
    assert np.array_equal(strided, packed)
    assert np.array_equal(strided_lse, lse)
    assert (wide[:, [0, heads + 1]] == 0xFFFF).all()


@pytest.mark.skipif(sys.platform != "linux", reason="sparse memory is asked for in the way of Linux")
def test_offsets_beyond_32_bits(variant: Variant) -> None:
    # 40 tokens, 2**26 elements apart: the last begins past 2**31. Memory that nobody touches takes no room.
    apart, n = 2**26, 40
    no_reserve = 0x4000  # of Linux; Python has no name for it before 3.13
    views = []
    for i in range(4):
        sparse = mmap.mmap(-1, n * apart * 2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
        view = np.frombuffer(sparse, np.uint16).reshape(n, apart // D, D)[:, :1]
        view[:] = normal((n, 1, D), i, variant)
        views.append(view)
    near, _ = forward(variant, *(view.copy() for view in views[:3]), [n])
    far, _ = forward(variant, *views[:3], [n], out=views[3])
    assert np.array_equal(far, near)


def test_a_cell_does_not_depend_on_its_neighbours(variant: Variant) -> None:
    lengths, known = [150, 33, 64, 129], [100, 33, 0, 128]
    q, k, v = (normal((sum(lengths), 2, D), i, variant) for i in range(3))
    packed, packed_lse = forward(variant, q, k, v, lengths, known)
    starts = np.cumsum([0, *lengths])
    cells = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
    for cell, n, n_known in zip(cells, lengths, known, strict=True):
        alone, lse = forward(variant, q[cell].copy(), k[cell].copy(), v[cell].copy(), [n], [n_known], order="last")
        assert np.array_equal(alone, packed[cell])
        assert np.array_equal(lse, packed_lse[:, cell])
    turned = np.concatenate([np.arange(cell.start, cell.stop) for cell in cells[::-1]])
    backwards, _ = forward(variant, q[turned], k[turned], v[turned], lengths[::-1], known[::-1])
    assert np.array_equal(backwards, packed[turned])


def test_order_of_the_known_tokens_does_not_matter(variant: Variant) -> None:
    n, n_known = 200, 120
    q, k, v = (normal((n, 1, D), i, variant) for i in range(3))
    order = np.arange(n)
    order[:n_known] = np.random.default_rng([SEED, 9]).permutation(n_known)
    o, lse = forward(variant, q, k, v, [n], [n_known])
    o2, lse2 = forward(variant, q[order], k[order], v[order], [n], [n_known])
    assert np.abs(to_float(o2, variant.bf16) - to_float(o[order], variant.bf16)).max() < 2e-2
    assert np.abs(lse2 - lse[:, order]).max() < 1e-5


def test_one_vector_added_to_all_keys_moves_only_lse(variant: Variant) -> None:
    # Whole numbers, so that the sums of keys are exact in 16 bits.
    rng = np.random.default_rng(SEED)
    k0, u = rng.integers(-4, 5, (150, 1, D)), rng.integers(-4, 5, D)
    q, v = (normal((150, 1, D), i, variant) for i in range(2))
    o, lse = forward(variant, q, to_bits(k0.astype(np.float32), variant.bf16), v, [150])
    o2, lse2 = forward(variant, q, to_bits((k0 + u).astype(np.float32), variant.bf16), v, [150])
    assert np.abs(to_float(o2, variant.bf16) - to_float(o, variant.bf16)).max() < 2e-2
    assert np.abs(lse2 - lse - (to_float(q, variant.bf16)[:, 0] @ u * 0.125)).max() < 1e-4


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=name)
def test_error_is_at_most_twice_that_of_plain_pytorch(variant: Variant) -> None:
    n = 300
    q, k, v = (normal((n, 1, D), i, variant) for i in range(3))
    o, _ = forward(variant, q, k, v, [n])
    exact = reference(*(to_float(x, variant.bf16) for x in (q, k, v)), [n])
    dtype = torch.bfloat16 if variant.bf16 else torch.float16
    tq, tk, tv = (torch.from_numpy(x[:, 0].view(np.int16)).view(dtype) for x in (q, k, v))
    plain = (torch.softmax(tq @ tk.T * 0.125, -1) @ tv).double().numpy()
    ours, theirs = np.abs(to_float(o, variant.bf16) - exact.o)[:, 0], np.abs(plain - exact.o[:, 0])
    assert ours.max() <= 2 * theirs.max()
    assert np.sqrt((ours**2).mean()) <= 2 * np.sqrt((theirs**2).mean())


def test_the_emulation_reports_what_it_finds(variant: Variant) -> None:
    q, k, v = (normal((300, 1, D), i, variant) for i in range(3))
    forward(variant, q, k, v, [300])
    with pytest.raises(EmulationError, match="shared memory out of bounds"):
        forward(variant, q, k, v, [300], withheld=50 * 1024 if "CFM_SM90" in variant.defines else 8 * 1024)


@pytest.mark.slow
@pytest.mark.parametrize("variant", BF16, ids=name)
def test_no_access_outside_the_inputs(variant: Variant) -> None:
    cxx = harness.compiler()
    assert cxx is not None
    runtime = subprocess.run(
        [cxx, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip(f"{cxx} has no shared address sanitizer")
    library = harness.build("forward.cpp", variant.defines, flags=("-fsanitize=address", "-O1", "-g"))
    script = (
        "import sys; from pathlib import Path; import harness; v = harness.VARIANTS[sys.argv[1]]\n"
        "for case in harness.CASES[1], harness.CASES[7], harness.CASES[15]:\n"
        "    harness.check(v, case, int(sys.argv[3]), library=Path(sys.argv[2]))\n"
        "print('clean')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, variant.name, str(library), str(SEED)],
        env={**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(harness.HERE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "clean", done.stderr[-4000:]
