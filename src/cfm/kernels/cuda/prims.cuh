// Primitive layer. The kernels are written only in terms of what is declared here, so one and the
// same kernel source compiles with nvcc, with NVRTC (no header is included on the device side) and,
// through emu.hpp, with any C++17 host compiler.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define CFM_DEVICE 1
#define DEV __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define GRID_CONST const __grid_constant__
#define UNROLL _Pragma("unroll")
#define NEG_INF (-__int_as_float(0x7f800000))
#define POS_INF (__int_as_float(0x7f800000))

namespace p {

DEV int tid() { return (int)threadIdx.x; }
DEV int bid_x() { return (int)blockIdx.x; }
DEV int bid_y() { return (int)blockIdx.y; }
extern __shared__ __align__(1024) unsigned char dyn_smem[];
DEV u32 smem_base() { return (u32)__cvta_generic_to_shared(dyn_smem); }
DEV void sync_block() { __syncthreads(); }
DEV void sync_warp() { __syncwarp(); }
DEV float shfl_xor(float v, int m) { return __shfl_xor_sync(0xffffffffu, v, m); }
DEV float exp2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEV float log2(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEV float max2(float a, float b) { return fmaxf(a, b); }
DEV float fma(float a, float b, float c) { return fmaf(a, b, c); }

// Two floats to two 16-bit values, lo in the low half.
template <bool BF16> DEV u32 pack2(float lo, float hi) {
    u32 r;
    if constexpr (BF16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

DEV void st_shared_u32(u32 a, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(a), "r"(v) : "memory"); }
DEV uint4 ld_shared_v4(u32 a) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(a) : "memory");
    return v;
}

// 16-byte asynchronous copy; ok == false writes zeros and reads nothing.
DEV void cp_async16(u32 dst, const void* src, bool ok) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(ok ? 16 : 0) : "memory");
}
DEV void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEV void cp_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

DEV void ldsm4(u32 (&r)[4], u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
DEV void ldsm4_t(u32 (&r)[4], u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
template <bool BF16> DEV void mma16816(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (BF16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEV void red_add_u64(u64* dst, u64 v) { atomicAdd(dst, v); }
DEV u64 to_fixed(float x, float scale) { return __float2ull_rn(x * scale); }

}  // namespace p
#else
#include "emu.hpp"  // found through -I: the emulation is a test tool and does not ship
#endif

// What every kernel here shares: head dim 64, so that a row of 16-bit numbers is exactly one 128-byte swizzle row.
namespace k {
constexpr int D = 64;
constexpr int ROW_BYTES = D * 2;

// Byte offset of 16-byte chunk `chunk` of row `row`. TMA and wgmma use the same pattern in tiles that start at a
// multiple of 1,024 bytes; ldmatrix, cp.async and the turn of the output are free of bank conflicts with it.
DEV u32 swz(int row, int chunk) { return (u32)(row * ROW_BYTES + ((chunk ^ (row & 7)) << 4)); }

// Copies ROWS rows of one head into shared memory; rows at or beyond `valid` become zeros and are not read.
// They must be zeros: their weight is 0, but 0 * NaN of a neighbouring cell would be NaN.
template <int ROWS, int THREADS>
DEV void load_tile(u32 dst, const u16* src, i64 row_stride, int valid) {
    static_assert(ROWS * 8 % THREADS == 0, "every thread copies the same number of 16-byte chunks");
    UNROLL
    for (int i = 0; i < ROWS * 8 / THREADS; ++i) {
        const int e = p::tid() + i * THREADS, r = e >> 3, c = e & 7;
        const bool ok = r < valid;
        p::cp_async16(dst + swz(r, c), src + (ok ? (i64)r * row_stride : 0) + c * 8, ok);
    }
}
}  // namespace k
