// Performer attention with FAVOR+ features of the softmax kernel (scBERT), head dim 64, sm_80 and later, packed cells:
//   phi_q(x) = exp(w.cx - |cx|^2/2 - max over features of w.cx) + eps       c = 64^-1/4 (`scale`)
//   phi_k(x) = exp(w.cx - |cx|^2/2 - top) + eps                             top: the largest w.cx over all features and
//   out      = phi_q (phi_k^T V) / (phi_q . sum phi_k)                      keys of its scope
// The factor m^-1/2 of the published formula stands in every term of the quotient and is left out. Because eps is added
// after the exponential, the scope of `top` changes the result: the maximum of cell and head lies at
// top[cell * top_cell + head * top_head], so the two steps are (heads, 1) for each cell and head by itself, (1, 0) for
// all heads of a cell, which is the official code's for a cell alone, and (0, 0) for its whole batch.
//
// Accuracy. The exponents are as good as fp32: the projection comes split into TERMS 16-bit parts (bf16: 3, fp16: 2)
// whose products are exact and summed in fp32. Features are fp32 and enter their product in two
// 16-bit parts. The summary of the keys is kept per feature as (mean of v under that feature, ratio of the feature's
// sum to the largest), so that the query side is an average of numbers of v's size and fp16 cannot overflow:
//   out = sum_f phi_q[f] ratio[f] mean[f] / sum_f phi_q[f] ratio[f]
// and splits into the part with the exponentials, summed online as a softmax is, and eps times two constants
// (sum_f ratio[f] mean[f] and sum_f ratio[f]) that do not depend on the query.
//
// Features are padded to a multiple of 96 with rows of zeros in w; padding gets phi = 0 (masked after eps was added),
// hence ratio 0, and never takes part in a maximum. No float atomics: the maximum is an integer atomic, the sums over
// tokens are split at fixed places and added in fixed order. Build with -DCFM_BF16=1 (bf16) or 0 (fp16).
#pragma once
#include "prims_more.cuh"

#ifndef CFM_BF16
#define CFM_BF16 1
#endif

