// Packed (ragged) attention backward, head dim 64, sm_80 and later (mma.sync, ldmatrix, cp.async).
// Rule, as in the forward: query i of a cell sees key j of the same cell when j < n_known[cell], or j == i;
// n_known == nullptr means every key is known. So an unknown key receives gradient from its own query only.
//
//   delta_i = <do_i, o_i>        P = exp2(scale log2e s - lse log2e)      dP = dO V^T
//   dV = P^T dO                  dS = P (dP - delta)                      dK = scale dS^T Q, dQ = scale dS K
//
// Three kernels, no atomics: every gradient is summed by one block in one order, so two runs agree to the bit.
// (dQ apart costs seven products where five would do; in exchange there is no fp32 dQ buffer.) P and dS are rounded
// to 16 bits for their second product; all sums are fp32; the scale enters once, in fp32, at the end.
// Build with -DCFM_BF16=1 (bf16) or 0 (fp16).
#pragma once
#include "prims_more.cuh"

#ifndef CFM_BF16
#define CFM_BF16 1
#endif

namespace bwd {
using tile::ROW_BYTES;
constexpr int BM = 64, BN = 64, WARPS = 4, THREADS = WARPS * 32;  // query rows, key rows of a tile
static_assert(BM == BN, "a tile past n_known meets exactly the query tile of the same rows");
static_assert(BM == WARPS * 16 && THREADS == 2 * BM, "16 rows a warp; one thread per log-sum-exp and per delta");
constexpr int TILE = BM * ROW_BYTES;
constexpr int DKDV_SMEM = 4 * TILE + 2 * 2 * BM * 4;  // two stages of (Q, dO), two of (lse, delta)
constexpr int DQ_SMEM = 4 * TILE;                     // two stages of (K, V)
static_assert(DKDV_SMEM <= 48 * 1024, "no opt-in to large shared memory needed");

// One weight: P, or 0 where the rule hides the key. The select comes after the exponential, so a hidden score
// that is infinite or NaN leaves no trace; a row whose lse is +inf gets 0.
DEV float weight(float s, float scale2, float lse2, bool seen) {
    const float w = p::exp2(p::fma(s, scale2, -lse2));
    return seen ? w : 0.f;
}

template <bool BF16>
DEV void dkdv(const u16* q, const u16* k, const u16* v, const u16* dout, const float* lse, const float* delta,
              u16* dk, u16* dv, const int* cu, const int* n_known, const int* tile_cell, const int* tile_row, i64 total,
              i64 q_row, i64 q_head, i64 k_row, i64 k_head, i64 v_row, i64 v_head, i64 do_row, i64 do_head, i64 dk_row,
              i64 dk_head, i64 dv_row, i64 dv_head, float scale) {
    const int cell = tile_cell[p::bid_x()], j0 = tile_row[p::bid_x()], head = p::bid_y();
    const int beg = cu[cell], len = cu[cell + 1] - beg, known = n_known ? n_known[cell] : len;
    const int lane = p::tid() & 31, warp = p::tid() >> 5, g = lane >> 2, t = lane & 3;
    const float scale2 = scale * tile::LOG2E;
    const u32 ring = p::smem_base(), stats = ring + 4 * TILE;
    auto sq = [&](int s) { return ring + (u32)(s * 2 * TILE); };
    auto sdo = [&](int s) { return ring + (u32)(s * 2 * TILE + TILE); };

    const u16* qp = q + (i64)beg * q_row + (i64)head * q_head;
    const u16* dop = dout + (i64)beg * do_row + (i64)head * do_head;
    // Keys that nobody but themselves sees meet only the queries of their own rows.
    const bool all = j0 < known;
    const int n_tiles = all ? (len + BM - 1) / BM : 1;
    auto row_of = [&](int i) { return all ? i * BM : j0; };
    auto fetch = [&](int i) {
        const int i0 = row_of(i);
        tile::load_tile<BM, THREADS>(sq(i & 1), qp + (i64)i0 * q_row, q_row, len - i0);
        tile::load_tile<BM, THREADS>(sdo(i & 1), dop + (i64)i0 * do_row, do_row, len - i0);
        p::cp_commit();
    };
    // Thread r < 64 brings lse of row r in base 2, thread 64 + r brings delta; rows past the cell weigh nothing.
    auto stat = [&](int i) {
        const int r = row_of(i) + (p::tid() & (BM - 1));
        const i64 at = (i64)head * total + beg + r;
        if (p::tid() < BM) return r < len ? lse[at] * tile::LOG2E : POS_INF;
        return r < len ? delta[at] : 0.f;
    };
    auto put_stat = [&](int i, float x) { p::st_shared_f32(stats + (u32)((i & 1) * 2 * BM + p::tid()) * 4, x); };

    // K and V pass through the second stage into registers, where they stay.
    tile::load_tile<BN, THREADS>(sq(1), k + (i64)(beg + j0) * k_row + (i64)head * k_head, k_row, len - j0);
    tile::load_tile<BN, THREADS>(sdo(1), v + (i64)(beg + j0) * v_row + (i64)head * v_head, v_row, len - j0);
    p::cp_commit();
    fetch(0);
    put_stat(0, stat(0));
    p::cp_wait<1>();
    p::sync_block();
    u32 kf[4][4], vf[4][4];
    tile::rows_a(kf, sq(1), warp * 16);
    tile::rows_a(vf, sdo(1), warp * 16);
    p::sync_block();  // the second stage is free

    float dka[8][4] = {}, dva[8][4] = {};
    for (int i = 0; i < n_tiles; ++i) {
        const bool more = i + 1 < n_tiles;
        if (more) fetch(i + 1);
        else p::cp_commit();  // keeps the group count uniform
        const float next = more ? stat(i + 1) : 0.f;  // in flight under the products
        p::cp_wait<1>();
        p::sync_block();
        const int i0 = row_of(i);
        const u32 st = stats + (u32)((i & 1) * 2 * BM) * 4;

        float s[8][4] = {}, dp[8][4] = {};  // rows are keys, columns queries
        tile::mul_nt<BF16, 8>(s, kf, sq(i & 1));
        const bool cut = j0 + BN > known || i0 + BM > len;
        UNROLL
        for (int n = 0; n < 8; ++n) {
            const p::f2 l = p::ld_shared_f2(st + (u32)(n * 8 + t * 2) * 4);
            UNROLL
            for (int e = 0; e < 4; ++e) {
                const int key = j0 + warp * 16 + g + (e >> 1) * 8, row = i0 + n * 8 + t * 2 + (e & 1);
                const bool seen = !cut || (row < len && (key < known || key == row));
                s[n][e] = weight(s[n][e], scale2, e & 1 ? l.y : l.x, seen);
            }
        }
        tile::mul_nn<BF16, 8>(dva, s, sdo(i & 1));
        tile::mul_nt<BF16, 8>(dp, vf, sdo(i & 1));
        UNROLL
        for (int n = 0; n < 8; ++n) {
            const p::f2 d = p::ld_shared_f2(st + (u32)(BM + n * 8 + t * 2) * 4);
            UNROLL
            for (int e = 0; e < 4; ++e) {
                const int key = j0 + warp * 16 + g + (e >> 1) * 8, row = i0 + n * 8 + t * 2 + (e & 1);
                const bool seen = !cut || (row < len && (key < known || key == row));
                s[n][e] = seen ? s[n][e] * (dp[n][e] - (e & 1 ? d.y : d.x)) : 0.f;
            }
        }
        tile::mul_nn<BF16, 8>(dka, s, sq(i & 1));
        if (more) put_stat(i + 1, next);
        p::sync_block();  // this stage may be overwritten by the next fetch
    }

    tile::store<BF16>(dka, scale, scale, sq(0), warp * 16, dk + (i64)(beg + j0) * dk_row + (i64)head * dk_head, dk_row,
                      len - j0);
    tile::store<BF16>(dva, 1.f, 1.f, sdo(0), warp * 16, dv + (i64)(beg + j0) * dv_row + (i64)head * dv_head, dv_row,
                      len - j0);
}

template <bool BF16>
DEV void dq(const u16* q, const u16* k, const u16* v, const u16* dout, const float* lse, const float* delta, u16* dq,
            const int* cu, const int* n_known, const int* tile_cell, const int* tile_row, i64 total, i64 q_row,
            i64 q_head, i64 k_row, i64 k_head, i64 v_row, i64 v_head, i64 do_row, i64 do_head, i64 dq_row, i64 dq_head,
            float scale) {
    const int cell = tile_cell[p::bid_x()], row0 = tile_row[p::bid_x()], head = p::bid_y();
    const int beg = cu[cell], len = cu[cell + 1] - beg, known = n_known ? n_known[cell] : len;
    const int lane = p::tid() & 31, warp = p::tid() >> 5, g = lane >> 2, t = lane & 3;
    const float scale2 = scale * tile::LOG2E;
    const u32 ring = p::smem_base();
    auto sk = [&](int s) { return ring + (u32)(s * 2 * TILE); };
    auto sv = [&](int s) { return ring + (u32)(s * 2 * TILE + TILE); };

    const u16* kp = k + (i64)beg * k_row + (i64)head * k_head;
    const u16* vp = v + (i64)beg * v_row + (i64)head * v_head;
    // Key tiles: those that hold known keys, then the one on the diagonal when these queries see themselves there.
    const int n_main = (known + BN - 1) / BN;
    const bool diagonal = row0 / BN >= n_main;
    const int n_tiles = n_main + (diagonal ? 1 : 0);
    auto row_of = [&](int i) { return i < n_main ? i * BN : row0; };
    auto fetch = [&](int i) {
        const int j0 = row_of(i);
        tile::load_tile<BN, THREADS>(sk(i & 1), kp + (i64)j0 * k_row, k_row, len - j0);
        tile::load_tile<BN, THREADS>(sv(i & 1), vp + (i64)j0 * v_row, v_row, len - j0);
        p::cp_commit();
    };

    // Q and dO pass through the second stage into registers, where they stay.
    tile::load_tile<BM, THREADS>(sk(1), q + (i64)(beg + row0) * q_row + (i64)head * q_head, q_row, len - row0);
    tile::load_tile<BM, THREADS>(sv(1), dout + (i64)(beg + row0) * do_row + (i64)head * do_head, do_row, len - row0);
    p::cp_commit();
    fetch(0);  // a tile of queries always has a key tile: known keys, or its own
    float lse2[2], del[2];
    UNROLL
    for (int h = 0; h < 2; ++h) {
        const int r = row0 + warp * 16 + g + h * 8;
        const i64 at = (i64)head * total + beg + r;
        lse2[h] = r < len ? lse[at] * tile::LOG2E : POS_INF;
        del[h] = r < len ? delta[at] : 0.f;
    }
    p::cp_wait<1>();
    p::sync_block();
    u32 qf[4][4], dof[4][4];
    tile::rows_a(qf, sk(1), warp * 16);
    tile::rows_a(dof, sv(1), warp * 16);
    p::sync_block();  // the second stage is free

    float acc[8][4] = {};
    for (int i = 0; i < n_tiles; ++i) {
        if (i + 1 < n_tiles) fetch(i + 1);
        else p::cp_commit();
        p::cp_wait<1>();
        p::sync_block();
        const int j0 = row_of(i);
        float s[8][4] = {}, dp[8][4] = {};
        tile::mul_nt<BF16, 8>(s, qf, sk(i & 1));
        tile::mul_nt<BF16, 8>(dp, dof, sv(i & 1));
        const bool cut = j0 + BN > known || row0 + BM > len;
        UNROLL
        for (int n = 0; n < 8; ++n)
            UNROLL
            for (int e = 0; e < 4; ++e) {
                const int row = row0 + warp * 16 + g + (e >> 1) * 8, key = j0 + n * 8 + t * 2 + (e & 1);
                const bool seen = !cut || (row < len && (key < known || key == row));
                const float w = weight(s[n][e], scale2, lse2[e >> 1], seen);
                s[n][e] = seen ? w * (dp[n][e] - del[e >> 1]) : 0.f;
            }
        tile::mul_nn<BF16, 8>(acc, s, sk(i & 1));
        p::sync_block();  // this stage may be overwritten by the next fetch
    }
    tile::store<BF16>(acc, scale, scale, sk(0), warp * 16, dq + (i64)(beg + row0) * dq_row + (i64)head * dq_head, dq_row,
                      len - row0);
}
}  // namespace bwd

