// Packed attention forward for sm_90a: TMA, wgmma, warp-specialised, head dim 64. Rule, tile list and outputs as in
// varlen_fwd.cuh; query tiles of 128 rows.
//
// Plan. A block has three warpgroups. The first gives its registers away and feeds: one thread copies tiles by TMA
// through rings of four stages, one for K and one for V, each stage with a barrier that says "full" and one that says
// "empty". The other two hold 64 query rows each and compute.
//
// At head dim 64 the exponentials of a tile take as long as its products, so neither may wait for the other:
//   - inside a warpgroup, S(i+1) = Q K(i+1)^T is issued ahead of O += P(i) V(i), and the softmax of tile i+1 begins as soon
//     as S(i+1) is there, over the product with V;
//   - between the two, turns are taken to issue products ("ping-pong"): one issues and passes the turn on, and does its
//     softmax while the other's products run.
//
//   warpgroup A   | issue Q K1, P0 V0 |     softmax 1     | issue Q K2, P1 V1 |     softmax 2     |
//   warpgroup B   |     softmax 0     | issue Q K1, P0 V0 |     softmax 1     | issue Q K2, P1 V1 |
//
// Two things were tried and given up for what ptxas makes of them: rescaling O with a product in flight (it then
// serialises every wgmma), and two tiles of scores in registers, so that S(i+1) also runs under softmax i (spills).
//
// A tile of keys that TMA brought may hold rows of the next cell. In K the mask takes care of them. In V they must be
// cleared, since 0 * NaN is NaN. Only the last tile of a cell can be ragged. Its copy reports to a barrier of its own,
// on which a second warp of the first warpgroup waits; that one clears the rows and then declares the stage full.
//
// Compile with -DCFM_SM90 and -DCFM_BF16=1 or 0. Launch with a grid of (tiles, heads), k90::THREADS threads,
// k90::SMEM_BYTES of shared memory (opt-in), and maps [tokens, heads, 64] with boxes of 64 x 1 x 64 (q) and
// 64 x 1 x 128 (k, v), 128-byte swizzle and zero fill.
#pragma once
#include "prims_sm90.cuh"
#include "varlen_fwd.cuh"