namespace performer {
using k::D;
using tile::LOG2E;
using tile::ROW_BYTES;
constexpr int TERMS = CFM_BF16 ? 3 : 2;  // 16-bit parts of the projection
constexpr int BM = 64;                   // tokens of a tile
constexpr int CHUNK = 32;                // features of a step of the query side
constexpr int FEATURES = 96;             // features of a block of the key side: 6 warps of 16
constexpr int THREADS = 128, KEY_THREADS = 2 * FEATURES, SUM_THREADS = 256;
static_assert(FEATURES % CHUNK == 0, "one padding serves both sides");
static_assert(BM == THREADS / 32 * 16 && KEY_THREADS == FEATURES / 16 * 32, "16 rows a warp");
constexpr int TILE = BM * ROW_BYTES, PART = CHUNK * ROW_BYTES;
constexpr int MAX_SMEM = 2 * TERMS * PART;             // two stages of w
constexpr int KEY_SMEM = 4 * TILE + 2 * BM * 4;        // two stages of (K, V) and of their norms
constexpr int QUERY_STAGE = (TERMS + 2) * PART;        // w and the two parts of the means
constexpr int QUERY_SMEM = 2 * QUERY_STAGE;
static_assert(QUERY_STAGE >= TILE && MAX_SMEM >= 2 * TILE, "the queries pass through a stage");
static_assert(KEY_SMEM <= 48 * 1024 && QUERY_SMEM <= 48 * 1024, "no opt-in to large shared memory needed");
// fp16: features at most 1 + eps become at most 16,384, so that eps is far above the smallest normal number.
constexpr float UP = CFM_BF16 ? 1.f : 16384.f;

// Floats as unsigned integers of the same order; 0 lies below every number, so a zeroed word is an empty maximum.
DEV u32 ordered(float x) {
    const u32 b = p::bits(x);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}
DEV float unordered(u32 u) { return p::from_bits(u & 0x80000000u ? u & 0x7fffffffu : ~u); }

// Rows of w from `first` on, all parts, into shared memory: part after part of CHUNK rows.
DEV void load_w(u32 dst, const u16* w, int first, int padded) {
    UNROLL
    for (int i = 0; i < TERMS; ++i)
        tile::load_tile<CHUNK, THREADS>(dst + (u32)(i * PART), w + ((i64)i * padded + first) * D, D, CHUNK);
}

// s = x . w for 16 tokens and CHUNK features, padding features -inf.
template <bool BF16>
DEV void logits(float (&s)[CHUNK / 8][4], const u32 (&x)[4][4], u32 w, int first, int features) {
    UNROLL
    for (int i = TERMS - 1; i >= 0; --i) tile::mul_nt<BF16, CHUNK / 8>(s, x, w + (u32)(i * PART));
    if (first + CHUNK > features) {
        UNROLL
        for (int n = 0; n < CHUNK / 8; ++n)
            UNROLL
            for (int e = 0; e < 4; ++e)
                if (first + n * 8 + (p::tid() & 3) * 2 + (e & 1) >= features) s[n][e] = NEG_INF;
    }
}

template <bool BF16>
DEV void key_max(const u16* k, const u16* w, u32* top, const int* cu, const int* tile_cell, const int* tile_row,
                 i64 k_row, i64 k_head, int features, int padded, int top_cell, int top_head) {
    const int cell = tile_cell[p::bid_x()], row0 = tile_row[p::bid_x()], head = p::bid_y();
    const int beg = cu[cell], len = cu[cell + 1] - beg;
    const int lane = p::tid() & 31, warp = p::tid() >> 5, g = lane >> 2;
    const u32 ring = p::smem_base();
    auto stage = [&](int i) { return ring + (u32)((i & 1) * TERMS * PART); };
    const int n_chunks = (features + CHUNK - 1) / CHUNK;

    tile::load_tile<BM, THREADS>(ring, k + (i64)(beg + row0) * k_row + (i64)head * k_head, k_row, len - row0);
    p::cp_commit();
    p::cp_wait<0>();
    p::sync_block();
    u32 kf[4][4];
    tile::rows_a(kf, ring, warp * 16);
    p::sync_block();  // the ring is free

    float most = NEG_INF;
    load_w(stage(0), w, 0, padded);
    p::cp_commit();
    for (int i = 0; i < n_chunks; ++i) {
        if (i + 1 < n_chunks) load_w(stage(i + 1), w, (i + 1) * CHUNK, padded);
        p::cp_commit();  // an empty group at the end keeps the count uniform
        p::cp_wait<1>();
        p::sync_block();
        float s[CHUNK / 8][4] = {};
        logits<BF16>(s, kf, stage(i), i * CHUNK, features);
        UNROLL
        for (int n = 0; n < CHUNK / 8; ++n)
            UNROLL
            for (int e = 0; e < 4; ++e)
                if (row0 + warp * 16 + g + (e >> 1) * 8 < len) most = p::max2(most, s[n][e]);
        p::sync_block();  // this stage may be overwritten by the next load
    }
    UNROLL
    for (int m = 1; m < 32; m *= 2) most = p::max2(most, p::shfl_xor(most, m));
    if (lane == 0) p::red_max_u32(top + ((i64)cell * top_cell + (i64)head * top_head), ordered(most));
}

template <bool BF16>
DEV void keys(const u16* k, const u16* v, const u16* w, const float* norm, const u32* top, float* part_kv,
              float* part_sum, const int* cu, const int* split_cell, const int* split_row, int split_rows, i64 total,
              i64 k_row, i64 k_head, i64 v_row, i64 v_head, int heads, int features, int padded, int top_cell,
              int top_head, float scale, float eps) {
    const int split = p::bid_x(), blocks = padded / FEATURES, head = p::bid_y() / blocks;
    const int cell = split_cell[split], row0 = split_row[split];
    const int beg = cu[cell], len = cu[cell + 1] - beg;
    const int end = row0 + split_rows < len ? row0 + split_rows : len;
    const int lane = p::tid() & 31, warp = p::tid() >> 5, g = lane >> 2, t = lane & 3;
    const int f0 = p::bid_y() % blocks * FEATURES + warp * 16 + g;  // this thread's features: f0 and f0 + 8
    const float scale2 = scale * LOG2E;
    const float top2 = unordered(top[(i64)cell * top_cell + (i64)head * top_head]) * scale2;
    const u32 ring = p::smem_base(), norms = ring + 4 * TILE;
    auto sk = [&](int i) { return ring + (u32)((i & 1) * 2 * TILE); };
    auto sv = [&](int i) { return ring + (u32)((i & 1) * 2 * TILE + TILE); };
    const int n_tiles = (end - row0 + BM - 1) / BM;

    const u16* kp = k + (i64)beg * k_row + (i64)head * k_head;
    const u16* vp = v + (i64)beg * v_row + (i64)head * v_head;
    auto fetch = [&](int i) {
        const int i0 = row0 + i * BM;
        if (p::tid() < THREADS) {  // four of the six warps, in whole rounds
            tile::load_tile<BM, THREADS>(sk(i), kp + (i64)i0 * k_row, k_row, end - i0);
            tile::load_tile<BM, THREADS>(sv(i), vp + (i64)i0 * v_row, v_row, end - i0);
        }
        p::cp_commit();
    };
    auto norm_of = [&](int i) {
        const int r = row0 + i * BM + p::tid();
        return p::tid() < BM && r < end ? norm[(i64)head * total + beg + r] : 0.f;
    };
    auto put_norm = [&](int i, float x) {
        if (p::tid() < BM) p::st_shared_f32(norms + (u32)((i & 1) * BM + p::tid()) * 4, x);
    };

    fetch(0);
    put_norm(0, norm_of(0));
    u32 wf[TERMS][4][4];  // the warp's 16 rows of w, read once
    UNROLL
    for (int i = 0; i < TERMS; ++i)
        UNROLL
        for (int kk = 0; kk < 4; ++kk)
            UNROLL
            for (int a = 0; a < 4; ++a)
                wf[i][kk][a] = *reinterpret_cast<const u32*>(w + ((i64)i * padded + f0 + (a & 1) * 8) * D + kk * 16 +
                                                             t * 2 + (a >> 1) * 8);
    float acc[8][4] = {}, sum[2] = {};
    for (int i = 0; i < n_tiles; ++i) {
        const bool more = i + 1 < n_tiles;
        if (more) fetch(i + 1);
        else p::cp_commit();
        const float next = more ? norm_of(i + 1) : 0.f;  // in flight under the products
        p::cp_wait<1>();
        p::sync_block();
        ROLLED
        for (int half = 0; half < 2; ++half) {  // 32 keys at a time, for want of registers
            float s[4][4] = {};                 // rows are features, columns keys
            tile::mul_nt_parts<BF16, TERMS, 4>(s, wf, sk(i) + (u32)(half * 32 * ROW_BYTES));
            UNROLL
            for (int n = 0; n < 4; ++n) {
                const int c = half * 32 + n * 8 + t * 2;
                const p::f2 h = p::ld_shared_f2(norms + (u32)((i & 1) * BM + c) * 4);
                UNROLL
                for (int e = 0; e < 4; ++e) {
                    const int row = row0 + i * BM + c + (e & 1);
                    const float x = p::exp2(p::fma(s[n][e], scale2, -top2) - (e & 1 ? h.y : h.x));
                    s[n][e] = row < end && f0 + (e >> 1) * 8 < features ? (x + eps) * UP : 0.f;
                    sum[e >> 1] += s[n][e];
                }
            }
            UNROLL
            for (int kk = 0; kk < 2; ++kk) {
                u32 a[4], rest[4];
                tile::as_two<BF16>(a, rest, s[2 * kk], s[2 * kk + 1]);
                tile::mul_16_twice<BF16>(acc, a, rest, sv(i), half * 32 + kk * 16);
            }
        }
        if (more) put_norm(i + 1, next);
        p::sync_block();  // this stage may be overwritten by the next fetch
    }
    UNROLL
    for (int h = 0; h < 2; ++h) {
        const i64 f = ((i64)split * heads + head) * padded + f0 + h * 8;
        UNROLL
        for (int n = 0; n < 8; ++n)
            *reinterpret_cast<p::f2*>(part_kv + f * D + n * 8 + t * 2) = p::f2{acc[n][2 * h], acc[n][2 * h + 1]};
        sum[h] += p::shfl_xor(sum[h], 1);
        sum[h] += p::shfl_xor(sum[h], 2);
        if (t == 0) part_sum[f] = sum[h];
    }
}

template <bool BF16>
DEV void summary(const float* part_kv, const float* part_sum, u16* mean, float* ratio, float* rest, const int* cell_split,
                 int cells, int heads, int padded) {
    const int cell = p::bid_x(), head = p::bid_y(), first = cell_split[cell], last = cell_split[cell + 1];
    if (first == last) return;  // no token of this cell will ask
    const i64 place = (i64)cell * heads + head, step = (i64)heads * padded;
    const float* sums = part_sum + (i64)head * padded;
    const u32 all = p::smem_base(), parts = all + (u32)padded * 4;
    for (int f = p::tid(); f < padded; f += SUM_THREADS) {
        float x = 0.f;
        for (int s = first; s < last; ++s) x += sums[s * step + f];
        p::st_shared_f32(all + (u32)f * 4, x);
    }
    p::sync_block();
    float most = 0.f, every = 0.f;
    for (int f = 0; f < padded; ++f) most = p::max2(most, p::ld_shared_f32(all + (u32)f * 4));
    const float inv = most > 0.f ? 1.f / most : 0.f;
    const int d = p::tid() % D, group = p::tid() / D;
    float sv = 0.f;
    for (int f = group; f < padded; f += SUM_THREADS / D) {
        float x = 0.f;
        for (int s = first; s < last; ++s) x += part_kv[(s * step + (i64)head * padded + f) * D + d];
        const float sum = p::ld_shared_f32(all + (u32)f * 4), m = sum == 0.f ? 0.f : x / sum;
        const u32 hi = p::pack2<BF16>(m, 0.f), lo = p::pack2<BF16>(m - p::lo_f<BF16>(hi), 0.f);
        mean[(place * padded + f) * D + d] = (u16)hi;
        mean[(((i64)cells * heads + place) * padded + f) * D + d] = (u16)lo;
        if (d == 0) ratio[place * padded + f] = sum * inv;
        sv += x * inv;
    }
    p::st_shared_f32(parts + (u32)p::tid() * 4, sv);
    p::sync_block();
    if (p::tid() < D) {
        float x = 0.f;
        for (int i = 0; i < SUM_THREADS / D; ++i) x += p::ld_shared_f32(parts + (u32)(i * D + d) * 4);
        rest[place * (D + 1) + d] = x;
    }
    if (p::tid() == D) {
        for (int f = 0; f < padded; ++f) every += p::ld_shared_f32(all + (u32)f * 4) * inv;
        rest[place * (D + 1) + D] = every;
    }
}

template <bool BF16>
DEV void queries(const u16* q, u16* o, const u16* w, const float* norm, const u16* mean, const float* ratio,
                 const float* rest, const int* cu, const int* tile_cell, const int* tile_row, i64 total, i64 q_row,
                 i64 q_head, i64 o_row, i64 o_head, int cells, int heads, int features, int padded, float scale,
                 float eps) {
    const int cell = tile_cell[p::bid_x()], row0 = tile_row[p::bid_x()], head = p::bid_y();
    const int beg = cu[cell], len = cu[cell + 1] - beg;
    const int lane = p::tid() & 31, warp = p::tid() >> 5, g = lane >> 2, t = lane & 3;
    const i64 place = (i64)cell * heads + head;
    const float scale2 = scale * LOG2E;
    const u32 ring = p::smem_base();
    auto stage = [&](int i) { return ring + (u32)((i & 1) * QUERY_STAGE); };
    const int n_chunks = (features + CHUNK - 1) / CHUNK;
    auto fetch = [&](int i) {
        load_w(stage(i), w, i * CHUNK, padded);
        UNROLL
        for (int h = 0; h < 2; ++h)
            tile::load_tile<CHUNK, THREADS>(stage(i) + (u32)((TERMS + h) * PART),
                                       mean + (((i64)h * cells * heads + place) * padded + i * CHUNK) * D, D, CHUNK);
        p::cp_commit();
    };

    // Q passes through the second stage into registers, where it stays.
    tile::load_tile<BM, THREADS>(stage(1), q + (i64)(beg + row0) * q_row + (i64)head * q_head, q_row, len - row0);
    p::cp_commit();
    fetch(0);
    p::cp_wait<1>();
    p::sync_block();
    u32 qf[4][4];
    tile::rows_a(qf, stage(1), warp * 16);
    p::sync_block();  // the second stage is free

    float acc[8][4] = {}, most[2] = {NEG_INF, NEG_INF}, den[2] = {};
    for (int i = 0; i < n_chunks; ++i) {
        if (i + 1 < n_chunks) fetch(i + 1);
        else p::cp_commit();
        p::f2 share[CHUNK / 8];
        UNROLL
        for (int n = 0; n < CHUNK / 8; ++n)
            share[n] = *reinterpret_cast<const p::f2*>(ratio + place * padded + i * CHUNK + n * 8 + t * 2);
        p::cp_wait<1>();
        p::sync_block();
        float s[CHUNK / 8][4] = {};
        logits<BF16>(s, qf, stage(i), i * CHUNK, features);
        UNROLL
        for (int h = 0; h < 2; ++h) {
            float now = most[h];
            UNROLL
            for (int n = 0; n < CHUNK / 8; ++n) now = p::max2(now, p::max2(s[n][2 * h], s[n][2 * h + 1]));
            now = p::max2(now, p::shfl_xor(now, 1));
            now = p::max2(now, p::shfl_xor(now, 2));
            const float base = now == NEG_INF ? 0.f : now * scale2;  // -inf: only a row of NaN
            const float fix = p::exp2(p::fma(most[h], scale2, -base));
            most[h] = now;
            den[h] *= fix;
            UNROLL
            for (int n = 0; n < CHUNK / 8; ++n)
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    float& x = s[n][2 * h + e];
                    x = p::exp2(p::fma(x, scale2, -base)) * ((e ? share[n].y : share[n].x) * UP);
                    den[h] += x;
                }
            UNROLL
            for (int n = 0; n < 8; ++n) acc[n][2 * h] *= fix, acc[n][2 * h + 1] *= fix;
        }
        UNROLL
        for (int kk = 0; kk < CHUNK / 16; ++kk) {
            u32 a[4], low[4];
            tile::as_two<BF16>(a, low, s[2 * kk], s[2 * kk + 1]);
            tile::mul_16<BF16>(acc, a, stage(i) + (u32)((TERMS + 1) * PART), kk * 16);  // the means' second part
            tile::mul_16_twice<BF16>(acc, a, low, stage(i) + (u32)(TERMS * PART), kk * 16);
        }
        p::sync_block();  // this stage may be overwritten by the next fetch
    }

