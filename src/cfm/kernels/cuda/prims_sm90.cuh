// sm_90a primitives: mbarrier, bulk tensor copy (TMA), wgmma, register reallocation.
#pragma once
#include "prims.cuh"

// Opaque 128-byte tensor map, made by the driver on a real device (cuTensorMapEncodeTiled); the
// emulation reads its first words as {base, row stride in bytes, head stride in bytes, rows, heads}.
struct alignas(64) TensorMap { u64 w[16]; };

namespace p {
// Shared-memory matrix descriptor, 128-byte swizzle, 8-row groups 1024 bytes apart.
DEV u64 desc128(u32 addr) { return (u64)((addr & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62; }

#ifdef CFM_DEVICE
DEV void mbar_init(u32 bar, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory"); }
DEV void mbar_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void mbar_expect(u32 bar, int bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory"); }
DEV void mbar_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
DEV void mbar_wait(u32 bar, int parity) {
    asm volatile("{\n.reg .pred P;\nW: mbarrier.try_wait.parity.shared::cta.b64 P, [%0], %1;\n@P bra D;\nbra W;\nD:\n}" ::"r"(bar), "r"(parity) : "memory");
}
// Box of 64 elements x 1 head x `rows` tokens (rows is fixed by the map on the device).
DEV void tma_load(u32 dst, const TensorMap& map, u32 bar, int head, int token, int rows) {
    (void)rows;
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(dst),
                 "l"(&map), "r"(0), "r"(head), "r"(token), "r"(bar) : "memory");
}
template <int N> DEV void reg_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEV void reg_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
// Numbered barriers: COUNT threads come, those that only arrive go on. The number is a constant, since ptxas reserves
// all 16 barriers for one that it cannot know.
template <int ID, int COUNT> DEV void named_sync() { asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(COUNT) : "memory"); }
template <int ID, int COUNT> DEV void named_arrive() { asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(COUNT) : "memory"); }
// Barrier of one warpgroup; id 1..15.
DEV void sync_warpgroup(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }
// Makes ordinary shared-memory stores visible to wgmma and TMA; every storing thread calls it before the barrier.
DEV void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEV void st_shared_zero16(u32 a) { asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(a), "r"(0) : "memory"); }
DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEV void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// Pins values to this point of the program, at no cost. Behind a wait for wgmma: for the compiler the accumulators are
// there as soon as the product is issued, so it might read them ahead of the wait. Ahead of a wait: it would otherwise
// sink the exponentials of a softmax below the wait for the very product that they hide.
template <int N> DEV void settle(float (&x)[N]) {
    UNROLL
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

#define R8(a, i) "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3]), "+f"(a[i + 4]), "+f"(a[i + 5]), "+f"(a[i + 6]), "+f"(a[i + 7])
#define R32(a, i) R8(a, i), R8(a, i + 8), R8(a, i + 16), R8(a, i + 24)
#define L32A "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define L32B "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_SS_N128(TYPE) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE \
                 " {" L32A "," L32B "}, %64, %65, p, 1, 1, 0, 0;\n}" : R32(d, 0), R32(d, 32) : "l"(a), "l"(b), "r"(add))
#define WGMMA_RS_N64_T(TYPE) \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" L32A "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;" \
                 : R32(d, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
// d[64 x 128] (+)= A[64 x 16] * B[128 x 16]^T, both operands K-major in shared memory.
template <bool BF16 = true> DEV void wgmma_ss_n128(float (&d)[64], u64 a, u64 b, int add) {
    if constexpr (BF16) WGMMA_SS_N128("bf16");
    else WGMMA_SS_N128("f16");
}
// d[64 x 64] += A[64 x 16] (registers) * B[16 x 64], B stored with its 64 columns contiguous (transposed operand).
template <bool BF16 = true> DEV void wgmma_rs_n64_t(float (&d)[32], const u32 (&a)[4], u64 b) {
    if constexpr (BF16) WGMMA_RS_N64_T("bf16");
    else WGMMA_RS_N64_T("f16");
}
#endif
}  // namespace p

#ifndef CFM_DEVICE
#include "emu_sm90.hpp"
#endif

