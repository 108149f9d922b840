// Packed (ragged) attention forward for sm_80 and later: mma.sync, ldmatrix, cp.async; head dim 64.
//
// Rule: query i of a cell sees key j of the same cell when j < n_known[cell], or j == i. The caller has put the known
// tokens of a cell first, so one integer is the whole mask; n_known == nullptr means that every key is known.
//
// Plan. One block is one tile of query rows of one cell and one head; the caller lists the tiles (longest cells
// first), so blocks start in the order that balances them.
//   1. Q is copied once, and goes to registers as the A operand of every later product.
//   2. Key tiles of 64 rows come through a ring of two stages. One barrier a tile does both jobs: it says that this
//      tile has arrived, and that everybody has left the other stage, which the next copy may therefore overwrite.
//   3. S = Q K^T stays in registers; the layout of its accumulators is that of the A operand of P V, so P needs no
//      move. The maximum is kept unscaled; scale and subtraction are one fma before exp2.
//   4. Each warp turns its rows through its own part of the Q tile, and stores them in 16-byte pieces.
// Rows at or past the end of the cell are computed with zeros and never stored.
//
// Compile with -DCFM_BF16=1 (bfloat16) or 0 (float16) and -DCFM_TILE=64 or 128 (query rows of a block).
// Launch with a grid of (tiles, heads), k::FWD_THREADS threads and k::fwd_smem_bytes<CFM_TILE> of shared memory.
#pragma once
#include "prims.cuh"

struct FwdParams {
    const u16 *q, *k, *v;  // [total, heads, 64], rows aligned to 16 bytes
    u16* o;                // same shape
    float* lse;            // [heads, total], natural logarithm; +inf for a row that sees nothing
    const int* cu;         // [cells + 1]
    const int* n_known;    // [cells] or nullptr
    const int* tile_cell;  // [tiles]
    const int* tile_row;   // [tiles], first row of the tile inside its cell
    i64 q_row, q_head, k_row, k_head, v_row, v_head, o_row, o_head;  // elements from one token, one head, to the next
    i64 total;
    float scale_log2;  // softmax scale times log2(e), positive
};