    const float* fixed = rest + place * (D + 1);
    float mul[2];
    UNROLL
    for (int h = 0; h < 2; ++h) {
        const int r = row0 + warp * 16 + g + h * 8;
        const float fade = r < len ? p::exp2(-norm[(i64)head * total + beg + r]) : 0.f;
        den[h] += p::shfl_xor(den[h], 1);
        den[h] += p::shfl_xor(den[h], 2);
        mul[h] = 1.f / p::fma(den[h], fade, eps * UP * fixed[D]);
        UNROLL
        for (int n = 0; n < 8; ++n)
            UNROLL
            for (int e = 0; e < 2; ++e)
                acc[n][2 * h + e] = p::fma(acc[n][2 * h + e], fade, eps * UP * fixed[n * 8 + t * 2 + e]);
    }
    tile::store<BF16>(acc, mul[0], mul[1], stage(0), warp * 16, o + (i64)(beg + row0) * o_row + (i64)head * o_head,
                      o_row, len - row0);
}
}  // namespace performer

// Plan of the norms: norm[head, token] = log2(e) |cx|^2 / 2, for queries and for keys; grid (ceil(total / 16), heads),
// 128 threads, eight lanes a row.
KERNEL(128, 8)
performer_norms(const u16* x, float* norm, i64 total, i64 x_row, i64 x_head, float scale) {
    const i64 r = (i64)p::bid_x() * (performer::THREADS / 8) + (p::tid() >> 3), head = p::bid_y();
    const bool ok = r < total;
    const u16* row = x + (ok ? r * x_row : 0) + head * x_head;
    const float s = tile::row_dot<CFM_BF16>(row, row, ok) * (.5f * scale * scale * tile::LOG2E);
    if (ok && (p::tid() & 7) == 0) norm[head * total + r] = s;
}