// Plan of delta: grid (ceil(total / 16), heads), 128 threads, no shared memory; eight lanes a row, 16-byte loads.
KERNEL(128, 8)
varlen_bwd_delta(const u16* o, const u16* dout, float* delta, i64 total, i64 o_row, i64 o_head, i64 do_row,
                 i64 do_head) {
    const i64 r = (i64)p::bid_x() * (bwd::THREADS / 8) + (p::tid() >> 3), head = p::bid_y();
    const bool ok = r < total;
    const float d = tile::row_dot<CFM_BF16>(o + (ok ? r * o_row : 0) + head * o_head,
                                            dout + (ok ? r * do_row : 0) + head * do_head, ok);
    if (ok && (p::tid() & 7) == 0) delta[head * total + r] = d;
}

// Plan of dK and dV: grid (tiles, heads), one tile of 64 keys a block (tile_cell, tile_row: its cell and first row
// there), 4 warps, 33 KiB of shared memory. K and V fragments stay in registers; Q, dO, lse and delta of 64 queries
// run through a ring of two stages. Scores are computed transposed (keys are rows), so that P and dS feed the second
// products straight from registers.
KERNEL(128, 2)
varlen_bwd_dkdv(const u16* q, const u16* k, const u16* v, const u16* dout, const float* lse, const float* delta,
                u16* dk, u16* dv, const int* cu, const int* n_known, const int* tile_cell, const int* tile_row,
                i64 total, i64 q_row, i64 q_head, i64 k_row, i64 k_head, i64 v_row, i64 v_head, i64 do_row, i64 do_head,
                i64 dk_row, i64 dk_head, i64 dv_row, i64 dv_head, float scale) {
    bwd::dkdv<CFM_BF16>(q, k, v, dout, lse, delta, dk, dv, cu, n_known, tile_cell, tile_row, total, q_row, q_head, k_row,
                        k_head, v_row, v_head, do_row, do_head, dk_row, dk_head, dv_row, dv_head, scale);
}

// Plan of dQ: grid (tiles, heads), one tile of 64 queries a block, 4 warps, 32 KiB of shared memory. Q and dO
// fragments stay in registers; K and V run through a ring of two stages, over the same key tiles as the forward.
KERNEL(128, 2)
varlen_bwd_dq(const u16* q, const u16* k, const u16* v, const u16* dout, const float* lse, const float* delta, u16* dq,
              const int* cu, const int* n_known, const int* tile_cell, const int* tile_row, i64 total, i64 q_row,
              i64 q_head, i64 k_row, i64 k_head, i64 v_row, i64 v_head, i64 do_row, i64 do_head, i64 dq_row,
              i64 dq_head, float scale) {
    bwd::dq<CFM_BF16>(q, k, v, dout, lse, delta, dq, cu, n_known, tile_cell, tile_row, total, q_row, q_head, k_row,
                      k_head, v_row, v_head, do_row, do_head, dq_row, dq_head, scale);
}
