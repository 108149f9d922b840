// Primitives and tile moves that the backward, the gene sums and the Performer share, over prims.cuh.
// As there, each primitive exists twice: as a device instruction, and emulated for a host compiler.
#pragma once
#include "prims.cuh"

#ifdef CFM_DEVICE
#define ROLLED _Pragma("unroll 1")
namespace p {

struct f2 {
    float x, y;
};

// The two 16-bit values of a word as floats; lo is the first in memory.
template <bool BF16> DEV float lo_f(u32 v) {
    if constexpr (BF16) return __uint_as_float(v << 16);
    float f;
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a;}" : "=f"(f) : "r"(v));
    return f;
}
template <bool BF16> DEV float hi_f(u32 v) {
    if constexpr (BF16) return __uint_as_float(v & 0xffff0000u);
    float f;
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b;}" : "=f"(f) : "r"(v));
    return f;
}
DEV u32 bits(float x) { return __float_as_uint(x); }
DEV float from_bits(u32 x) { return __uint_as_float(x); }
DEV void st_shared_f32(u32 a, float v) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(a), "f"(v) : "memory"); }
DEV float ld_shared_f32(u32 a) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(a) : "memory");
    return v;
}
DEV f2 ld_shared_f2(u32 a) {
    f2 v;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(a) : "memory");
    return v;
}
DEV void red_max_u32(u32* dst, u32 v) { atomicMax(dst, v); }
DEV void red_add_u32(u32* dst, u32 v) { atomicAdd(dst, v); }

}  // namespace p
#else
#define ROLLED
namespace p {

struct f2 {
    float x, y;
};

template <bool BF16> inline float lo_f(u32 v) { return emu::to_f<BF16>((u16)v); }
template <bool BF16> inline float hi_f(u32 v) { return emu::to_f<BF16>((u16)(v >> 16)); }
inline u32 bits(float x) {
    u32 u;
    std::memcpy(&u, &x, 4);
    return u;
}
inline float from_bits(u32 u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}
inline void st_shared_f32(u32 a, float v) { st_shared_u32(a, bits(v)); }
inline float ld_shared_f32(u32 a) {
    float v;
    emu::touch(a, 4, false);
    std::memcpy(&v, B->smem + a, 4);
    return v;
}
inline f2 ld_shared_f2(u32 a) {
    f2 v;
    emu::touch(a, 8, false);
    std::memcpy(&v, B->smem + a, 8);
    return v;
}
inline void red_max_u32(u32* dst, u32 v) { *dst = *dst > v ? *dst : v; }
inline void red_add_u32(u32* dst, u32 v) { *dst += v; }

}  // namespace p
#endif

