// Host emulation of the sm_90a primitives: mbarriers, tensor copies, wgmma, named barriers.
// Everything that the hardware does on its own is an agent with a clock of its own, so that a tensor copy or a
// wgmma that runs into somebody's access to the same shared memory is a race like any other.
#pragma once
#include "emu.hpp"

namespace p {
enum { op_wgmma_ss = 100, op_wgmma_rs, op_wgmma_fence, op_wgmma_commit, op_setmaxnreg, op_wgmma_wait };
namespace detail {
inline int clock_size() { return B->threads + emu::agents; }

inline emu::MBar& bar(u32 a) {
    auto it = B->mbar.find(a);
    if (it == B->mbar.end()) emu::die("mbarrier used before its init", B->current);
    emu::MBar& b = it->second;
    // A copy that lands runs on whichever thread is there: it was checked when it was issued.
    if (B->cfg.check_races && B->current >= 0 && !B->landing && B->fiber[B->current].knows.seen[b.maker] < b.made)
        emu::die("race: mbarrier used without waiting for its init", B->current);
    return b;
}
inline void bar_step(emu::MBar& b) {
    if (b.arrived > b.count) emu::die("more arrivals than the mbarrier expects", B->current);
    if (b.arrived < b.count || b.tx != 0) return;
    b.arrived = 0, ++b.phase;
    if (B->cfg.check_races) b.done = b.coming, b.coming.reset(clock_size());
    for (int f : b.waiters) emu::wake(f);
    b.waiters.clear();
}
inline void arrive(emu::MBar& b) {
    if (B->cfg.check_races) {
        emu::Knowledge& mine = B->fiber[B->current].knows;
        b.coming.join(mine);
        ++mine.seen[B->current];
    }
    ++b.arrived;
    bar_step(b);
}

// Byte offset of an element of an operand in shared memory, as the descriptor tells.
inline u32 element(u64 desc, int group, int row, int column) {
    const u32 a = (u32)(desc & 0x3fff) << 4, step = (u32)(desc >> 32 & 0x3fff) << 4;
    const u32 linear = a + group * step + row * 128 + column * 2;
    return linear ^ (linear >> 7 & 7) << 4;
}
inline u32 k_major(u64 desc, int row, int k) { return element(desc, row >> 3, row & 7, k); }
inline u32 mn_major(u64 desc, int n, int k) { return element(desc, k >> 3, k & 7, n); }
inline u16 at(u32 address) { u16 v; std::memcpy(&v, B->smem + address, 2); return v; }

struct Wg { float* d; const u32* a; u64 da, db; int add; float old[128]; };

// The product itself, once for all 128 threads: D[64 x N] = (D) + A[64 x 16] B[16 x N].
template <bool BF16, int N> inline void wg_finish(std::vector<Wg>& l, bool rs) {
    static thread_local float a[64 * 16], b[256 * 16];
    for (int r = 0; r < 64; ++r)
        for (int kk = 0; kk < 16; ++kk) {
            if (!rs) { a[r * 16 + kk] = emu::to_f<BF16>(at(k_major(l[0].da, r, kk))); continue; }
            const int lane = (r & 7) * 4 + (kk & 7) / 2, reg = ((r >> 3) & 1) + (kk >> 3) * 2;
            a[r * 16 + kk] = emu::to_f<BF16>((u16)(l[(r >> 4) * 32 + lane].a[reg] >> 16 * (kk & 1)));
        }
    for (int n = 0; n < N; ++n)
        for (int kk = 0; kk < 16; ++kk)
            b[n * 16 + kk] = emu::to_f<BF16>(at(rs ? mn_major(l[0].db, n, kk) : k_major(l[0].db, n, kk)));
    for (int t = 0; t < 128; ++t)
        for (int i = 0; i < N / 2; ++i) {
            const int row = (t >> 5) * 16 + ((t & 31) >> 2) + ((i >> 1) & 1) * 8, col = (i >> 2) * 8 + (t & 3) * 2 + (i & 1);
            float s = 0.f;
            for (int kk = 0; kk < 16; ++kk) s += a[row * 16 + kk] * b[col * 16 + kk];
            l[t].d[i] = (l[t].add ? l[t].old[i] : 0.f) + s;
        }
}

inline int wgmma_agent(int warp) { return B->threads + emu::mbar_agents + warp; }

// Every warp of the group counts as a reader of every operand: which warp reads what is not promised.
inline void see_operand(emu::Actor actor, int wg, u64 desc, int rows, bool transposed) {
    for (int n = 0; n < rows; ++n)
        for (int kk = 0; kk < 16; kk += 2) {
            const u32 a = transposed ? mn_major(desc, n & ~1, kk + (n & 1)) : k_major(desc, n, kk);
            if ((size_t)a + 4 > B->smem_bytes) emu::die("shared memory out of bounds", B->current);
            for (int warp = 4 * wg; B->cfg.check_races && warp < 4 * wg + 4; ++warp) {
                actor.id = wgmma_agent(warp);
                emu::visit(B->shadow[a / 4], actor, false);
            }
        }
}

template <bool BF16, int N> inline void wg_issue(int op, Wg& m, bool rs) {
    const int wg = B->current / 128;
    emu::collective<128>(B->wgroup[wg], op, m, [&](Wg** l) {
        auto& w = B->wgmma[wg];
        if (!w.fenced) emu::die("wgmma without wgmma.fence since the last wait", B->current);
        std::vector<Wg> all;
        for (int t = 0; t < 128; ++t) {
            if (l[t]->da != l[0]->da || l[t]->db != l[0]->db) emu::die("wgmma descriptors differ between lanes", B->current);
            all.push_back(*l[t]);
            if (B->cfg.late_copies && !l[t]->add) std::fill(l[t]->d, l[t]->d + N / 2, NAN);
        }
        // The operands must be known to every thread of the warpgroup when the product is issued.
        emu::Knowledge common;
        if (B->cfg.check_races) {
            common = B->fiber[wg * 128].knows;
            for (int t = 1; t < 128; ++t)
                for (int i = 0; i < clock_size(); ++i) {
                    const auto& k = B->fiber[wg * 128 + t].knows;
                    common.seen[i] = std::min(common.seen[i], k.seen[i]), common.fenced[i] = std::min(common.fenced[i], k.fenced[i]);
                }
        }
        const emu::Actor actor{-1, w.committed + 1, &common.seen, &common.fenced, true};
        if (!rs) see_operand(actor, wg, all[0].da, 64, false);
        see_operand(actor, wg, all[0].db, N, rs);
        // A chain of wgmma on one accumulator runs in order, so a later one must see the earlier result.
        auto chained = [all, rs]() mutable {
            for (auto& x : all) if (x.add) std::memcpy(x.old, x.d, sizeof(float) * (N / 2));
            wg_finish<BF16, N>(all, rs);
        };
        if (!B->cfg.late_copies) return chained();
        if (w.groups.empty()) w.groups.emplace_back();
        w.groups.back().push_back(chained);
    });
}
}  // namespace detail

inline void mbar_init(u32 bar, int count) {
    if (bar % 8) emu::die("misaligned mbarrier", B->current);
    emu::MBar b;
    b.count = count, b.agent = B->threads + (int)B->mbar.size(), b.maker = B->current;
    if ((int)B->mbar.size() >= emu::mbar_agents) emu::die("more mbarriers than the emulation has clocks for", B->current);
    if (B->cfg.check_races) b.made = B->fiber[B->current].knows.seen[B->current], b.coming.reset(detail::clock_size()), b.done = b.coming;
    B->mbar[bar] = b;
}
inline void mbar_fence_init() {
    for (auto& b : B->mbar) if (b.second.maker == B->current) b.second.fenced = true;
}
inline void mbar_arrive(u32 bar) { detail::arrive(detail::bar(bar)); }
inline void mbar_expect(u32 bar, int bytes) { auto& b = detail::bar(bar); b.tx += bytes; detail::arrive(b); }
inline void mbar_wait(u32 bar, int parity) {
    for (;;) {
        auto& b = detail::bar(bar);
        if ((b.phase & 1) != parity) {
            if (B->cfg.check_races) B->fiber[B->current].knows.join(b.done);
            return;
        }
        b.waiters.push_back(B->current);
        emu::park();
    }
}
inline void tma_load(u32 dst, const TensorMap& map, u32 bar, int head, int token, int rows) {
    if (dst % 1024) emu::die("TMA target is not aligned to the swizzle pattern", B->current);
    if ((size_t)dst + rows * 128 > B->smem_bytes) emu::die("shared memory out of bounds", B->current);
    auto& b = detail::bar(bar);
    if (!b.fenced) emu::die("tensor copy on an mbarrier whose init was not fenced", B->current);
    const u32 now = ++b.copies;
    if (B->cfg.check_races) {
        const emu::Knowledge& mine = B->fiber[B->current].knows;
        const emu::Actor actor{b.agent, now, &mine.seen, &mine.fenced, true};
        for (u32 w = dst / 4; w < (dst + rows * 128) / 4; ++w) emu::visit(B->shadow[w], actor, true);
    }
    std::memset(B->smem + dst, 0xff, rows * 128);
    auto event = [=, m = map] {  // by value: the issuing thread may be gone when the copy lands
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < 8; ++c) {
                unsigned char* out = B->smem + dst + r * 128 + ((c ^ (r & 7)) << 4);
                if (token + r < 0 || (u64)(token + r) >= m.w[3]) std::memset(out, 0, 16);
                else std::memcpy(out, reinterpret_cast<const char*>(m.w[0]) + (token + r) * m.w[1] + head * m.w[2] + c * 16, 16);
            }
        B->landing = true;
        auto& done = detail::bar(bar);
        if (B->cfg.check_races) done.coming.seen[done.agent] = std::max(done.coming.seen[done.agent], now);
        done.tx -= rows * 128;
        detail::bar_step(done);
        B->landing = false;
    };
    if (B->cfg.late_copies) B->async_events.push_back(event);
    else event();
}
template <int N> inline void reg_dec() {
    int x = 0;
    emu::collective<128>(B->wgroup[B->current / 128], op_setmaxnreg, x, [](int**) {});
}
template <int N> inline void reg_inc() { reg_dec<N>(); }
template <int ID, int COUNT> inline void named_sync() {
    static_assert(ID > 0 && ID < 16 && COUNT % 32 == 0, "barrier 0 is the block's own");
    detail::named(ID, COUNT, true);
}
template <int ID, int COUNT> inline void named_arrive() {
    static_assert(ID > 0 && ID < 16 && COUNT % 32 == 0, "barrier 0 is the block's own");
    detail::named(ID, COUNT, false);
}
inline void sync_warpgroup(int id) { detail::named(id, 128, true); }
inline void fence_async() {
    if (B->cfg.check_races) B->fiber[B->current].knows.fenced = B->fiber[B->current].knows.seen;
}
inline void st_shared_zero16(u32 a) { emu::touch(a, 16, true); std::memset(B->smem + a, 0, 16); }
inline void wgmma_fence() {
    int x = 0;
    emu::collective<128>(B->wgroup[B->current / 128], op_wgmma_fence, x, [](int**) { B->wgmma[B->current / 128].fenced = true; });
}
inline void wgmma_commit() {
    int x = 0;
    emu::collective<128>(B->wgroup[B->current / 128], op_wgmma_commit, x, [](int**) {
        auto& w = B->wgmma[B->current / 128];
        if (w.groups.empty()) w.groups.emplace_back();
        w.groups.emplace_back();
        ++w.committed;
    });
}
template <int N> inline void wgmma_wait() {
    int x = 0;
    emu::collective<128>(B->wgroup[B->current / 128], op_wgmma_wait + N, x, [](int**) {
        const int wg = B->current / 128;
        auto& w = B->wgmma[wg];
        while ((int)w.groups.size() - 1 > N) {
            for (auto& product : w.groups.front()) product();
            w.groups.erase(w.groups.begin());
            ++w.retired;
        }
        w.fenced = false;
        if (B->cfg.check_races)
            for (int t = wg * 128; t < wg * 128 + 128; ++t) B->fiber[t].knows.seen[detail::wgmma_agent(t / 32)] = w.retired;
    });
}
template <int N> inline void settle(float (&)[N]) {}
template <bool BF16 = true> inline void wgmma_ss_n128(float (&d)[64], u64 a, u64 b, int add) {
    detail::Wg m{}; m.d = d, m.da = a, m.db = b, m.add = add;
    detail::wg_issue<BF16, 128>(op_wgmma_ss, m, false);
}
template <bool BF16 = true> inline void wgmma_rs_n64_t(float (&d)[32], const u32 (&a)[4], u64 b) {
    detail::Wg m{}; m.d = d, m.a = a, m.db = b, m.add = 1;
    detail::wg_issue<BF16, 64>(op_wgmma_rs, m, true);
}
}  // namespace p
