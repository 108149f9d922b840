// The forward kernels as functions that a host can call. Built once for each variant, with the -D of the GPU build;
// -DCFM_SM90 takes the Hopper kernel. Inputs are copied into blocks of exactly their size, so that the address
// sanitizer sees a read of one row too many.
#ifdef CFM_SM90
#include "varlen_fwd_sm90.cuh"
#else
#include "varlen_fwd.cuh"
#endif
#include "driver.hpp"

// One tensor as the kernel gets it: elements before the first row, elements from token to token and head to head.
struct View { u16* data; i64 size, first, row, head; };

extern "C" const char* emu_forward(const driver::Mode* mode, const View* q, const View* k, const View* v, const View* o,
                                   float* lse, const int* cu, int cells, const int* n_known, const int* tile_cell,
                                   const int* tile_row, int tiles, int heads, i64 total, i64 rows, float scale) {
    return driver::guarded([&] {
        driver::Exact<u16> qx(q->data, q->size), kx(k->data, k->size), vx(v->data, v->size), ox(o->data, o->size);
        driver::Exact<float> lx(lse, total * heads);
        driver::Exact<int> cx(cu, cells + 1), nx(n_known, n_known ? cells : 0), tc(tile_cell, tiles), tr(tile_row, tiles);
        const float scale_log2 = scale * 1.4426950408889634f;
        const int* known = n_known ? nx.get() : nullptr;
#ifdef CFM_SM90
        auto map = [&](u16* base, const View* w) {
            return TensorMap{{(u64)(base + w->first), (u64)w->row * 2, (u64)w->head * 2, (u64)rows, (u64)heads}};
        };
        const TensorMap qm = map(qx.get(), q), km = map(kx.get(), k), vm = map(vx.get(), v);
        emu::launch(mode->config(), tiles, heads, k90::THREADS, k90::SMEM_BYTES - mode->withheld, [&] {
            varlen_fwd_sm90(qm, km, vm, ox.get() + o->first, lx.get(), cx.get(), known, tc.get(), tr.get(), o->row, o->head, total, scale_log2);
        });
#else
        (void)rows;
        emu::launch(mode->config(), tiles, heads, k::FWD_THREADS, k::fwd_smem_bytes<CFM_TILE> - mode->withheld, [&] {
            varlen_fwd(qx.get() + q->first, kx.get() + k->first, vx.get() + v->first, ox.get() + o->first, lx.get(), cx.get(), known,
                       tc.get(), tr.get(), q->row, q->head, k->row, k->head, v->row, v->head, o->row, o->head, total, scale_log2);
        });
#endif
        ox.give_back(o->data), lx.give_back(lse);
    });
}