namespace tile {
using k::load_tile;
using k::ROW_BYTES;
using k::swz;
constexpr float LOG2E = 1.4426950408889634f;

// The A operand (16 rows x 64) of a warp, whose rows start at `row`.
DEV void rows_a(u32 (&f)[4][4], u32 base, int row) {
    const int lane = p::tid() & 31;
    UNROLL
    for (int kk = 0; kk < 4; ++kk) p::ldsm4(f[kk], base + swz(row + (lane & 15), kk * 2 + (lane >> 4)));
}

// s += A B^T over the 64 columns; B is NT * 8 rows of shared memory.
template <bool BF16, int NT> DEV void mul_nt(float (&s)[NT][4], const u32 (&a)[4][4], u32 base) {
    const int lane = p::tid() & 31;
    UNROLL
    for (int kk = 0; kk < 4; ++kk)
        UNROLL
        for (int n = 0; n < NT; n += 2) {
            u32 b[4];
            p::ldsm4(b, base + swz(n * 8 + (lane & 7) + ((lane >> 4) << 3), kk * 2 + ((lane >> 3) & 1)));
            p::mma16816<BF16>(s[n], a[kk], b[0], b[1]);
            p::mma16816<BF16>(s[n + 1], a[kk], b[2], b[3]);
        }
}

// s += (sum of the parts of A) B^T: an A operand in PARTS 16-bit parts, smallest last; B is read once.
template <bool BF16, int PARTS, int NT> DEV void mul_nt_parts(float (&s)[NT][4], const u32 (&a)[PARTS][4][4], u32 base) {
    const int lane = p::tid() & 31;
    UNROLL
    for (int kk = 0; kk < 4; ++kk)
        UNROLL
        for (int n = 0; n < NT; n += 2) {
            u32 b[4];
            p::ldsm4(b, base + swz(n * 8 + (lane & 7) + ((lane >> 4) << 3), kk * 2 + ((lane >> 3) & 1)));
            UNROLL
            for (int i = PARTS - 1; i >= 0; --i) {
                p::mma16816<BF16>(s[n], a[i][kk], b[0], b[1]);
                p::mma16816<BF16>(s[n + 1], a[i][kk], b[2], b[3]);
            }
        }
}

// Two neighbouring 8-column results of a product as the A operand of the next: no data moves.
template <bool BF16> DEV void as_a(u32 (&a)[4], const float (&x)[4], const float (&y)[4]) {
    a[0] = p::pack2<BF16>(x[0], x[1]);
    a[1] = p::pack2<BF16>(x[2], x[3]);
    a[2] = p::pack2<BF16>(y[0], y[1]);
    a[3] = p::pack2<BF16>(y[2], y[3]);
}

// acc += a B for 16 rows of B that start at row `row` of shared memory.
template <bool BF16> DEV void mul_16(float (&acc)[8][4], const u32 (&a)[4], u32 base, int row) {
    const int lane = p::tid() & 31;
    UNROLL
    for (int n = 0; n < 8; n += 2) {
        u32 b[4];
        p::ldsm4_t(b, base + swz(row + (lane & 15), n + (lane >> 4)));
        p::mma16816<BF16>(acc[n], a, b[0], b[1]);
        p::mma16816<BF16>(acc[n + 1], a, b[2], b[3]);
    }
}

// acc += (a + rest) B: an A operand in two 16-bit parts against 16 rows of B that start at row `row`.
template <bool BF16>
DEV void mul_16_twice(float (&acc)[8][4], const u32 (&a)[4], const u32 (&rest)[4], u32 base, int row) {
    const int lane = p::tid() & 31;
    UNROLL
    for (int n = 0; n < 8; n += 2) {
        u32 b[4];
        p::ldsm4_t(b, base + swz(row + (lane & 15), n + (lane >> 4)));
        p::mma16816<BF16>(acc[n], rest, b[0], b[1]);
        p::mma16816<BF16>(acc[n + 1], rest, b[2], b[3]);
        p::mma16816<BF16>(acc[n], a, b[0], b[1]);
        p::mma16816<BF16>(acc[n + 1], a, b[2], b[3]);
    }
}

// x and y as as_a gives them, and what that rounding left over, rounded in turn.
template <bool BF16> DEV void as_two(u32 (&a)[4], u32 (&rest)[4], const float (&x)[4], const float (&y)[4]) {
    as_a<BF16>(a, x, y);
    rest[0] = p::pack2<BF16>(x[0] - p::lo_f<BF16>(a[0]), x[1] - p::hi_f<BF16>(a[0]));
    rest[1] = p::pack2<BF16>(x[2] - p::lo_f<BF16>(a[1]), x[3] - p::hi_f<BF16>(a[1]));
    rest[2] = p::pack2<BF16>(y[0] - p::lo_f<BF16>(a[2]), y[1] - p::hi_f<BF16>(a[2]));
    rest[3] = p::pack2<BF16>(y[2] - p::lo_f<BF16>(a[3]), y[3] - p::hi_f<BF16>(a[3]));
}

// acc += round16(s) B, B being NT * 8 rows of shared memory.
template <bool BF16, int NT> DEV void mul_nn(float (&acc)[8][4], const float (&s)[NT][4], u32 base) {
    UNROLL
    for (int kk = 0; kk < NT / 2; ++kk) {
        u32 a[4];
        as_a<BF16>(a, s[2 * kk], s[2 * kk + 1]);
        mul_16<BF16>(acc, a, base, kk * 16);
    }
}

// Rounds a warp's 16 x 64 result, turns it through the warp's own rows of shared memory (no other warp reads or
// writes them) and stores whole rows; rows at or beyond `valid` are not written.
template <bool BF16>
DEV void store(const float (&x)[8][4], float mul0, float mul1, u32 base, int row, u16* dst, i64 row_stride, int valid) {
    const int lane = p::tid() & 31, g = lane >> 2, t = lane & 3;
    UNROLL
    for (int n = 0; n < 8; ++n) {
        p::st_shared_u32(base + swz(row + g, n) + t * 4, p::pack2<BF16>(x[n][0] * mul0, x[n][1] * mul0));
        p::st_shared_u32(base + swz(row + g + 8, n) + t * 4, p::pack2<BF16>(x[n][2] * mul1, x[n][3] * mul1));
    }
    p::sync_warp();
    UNROLL
    for (int i = 0; i < 4; ++i) {
        const int r = row + i * 4 + (lane >> 3), c = lane & 7;
        const uint4 v = p::ld_shared_v4(base + swz(r, c));
        if (r < valid) *reinterpret_cast<uint4*>(dst + (i64)r * row_stride + c * 8) = v;
    }
}

// <x, y> of one row of 64 values, by eight neighbouring lanes, in an order that never changes.
template <bool BF16> DEV float row_dot(const u16* x, const u16* y, bool ok) {
    const int c = p::tid() & 7;
    float sum = 0.f;
    if (ok) {
        const uint4 a = *reinterpret_cast<const uint4*>(x + c * 8), b = *reinterpret_cast<const uint4*>(y + c * 8);
        const u32 av[4] = {a.x, a.y, a.z, a.w}, bv[4] = {b.x, b.y, b.z, b.w};
        UNROLL
        for (int i = 0; i < 4; ++i) {
            sum = p::fma(p::lo_f<BF16>(av[i]), p::lo_f<BF16>(bv[i]), sum);
            sum = p::fma(p::hi_f<BF16>(av[i]), p::hi_f<BF16>(bv[i]), sum);
        }
    }
    sum += p::shfl_xor(sum, 1);
    sum += p::shfl_xor(sum, 2);
    sum += p::shfl_xor(sum, 4);
    return sum;
}
}  // namespace tile