namespace k {
// The key tiles that a tile of query rows visits: those that hold known keys, then those on its own diagonal that
// are not among them. Between the two lies nothing that these rows can see.
struct KeyTiles {
    int n_main, d_first, count;
    DEV int at(int i) const { return i < n_main ? i : d_first + (i - n_main); }
};
template <int BM, int BN> DEV KeyTiles key_tiles(int row0, int len, int known) {
    KeyTiles t;
    const int rows_end = row0 + BM < len ? row0 + BM : len;
    t.n_main = (known + BN - 1) / BN;
    t.d_first = row0 / BN > t.n_main ? row0 / BN : t.n_main;
    const int d_last = rows_end > known ? (rows_end + BN - 1) / BN : t.d_first;
    t.count = t.n_main + (d_last > t.d_first ? d_last - t.d_first : 0);
    return t;
}

enum { FWD_BN = 64, FWD_WARPS = 4, FWD_THREADS = 32 * FWD_WARPS };
template <int BM> constexpr int fwd_smem_bytes = (BM + 4 * FWD_BN) * ROW_BYTES;

// One block: BM = WARPS * MF * 16 query rows, each warp MF fragments of 16 rows.
template <bool BF16, int WARPS, int MF, int BN>
DEV void varlen_fwd(const FwdParams& P) {
    constexpr int BM = WARPS * MF * 16, T = WARPS * 32, NT = BN / 8, STAGE = BN * ROW_BYTES;
    static_assert(BN % 16 == 0, "a step of the second product takes 16 keys");
    static_assert((BM + 4 * BN) * ROW_BYTES <= 48 * 1024, "more shared memory needs an opt-in at launch");

    const int cell = P.tile_cell[p::bid_x()], row0 = P.tile_row[p::bid_x()], head = p::bid_y();
    const int beg = P.cu[cell], len = P.cu[cell + 1] - beg;
    int known = P.n_known ? P.n_known[cell] : len;
    if (known > len) known = len;
    const int lane = p::tid() & 31, warp = p::tid() >> 5, g = lane >> 2, t = lane & 3;

    const u32 sq = p::smem_base(), sk = sq + BM * ROW_BYTES, sv = sk + 2 * STAGE;
    const u16* kp = P.k + (i64)beg * P.k_row + (i64)head * P.k_head;
    const u16* vp = P.v + (i64)beg * P.v_row + (i64)head * P.v_head;

    const KeyTiles tiles = key_tiles<BM, BN>(row0, len, known);
    auto fetch = [&](int i) {
        const int j0 = tiles.at(i) * BN, s = i & 1;
        load_tile<BN, T>(sk + s * STAGE, kp + (i64)j0 * P.k_row, P.k_row, len - j0);
        load_tile<BN, T>(sv + s * STAGE, vp + (i64)j0 * P.v_row, P.v_row, len - j0);
        p::cp_commit();
    };

    load_tile<BM, T>(sq, P.q + (i64)(beg + row0) * P.q_row + (i64)head * P.q_head, P.q_row, len - row0);
    p::cp_commit();
    fetch(0);
    p::cp_wait<1>();
    p::sync_block();

    u32 qf[MF][4][4];
    UNROLL
    for (int m = 0; m < MF; ++m)
        UNROLL
        for (int kk = 0; kk < 4; ++kk)
            p::ldsm4(qf[m][kk], sq + swz((warp * MF + m) * 16 + (lane & 15), kk * 2 + (lane >> 4)));

    float o[MF][8][4] = {}, mx[MF][2], sum[MF][2];
    UNROLL
    for (int m = 0; m < MF; ++m)
        UNROLL
        for (int h = 0; h < 2; ++h) mx[m][h] = NEG_INF, sum[m][h] = 0.f;

    for (int i = 0; i < tiles.count; ++i) {
        p::cp_wait<0>();
        p::sync_block();
        if (i + 1 < tiles.count) fetch(i + 1);
        const int j0 = tiles.at(i) * BN;
        const u32 bk = sk + (i & 1) * STAGE, bv = sv + (i & 1) * STAGE;

        float s[MF][NT][4] = {};
        UNROLL
        for (int kk = 0; kk < 4; ++kk)
            UNROLL
            for (int n = 0; n < NT; n += 2) {
                u32 b[4];
                p::ldsm4(b, bk + swz(n * 8 + (lane & 7) + ((lane >> 4) << 3), kk * 2 + ((lane >> 3) & 1)));
                UNROLL
                for (int m = 0; m < MF; ++m) {
                    p::mma16816<BF16>(s[m][n], qf[m][kk], b[0], b[1]);
                    p::mma16816<BF16>(s[m][n + 1], qf[m][kk], b[2], b[3]);
                }
            }

        // A partial or a diagonal tile (known <= len, so this also cuts the tail). A select, never an added bias:
        // -inf + NaN would be NaN.
        if (j0 + BN > known) {
            UNROLL
            for (int m = 0; m < MF; ++m)
                UNROLL
                for (int n = 0; n < NT; ++n)
                    UNROLL
                    for (int e = 0; e < 4; ++e) {
                        const int col = j0 + n * 8 + t * 2 + (e & 1);
                        const int row = row0 + (warp * MF + m) * 16 + g + (e >> 1) * 8;
                        if (col >= known && col != row) s[m][n][e] = NEG_INF;
                    }
        }

        UNROLL
        for (int m = 0; m < MF; ++m) {
            UNROLL
            for (int h = 0; h < 2; ++h) {
                float mnew = mx[m][h];
                UNROLL
                for (int n = 0; n < NT; ++n) mnew = p::max2(mnew, p::max2(s[m][n][2 * h], s[m][n][2 * h + 1]));
                mnew = p::max2(mnew, p::shfl_xor(mnew, 1));
                mnew = p::max2(mnew, p::shfl_xor(mnew, 2));
                // A row that has seen nothing yet keeps -inf; 0 stands in so that no inf - inf is formed.
                const float base = mnew == NEG_INF ? 0.f : mnew * P.scale_log2;
                const float fix = p::exp2(p::fma(mx[m][h], P.scale_log2, -base));
                mx[m][h] = mnew;
                float add = 0.f;
                UNROLL
                for (int n = 0; n < NT; ++n)
                    UNROLL
                    for (int e = 2 * h; e < 2 * h + 2; ++e) {
                        s[m][n][e] = p::exp2(p::fma(s[m][n][e], P.scale_log2, -base));
                        add += s[m][n][e];
                    }
                sum[m][h] = p::fma(sum[m][h], fix, add);
                UNROLL
                for (int n = 0; n < 8; ++n) o[m][n][2 * h] *= fix, o[m][n][2 * h + 1] *= fix;
            }
        }

        UNROLL
        for (int kk = 0; kk < BN / 16; ++kk) {
            u32 a[MF][4];
            UNROLL
            for (int m = 0; m < MF; ++m)
                UNROLL
                for (int r = 0; r < 4; ++r)
                    a[m][r] = p::pack2<BF16>(s[m][2 * kk + (r >> 1)][2 * (r & 1)], s[m][2 * kk + (r >> 1)][2 * (r & 1) + 1]);
            UNROLL
            for (int n = 0; n < 8; n += 2) {
                u32 b[4];
                p::ldsm4_t(b, bv + swz(kk * 16 + (lane & 15), n + (lane >> 4)));
                UNROLL
                for (int m = 0; m < MF; ++m) {
                    p::mma16816<BF16>(o[m][n], a[m], b[0], b[1]);
                    p::mma16816<BF16>(o[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    UNROLL
    for (int m = 0; m < MF; ++m)
        UNROLL
        for (int h = 0; h < 2; ++h) {
            float l = sum[m][h];
            l += p::shfl_xor(l, 1);
            l += p::shfl_xor(l, 2);
            const float inv = l == 0.f ? 0.f : 1.f / l;  // NaN stays NaN
            const int r = (warp * MF + m) * 16 + g + h * 8;
            UNROLL
            for (int n = 0; n < 8; ++n)
                p::st_shared_u32(sq + swz(r, n) + t * 4, p::pack2<BF16>(o[m][n][2 * h] * inv, o[m][n][2 * h + 1] * inv));
            if (t == 0 && row0 + r < len)
                P.lse[(i64)head * P.total + beg + row0 + r] =
                    l == 0.f ? POS_INF : p::fma(mx[m][h], P.scale_log2, p::log2(l)) * 0.6931471805599453f;
        }
    p::sync_warp();
    UNROLL
    for (int i = 0; i < MF * 4; ++i) {
        const int r = warp * MF * 16 + i * 4 + (lane >> 3), c = lane & 7;
        const uint4 x = p::ld_shared_v4(sq + swz(r, c));
        if (row0 + r < len)
            *reinterpret_cast<uint4*>(P.o + (i64)(beg + row0 + r) * P.o_row + (i64)head * P.o_head + c * 8) = x;
    }
}
}  // namespace k

// Flat scalars and pointers, because not every launcher takes a struct. Left out where a kernel only borrows from here.
#ifdef CFM_TILE
static_assert(CFM_TILE == 64 || CFM_TILE == 128, "query rows of a block");
KERNEL(k::FWD_THREADS, CFM_TILE == 64 ? 3 : 2)
varlen_fwd(const u16* q, const u16* k, const u16* v, u16* o, float* lse, const int* cu, const int* n_known,
           const int* tile_cell, const int* tile_row, i64 q_row, i64 q_head, i64 k_row, i64 k_head, i64 v_row,
           i64 v_head, i64 o_row, i64 o_head, i64 total, float scale_log2) {
    k::varlen_fwd<CFM_BF16 != 0, k::FWD_WARPS, CFM_TILE / 64, k::FWD_BN>(
        FwdParams{q, k, v, o, lse, cu, n_known, tile_cell, tile_row, q_row, q_head, k_row, k_head, v_row, v_head, o_row,
                  o_head, total, scale_log2});
}
#endif