// Plan of the key maximum: grid (tiles of 64 tokens, heads), 4 warps; the keys stay in registers, w (parts, padded, 64)
// runs through a ring of two stages of 32 features. top must be zeroed before; it holds the maxima of w.x, not yet
// times c, in the order-preserving form of ordered().
KERNEL(128, 4)
performer_key_max(const u16* k, const u16* w, u32* top, const int* cu, const int* tile_cell, const int* tile_row,
                  i64 k_row, i64 k_head, int features, int padded, int top_cell, int top_head) {
    performer::key_max<CFM_BF16>(k, w, top, cu, tile_cell, tile_row, k_row, k_head, features, padded, top_cell,
                                 top_head);
}

// Plan of the key sums: grid (splits, heads * padded / 96), 6 warps of 16 features, 33 KiB of shared memory; a split is
// at most split_rows (a multiple of 64) tokens of one cell. w stays in registers, tiles of 64 keys and values run
// through a ring of two stages. Logits are computed transposed (features are rows), so that phi feeds phi^T V straight
// from registers. part_kv (splits, heads, padded, 64) and part_sum (splits, heads, padded) are written whole.
KERNEL(192, 2)
performer_keys(const u16* k, const u16* v, const u16* w, const float* norm, const u32* top, float* part_kv,
               float* part_sum, const int* cu, const int* split_cell, const int* split_row, int split_rows, i64 total,
               i64 k_row, i64 k_head, i64 v_row, i64 v_head, int heads, int features, int padded, int top_cell,
               int top_head, float scale, float eps) {
    performer::keys<CFM_BF16>(k, v, w, norm, top, part_kv, part_sum, cu, split_cell, split_row, split_rows, total,
                              k_row, k_head, v_row, v_head, heads, features, padded, top_cell, top_head, scale, eps);
}

