// Attention summed over cells into a gene x gene matrix, head dim 64, sm_80 and later: the plain mean over heads of
// the weights, recomputed tile by tile from the saved log-sum-exp, so that L x L is never written.
//   sums[a, b]   += round(2^40 mean_h P_h[i, j])    for every pair of tokens (i, j) of a cell with row_of[i] = a,
//   counts[a, b] += 1                               row_of[j] = b, both not -1, where query i sees key j
// Rule, as in the forward: query i sees key j when j < n_known[cell], or j == i (nullptr: every key is known).
//
// Fixed point makes the sum free of order: integer atomics commute, so two runs agree to the bit; every addend is
// exact to 2^-41, and 2^23 cells fit before 64 bits overflow. A weight that is not a number is not added (as an
// integer it would look like one): it counts in bad[0], and the caller refuses the sum.
// Build with -DCFM_BF16=1 (bf16) or 0 (fp16).
#pragma once
#include "prims_more.cuh"

#ifndef CFM_BF16
#define CFM_BF16 1
#endif

namespace gene {
using tile::ROW_BYTES;
constexpr int BM = 64, BN = 64, WARPS = 4, THREADS = WARPS * 32;
static_assert(BM == WARPS * 16 && BM == BN, "16 query rows a warp; a diagonal tile is one tile");
constexpr int TILE = BM * ROW_BYTES;
constexpr int SMEM = 4 * TILE;  // two stages of (Q, K) of one head
static_assert(SMEM <= 48 * 1024, "no opt-in to large shared memory needed");
constexpr float ONE = 1099511627776.f;  // 2^40

template <bool BF16>
DEV void sums(const u16* q, const u16* k, const float* lse, const int* row_of, u64* sums, u32* counts, u64* bad,
              const int* cu, const int* n_known, const int* tile_cell, const int* tile_row, i64 total, i64 q_row,
              i64 q_head, i64 k_row, i64 k_head, int heads, int splits, i64 genes, float scale) {
    const int cell = tile_cell[p::bid_x()], row0 = tile_row[p::bid_x()], split = p::bid_y();
    const int beg = cu[cell], len = cu[cell + 1] - beg, known = n_known ? n_known[cell] : len;
    const int lane = p::tid() & 31, warp = p::tid() >> 5, g = lane >> 2, t = lane & 3;
    const float scale2 = scale * tile::LOG2E, share = 1.f / (float)heads;
    const u32 ring = p::smem_base();
    auto sq = [&](int s) { return ring + (u32)(s * 2 * TILE); };
    auto sk = [&](int s) { return ring + (u32)(s * 2 * TILE + TILE); };

    // The key tiles of these queries, as in the forward; this block takes each splits-th of them.
    const int n_main = (known + BN - 1) / BN;
    const int n_tiles = n_main + (row0 / BN >= n_main ? 1 : 0);
    const int mine = split < n_tiles ? (n_tiles - split + splits - 1) / splits : 0;
    if (mine == 0) return;
    auto key0 = [&](int n) {
        const int i = split + n * splits;
        return i < n_main ? i * BN : row0;
    };
    // Step = (key tile, head), heads innermost, so that one accumulator tile lives at a time.
    const u16* qp = q + (i64)(beg + row0) * q_row;
    const u16* kp = k + (i64)beg * k_row;
    auto fetch = [&](int tile_n, int head, int stage) {
        const int j0 = key0(tile_n);
        tile::load_tile<BM, THREADS>(sq(stage), qp + (i64)head * q_head, q_row, len - row0);
        tile::load_tile<BN, THREADS>(sk(stage), kp + (i64)j0 * k_row + (i64)head * k_head, k_row, len - j0);
        p::cp_commit();
    };

    const int r = warp * 16 + g;  // this thread's rows of the tile: r and r + 8
    fetch(0, 0, 0);
    int stage = 0;
    for (int n = 0; n < mine; ++n) {
        const int j0 = key0(n);
        float acc[8][4] = {};
        for (int head = 0; head < heads; ++head) {
            const bool last = head + 1 == heads;
            if (!last || n + 1 < mine) fetch(last ? n + 1 : n, last ? 0 : head + 1, stage ^ 1);
            else p::cp_commit();  // keeps the group count uniform
            const float* stat = lse + (i64)head * total + beg;
            float lse2[2];
            UNROLL
            for (int h = 0; h < 2; ++h) lse2[h] = row0 + r + h * 8 < len ? stat[row0 + r + h * 8] * tile::LOG2E : POS_INF;
            p::cp_wait<1>();
            p::sync_block();
            u32 qf[4][4];
            tile::rows_a(qf, sq(stage), warp * 16);
            float s[8][4] = {};
            tile::mul_nt<BF16, 8>(s, qf, sk(stage));
            UNROLL
            for (int c = 0; c < 8; ++c)
                UNROLL
                for (int e = 0; e < 4; ++e) acc[c][e] += p::exp2(p::fma(s[c][e], scale2, -lse2[e >> 1]));
            p::sync_block();  // this stage may be overwritten by the next fetch
            stage ^= 1;
        }
        UNROLL
        for (int h = 0; h < 2; ++h) {
            const int row = row0 + r + h * 8;
            const int from = row < len ? row_of[(i64)beg + row] : -1;
            if (from < 0) continue;
            u64* to_sums = sums + (i64)from * genes;
            u32* to_counts = counts + (counts ? (i64)from * genes : 0);
            UNROLL
            for (int c = 0; c < 8; ++c)
                UNROLL
                for (int b = 0; b < 2; ++b) {
                    // The select comes after the exponential: a hidden score leaves no trace, whatever it was.
                    const int key = j0 + c * 8 + t * 2 + b;
                    const int to = key < known || key == row ? row_of[(i64)beg + key] : -1;  // known <= len
                    if (to < 0) continue;
                    const float w = acc[c][2 * h + b] * share;
                    if (w >= 0.f && w <= 2.f) p::red_add_u64(to_sums + to, p::to_fixed(w, ONE));
                    else p::red_add_u64(bad, 1);
                    if (counts) p::red_add_u32(to_counts + to, 1);
                }
        }
    }
}
}  // namespace gene

// Plan: grid (tiles, splits), one tile of 64 queries a block against every splits-th tile of 64 keys, 4 warps, 32 KiB
// of shared memory. For each key tile all heads run through a ring of two stages (Q and K of one head); their weights
// add up in registers, in the order of the heads, and leave by atomics once a tile. counts may be nullptr. sums is
// [genes, genes] with the query's row first; row_of is [total], -1 for a token that takes no part.
KERNEL(128, 3)
gene_sums(const u16* q, const u16* k, const float* lse, const int* row_of, u64* sums, u32* counts, u64* bad,
          const int* cu, const int* n_known, const int* tile_cell, const int* tile_row, i64 total, i64 q_row, i64 q_head,
          i64 k_row, i64 k_head, int heads, int splits, i64 genes, float scale) {
    gene::sums<CFM_BF16>(q, k, lse, row_of, sums, counts, bad, cu, n_known, tile_cell, tile_row, total, q_row, q_head,
                         k_row, k_head, heads, splits, genes, scale);
}