namespace k90 {
enum { BM = 128, BN = 128, STAGES = 4, TILE = BN * k::ROW_BYTES, THREADS = 384, CONSUMER_WARPS = 8 };
enum { SMEM_Q = 0, SMEM_K = BM * k::ROW_BYTES, SMEM_V = SMEM_K + STAGES * TILE, SMEM_BAR = SMEM_V + STAGES * TILE };
enum { BAR_Q = SMEM_BAR, BAR_TAIL = BAR_Q + 8, FULL_K = BAR_TAIL + 8, EMPTY_K = FULL_K + 8 * STAGES };
enum { FULL_V = EMPTY_K + 8 * STAGES, EMPTY_V = FULL_V + 8 * STAGES, SMEM_BYTES = EMPTY_V + 8 * STAGES };
enum { TURN_A = 1, TURN_B = 2, OWN_A = 3, OWN_B = 4 };  // numbered barriers
static_assert(BM == 2 * 64 && THREADS == 3 * 128, "two consumer warpgroups of one wgmma tile each");
static_assert(SMEM_V % 1024 == 0 && TILE % 1024 == 0, "the swizzle pattern repeats every 1,024 bytes");
static_assert(SMEM_BYTES <= 227 * 1024, "shared memory of a block on sm_90");

template <bool BF16>
DEV void varlen_fwd(const TensorMap& q_map, const TensorMap& k_map, const TensorMap& v_map, const FwdParams& P) {
    const int cell = P.tile_cell[p::bid_x()], row0 = P.tile_row[p::bid_x()], head = p::bid_y();
    const int beg = P.cu[cell], len = P.cu[cell + 1] - beg;
    int known = P.n_known ? P.n_known[cell] : len;
    if (known > len) known = len;
    const int wg = p::tid() >> 7;
    const u32 base = p::smem_base();
    const k::KeyTiles tiles = k::key_tiles<BM, BN>(row0, len, known);
    const int n = tiles.count, last_end = tiles.at(n - 1) * BN + BN;
    const bool ragged = last_end > len;  // the last tile holds rows of the next cell

    // Of the i-th tile: address of its barrier in a ring, and the parity of the phase in which it uses it.
    auto ring = [&](int bars, int i) { return base + bars + 8 * (i % STAGES); };
    auto phase = [](int i) { return (i / STAGES) & 1; };

    if (p::tid() == 0) {
        p::mbar_init(base + BAR_Q, 1);
        p::mbar_init(base + BAR_TAIL, 1);
        for (int s = 0; s < STAGES; ++s) {
            p::mbar_init(ring(FULL_K, s), 1);
            p::mbar_init(ring(FULL_V, s), 1);
            p::mbar_init(ring(EMPTY_K, s), CONSUMER_WARPS);
            p::mbar_init(ring(EMPTY_V, s), CONSUMER_WARPS);
        }
        p::mbar_fence_init();
    }
    p::sync_block();

    if (wg == 0) {
        p::reg_dec<24>();
        if (p::tid() == 0) {
            p::mbar_expect(base + BAR_Q, BM * k::ROW_BYTES);
            p::tma_load(base + SMEM_Q, q_map, base + BAR_Q, head, beg + row0, 64);
            p::tma_load(base + SMEM_Q + 64 * k::ROW_BYTES, q_map, base + BAR_Q, head, beg + row0 + 64, 64);
            for (int i = 0; i < n; ++i) {
                const u32 full = ragged && i == n - 1 ? base + BAR_TAIL : ring(FULL_V, i);
                p::mbar_wait(ring(EMPTY_K, i), phase(i) ^ 1);
                p::mbar_expect(ring(FULL_K, i), TILE);
                p::tma_load(base + SMEM_K + i % STAGES * TILE, k_map, ring(FULL_K, i), head, beg + tiles.at(i) * BN, BN);
                p::mbar_wait(ring(EMPTY_V, i), phase(i) ^ 1);
                p::mbar_expect(full, TILE);
                p::tma_load(base + SMEM_V + i % STAGES * TILE, v_map, full, head, beg + tiles.at(i) * BN, BN);
            }
        } else if (p::tid() >> 5 == 1 && ragged) {
            const int lane = p::tid() & 31;
            p::mbar_wait(base + BAR_TAIL, 0);
            for (int r = BN - (last_end - len) + (lane >> 3); r < BN; r += 4)
                p::st_shared_zero16(base + SMEM_V + (n - 1) % STAGES * TILE + r * k::ROW_BYTES + (lane & 7) * 16);
            p::fence_async();
            p::sync_warp();
            if (lane == 0) p::mbar_arrive(ring(FULL_V, n - 1));
        }
        return;
    }

    p::reg_inc<240>();
    const int t128 = p::tid() & 127, warp = t128 >> 5, lane = t128 & 31, g = lane >> 2, t = lane & 3;
    const bool first = wg == 1;
    const int wrow = row0 + (wg - 1) * 64 + warp * 16 + g;
    const u32 sq = base + SMEM_Q + (wg - 1) * 64 * k::ROW_BYTES;
    float s[64], o[32] = {}, mx[2] = {NEG_INF, NEG_INF}, sum[2] = {0.f, 0.f};
    u32 a[8][4];

    auto issue_scores = [&](int i) {
        UNROLL
        for (int kk = 0; kk < 4; ++kk)
            p::wgmma_ss_n128<BF16>(s, p::desc128(sq + kk * 32), p::desc128(base + SMEM_K + i % STAGES * TILE + kk * 32), kk > 0);
        p::wgmma_commit();
    };
    auto issue_values = [&](int i) {
        UNROLL
        for (int kk = 0; kk < 8; ++kk)
            p::wgmma_rs_n64_t<BF16>(o, a[kk], p::desc128(base + SMEM_V + i % STAGES * TILE + kk * 16 * k::ROW_BYTES));
        p::wgmma_commit();
    };
    // Scores of tile i become weights, in place; fix is what the sums so far are to be multiplied by.
    auto softmax = [&](int i, float(&fix)[2]) {
        const int j0 = tiles.at(i) * BN;
        if (j0 + BN > known) {  // a partial or a diagonal tile
            UNROLL
            for (int e = 0; e < 64; ++e) {
                const int col = j0 + (e >> 2) * 8 + t * 2 + (e & 1), row = wrow + ((e >> 1) & 1) * 8;
                if (col >= known && col != row) s[e] = NEG_INF;
            }
        }
        UNROLL
        for (int h = 0; h < 2; ++h) {
            float mnew = mx[h];
            UNROLL
            for (int c = 0; c < 16; ++c) mnew = p::max2(mnew, p::max2(s[4 * c + 2 * h], s[4 * c + 2 * h + 1]));
            mnew = p::max2(mnew, p::shfl_xor(mnew, 1));
            mnew = p::max2(mnew, p::shfl_xor(mnew, 2));
            // A row that has seen nothing yet keeps -inf; 0 stands in so that no inf - inf is formed.
            const float off = mnew == NEG_INF ? 0.f : mnew * P.scale_log2;
            fix[h] = p::exp2(p::fma(mx[h], P.scale_log2, -off));
            mx[h] = mnew;
            float add = 0.f;
            UNROLL
            for (int c = 0; c < 16; ++c)
                UNROLL
                for (int e = 4 * c + 2 * h; e < 4 * c + 2 * h + 2; ++e) {
                    s[e] = p::exp2(p::fma(s[e], P.scale_log2, -off));
                    add += s[e];
                }
            sum[h] = p::fma(sum[h], fix[h], add);
        }
        // The values for the next product are waited for here: the branch in this wait also keeps the compiler from
        // sinking the exponentials below the wait for the very product that they hide.
        p::settle(s);
        p::mbar_wait(ring(FULL_V, i), phase(i));
    };
    auto pack = [&] {
        UNROLL
        for (int kk = 0; kk < 8; ++kk)
            UNROLL
            for (int r = 0; r < 4; ++r) a[kk][r] = p::pack2<BF16>(s[8 * kk + 2 * r], s[8 * kk + 2 * r + 1]);
    };

    float fix[2];
    p::mbar_wait(base + BAR_Q, 0);
    p::mbar_wait(ring(FULL_K, 0), 0);
    p::wgmma_fence();
    issue_scores(0);
    p::wgmma_wait<0>();
    p::settle(s);
    if (lane == 0) p::mbar_arrive(ring(EMPTY_K, 0));
    softmax(0, fix);
    pack();
    for (int i = 1; i < n; ++i) {
        p::mbar_wait(ring(FULL_K, i), phase(i));
        // Turns go to and fro: A's first needs no permission, and after B's last nobody waits.
        if (!first) p::named_sync<TURN_B, 256>();
        else if (i > 1) p::named_sync<TURN_A, 256>();
        p::wgmma_fence();
        issue_scores(i);
        issue_values(i - 1);
        if (first) p::named_arrive<TURN_B, 256>();
        else if (i + 1 < n) p::named_arrive<TURN_A, 256>();

        p::wgmma_wait<1>();
        p::settle(s);
        if (lane == 0) p::mbar_arrive(ring(EMPTY_K, i));
        softmax(i, fix);
        p::wgmma_wait<0>();
        p::settle(o);
        if (lane == 0) p::mbar_arrive(ring(EMPTY_V, i - 1));
        UNROLL
        for (int c = 0; c < 8; ++c)
            UNROLL
            for (int e = 0; e < 4; ++e) o[4 * c + e] *= fix[e >> 1];
        pack();
    }
    p::wgmma_fence();
    issue_values(n - 1);
    p::wgmma_wait<0>();
    p::settle(o);

    // All of this warpgroup is done with its part of Q, which now turns the output into whole rows.
    if (first) p::named_sync<OWN_A, 128>();
    else p::named_sync<OWN_B, 128>();
    UNROLL
    for (int h = 0; h < 2; ++h) {
        float l = sum[h];
        l += p::shfl_xor(l, 1);
        l += p::shfl_xor(l, 2);
        const float inv = l == 0.f ? 0.f : 1.f / l;  // NaN stays NaN
        const int r = warp * 16 + g + h * 8, row = wrow + h * 8;
        UNROLL
        for (int c = 0; c < 8; ++c)
            p::st_shared_u32(sq + k::swz(r, c) + t * 4, p::pack2<BF16>(o[4 * c + 2 * h] * inv, o[4 * c + 2 * h + 1] * inv));
        if (t == 0 && row < len)
            P.lse[(i64)head * P.total + beg + row] =
                l == 0.f ? POS_INF : p::fma(mx[h], P.scale_log2, p::log2(l)) * 0.6931471805599453f;
    }
    p::sync_warp();
    UNROLL
    for (int i = 0; i < 4; ++i) {
        const int r = warp * 16 + i * 4 + (lane >> 3), c = lane & 7, row = row0 + (wg - 1) * 64 + r;
        const uint4 x = p::ld_shared_v4(sq + k::swz(r, c));
        if (row < len) *reinterpret_cast<uint4*>(P.o + (i64)(beg + row) * P.o_row + (i64)head * P.o_head + c * 8) = x;
    }
}
}  // namespace k90

// The tensor maps are the one exception to flat arguments: opaque objects of the driver, which the hardware reads
// fastest, and without a fence, from the constant bank of the arguments.
#ifdef CFM_SM90
KERNEL(k90::THREADS, 1)
varlen_fwd_sm90(GRID_CONST TensorMap q_map, GRID_CONST TensorMap k_map, GRID_CONST TensorMap v_map, u16* o, float* lse,
                const int* cu, const int* n_known, const int* tile_cell, const int* tile_row, i64 o_row, i64 o_head,
                i64 total, float scale_log2) {
    FwdParams P = {};
    P.o = o, P.lse = lse, P.cu = cu, P.n_known = n_known, P.tile_cell = tile_cell, P.tile_row = tile_row;
    P.o_row = o_row, P.o_head = o_head, P.total = total, P.scale_log2 = scale_log2;
    k90::varlen_fwd<CFM_BF16 != 0>(q_map, k_map, v_map, P);
}
#endif