// Plan of the summary: grid (cells, heads), 256 threads, 4 * (padded + 256) bytes of shared memory; the splits of a cell
// (cell_split[cell] to cell_split[cell + 1]) are added in order. mean (2, cells, heads, padded, 64): two 16-bit parts;
// ratio (cells, heads, padded); rest (cells, heads, 65): the two constants of eps.
KERNEL(256, 2)
performer_summary(const float* part_kv, const float* part_sum, u16* mean, float* ratio, float* rest, const int* cell_split,
                  int cells, int heads, int padded) {
    performer::summary<CFM_BF16>(part_kv, part_sum, mean, ratio, rest, cell_split, cells, heads, padded);
}

// Plan of the query side: grid (tiles of 64 tokens, heads), 4 warps, 40 KiB of shared memory (fp16: 32). As attention
// over the features: queries stay in registers, 32 features at a time (w and means) run through a ring of two stages,
// online maximum and denominator.
KERNEL(128, 3)
performer_queries(const u16* q, u16* o, const u16* w, const float* norm, const u16* mean, const float* ratio,
                  const float* rest, const int* cu, const int* tile_cell, const int* tile_row, i64 total, i64 q_row,
                  i64 q_head, i64 o_row, i64 o_head, int cells, int heads, int features, int padded, float scale,
                  float eps) {
    performer::queries<CFM_BF16>(q, o, w, norm, mean, ratio, rest, cu, tile_cell, tile_row, total, q_row, q_head, o_row,
                                 o_head, cells, heads, features, padded, scale, eps);
}
