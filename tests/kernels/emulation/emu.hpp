// Host emulation of the primitive layer: one fiber per CUDA thread, all fibers of a block on one OS thread.
// What it checks beyond the numbers: warp collectives reached by all 32 lanes with the same operation,
// barriers reached by all threads, shared-memory bounds, asynchronous copies that are used before their
// wait (Config::late_copies), and unordered conflicting shared-memory accesses (Config::check_races).
// A violation ends the launch with a std::runtime_error, so a caller may go on; on a fiber it cannot be thrown,
// so the fiber leaves for the caller's stack first.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if !defined(__x86_64__) || defined(EMU_UCONTEXT)
#include <ucontext.h>
#define EMU_USE_UCONTEXT 1
#endif
#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#define DEV inline
#define KERNEL(threads, blocks) inline void
#define GRID_CONST
#define UNROLL
#define NEG_INF (-INFINITY)
#define POS_INF (INFINITY)

struct alignas(16) uint4 { u32 x, y, z, w; };

namespace emu {

enum class Order { fifo, lifo, random };
struct Config {
    Order order = Order::fifo;
    bool late_copies = false;  // asynchronous copies land only at the wait; until then the target is poison
    bool check_races = false;
    unsigned seed = 1;
    size_t stack = 256 * 1024;
};

[[noreturn]] void die(const char* what, int tid = -1);

#ifdef EMU_USE_UCONTEXT
struct Context { ucontext_t u; };
#else
struct Context { void* sp = nullptr; };
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.weak emu_switch
.type emu_switch,@function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch,.-emu_switch
)");
#endif

struct PendingCopy { unsigned char* dst; const void* src; bool ok; };

// Vector clocks. Beside the threads of the block there are agents that touch shared memory on their own: one per
// mbarrier (the tensor copies that report to it) and one per warp (its part of a wgmma, which reads all operands).
typedef std::vector<u32> Clock;
enum { agents = 64, mbar_agents = 48 };  // the rest: up to 16 warps

inline void join(Clock& a, const Clock& b) {
    for (size_t i = 0; i < b.size(); ++i) if (b[i] > a[i]) a[i] = b[i];
}
// What a thread knows to have happened: `seen`, and the part of it that a fence has made visible to the
// asynchronous proxy (wgmma, TMA), `fenced`. Both travel with every synchronisation.
struct Knowledge {
    Clock seen, fenced;
    void reset(size_t n) { seen.assign(n, 0), fenced.assign(n, 0); }
    void join(const Knowledge& o) { emu::join(seen, o.seen), emu::join(fenced, o.fenced); }
};

struct Fiber {
    Context ctx;
    char* stack = nullptr;
    bool done = false;
    std::vector<std::vector<PendingCopy>> groups{1};  // groups.back() is still open
    Knowledge knows;
    void* fake_stack = nullptr;
};

struct Group { int count = 0, op = 0; void* slot[128]; };  // a warp or a warpgroup meeting at a collective
struct Word { int writer = -1; u32 wclock = 0; std::vector<std::pair<int, u32>> reads; };

struct MBar {
    int count = 0, arrived = 0, phase = 0, agent = 0, maker = -1;
    u32 made = 0, copies = 0;  // clock of the maker at the init; copies issued so far
    bool fenced = false;       // the init is visible to the asynchronous proxy
    i64 tx = 0;
    std::vector<int> waiters;
    Knowledge coming, done;  // of the phase that fills up, and of the last that completed
};

// bar.sync and bar.arrive on one of the 16 numbered barriers.
struct NamedBarrier { int count = 0, arrived = 0; std::vector<int> waiters; Knowledge coming; };

struct Wgmma {
    std::vector<std::vector<std::function<void()>>> groups;  // not yet waited for; the last is still open
    u32 committed = 0, retired = 0;                          // groups so far: the clock of its warps' agents
    bool fenced = false;                                     // wgmma.fence since the last wait, after which registers may have been touched
};

struct Block {
    Config cfg;
    int threads = 0, live = 0, current = -1;
    int bx = 0, by = 0;
    std::vector<Fiber> fiber;
    std::vector<Group> warp, wgroup;
    std::vector<std::function<void()>> async_events;  // copies in flight, run when no thread can go on
    std::map<u32, MBar> mbar;
    std::map<int, Wgmma> wgmma;  // per warpgroup
    NamedBarrier named[16];
    std::string error;
    bool landing = false;  // a tensor copy is being completed
    std::vector<int> ready;
    size_t head = 0;
    int at_barrier = 0;
    unsigned char* smem = nullptr;
    size_t smem_bytes = 0;
    std::vector<Word> shadow;
    std::function<void()> body;
    Context main;
    void* main_fake = nullptr;
    const void* main_bottom = nullptr;
    size_t main_size = 0;
    std::mt19937 rng;
    u64 switches = 0, collectives = 0;
};

inline thread_local Block* B = nullptr;

inline void raw_switch(Context& from, Context& to) {
#ifdef EMU_USE_UCONTEXT
    swapcontext(&from.u, &to.u);
#else
    emu_switch(&from.sp, to.sp);
#endif
}

inline void after_switch() {
#ifdef EMU_ASAN
    void* fake = B->current < 0 ? B->main_fake : B->fiber[B->current].fake_stack;
    const void* bottom; size_t size;
    __sanitizer_finish_switch_fiber(fake, &bottom, &size);
    if (!B->main_bottom) B->main_bottom = bottom, B->main_size = size;
#endif
}

// Leaves the running fiber (or the caller of run, -1) for `next` (or the caller, -1).
inline void go(int next, bool dying = false) {
    int self = B->current;
    ++B->switches;
    Context& from = self < 0 ? B->main : B->fiber[self].ctx;
    Context& to = next < 0 ? B->main : B->fiber[next].ctx;
#ifdef EMU_ASAN
    void** save = dying ? nullptr : self < 0 ? &B->main_fake : &B->fiber[self].fake_stack;
    if (next < 0) __sanitizer_start_switch_fiber(save, B->main_bottom, B->main_size);
    else __sanitizer_start_switch_fiber(save, B->fiber[next].stack, B->cfg.stack);
#else
    (void)dying;
#endif
    B->current = next;
    raw_switch(from, to);
    after_switch();
}

inline int pop_ready() {
    auto& r = B->ready;
    while (B->head >= r.size() && !B->async_events.empty()) {
        auto event = std::move(B->async_events.front());
        B->async_events.erase(B->async_events.begin());
        event();
    }
    if (B->head >= r.size()) return -2;
    int f;
    if (B->cfg.order == Order::fifo) {
        f = r[B->head++];
        if (B->head == r.size()) r.clear(), B->head = 0;
    } else {
        size_t i = B->cfg.order == Order::lifo ? r.size() - 1 : B->rng() % r.size();
        f = r[i];
        r[i] = r.back();
        r.pop_back();
    }
    return f;
}

// Parks the running fiber until somebody makes it ready again.
inline void park() {
    int next = pop_ready();
    if (next == -2) die("deadlock: every live thread waits", B->current);
    if (next != B->current) go(next);
}
inline void wake(int f) { B->ready.push_back(f); }

// Ends the launch: the message is thrown by launch(), on the caller's own stack.
[[noreturn]] inline void die(const char* what, int tid) {
    const std::string text = std::string(what) + (tid >= 0 ? " (thread " + std::to_string(tid) + ")" : "");
    if (!B || B->current < 0) throw std::runtime_error(text);
    B->error = text;
    go(-1);
    std::abort();
}

inline void fiber_main() {
    after_switch();
    B->body();
    B->fiber[B->current].done = true;
    --B->live;
    int next = pop_ready();
    if (next == -2) {
        if (B->live) die("deadlock: threads wait for one that has returned", B->current);
        next = -1;
    }
    go(next, true);
    die("a finished fiber was resumed");
}

// Who touches shared memory, and what it knows: a thread (generic proxy) or an agent of the asynchronous proxy.
struct Actor { int id; u32 now; const Clock* seen; const Clock* fenced; bool async; };

// One access to a 4-byte word against the last write and the reads since. An agent sees a plain store only
// behind a proxy fence; the order between plain loads and a later asynchronous write needs none.
inline void visit(Word& s, const Actor& a, bool write) {
    if (s.writer >= 0 && s.writer != (a.async ? -2 : a.id)) {
        const bool plain = s.writer < B->threads;
        const Clock& known = a.async && plain ? *a.fenced : *a.seen;
        if (known[s.writer] < s.wclock) {
            if (a.async && plain && (*a.seen)[s.writer] >= s.wclock) die("race: store not fenced for the asynchronous proxy", B->current);
            die(write ? "race: write after unordered write" : "race: read after unordered write", B->current);
        }
    }
    if (write) {
        for (auto& r : s.reads)
            if (r.first != a.id && (*a.seen)[r.first] < r.second) die("race: write after unordered read", B->current);
        s.reads.clear();
        s.writer = a.id, s.wclock = a.now;
        return;
    }
    for (auto& r : s.reads)
        if (r.first == a.id) { r.second = a.now; return; }
    s.reads.push_back({a.id, a.now});
}

inline void touch(u32 addr, int bytes, bool write) {
    if ((size_t)addr + bytes > B->smem_bytes) die("shared memory out of bounds", B->current);
    if (addr % (bytes < 16 ? bytes : 16)) die("misaligned shared memory access", B->current);
    if (!B->cfg.check_races) return;
    const int me = B->current;
    const Knowledge& mine = B->fiber[me].knows;
    const Actor actor{me, mine.seen[me], &mine.seen, &mine.fenced, false};
    for (u32 w = addr / 4; w < (addr + bytes + 3) / 4; ++w) visit(B->shadow[w], actor, write);
}

// All that several threads know goes to each of them: what a barrier does.
inline void meet(const std::vector<int>& from, const std::vector<int>& to, Knowledge& all) {
    for (int f : from) {
        all.join(B->fiber[f].knows);
        ++B->fiber[f].knows.seen[f];
    }
    for (int f : to) B->fiber[f].knows.join(all);
}

// Runs f once, by the last of the N lanes of the group to arrive, over the arguments of all lanes.
template <int N, class A, class F> inline void collective(Group& w, int op, A& mine, F f) {
    const int me = B->current, first = me / N * N;
    if (w.count && w.op != op) die("lanes of one warp or warpgroup are in different collectives", me);
    w.op = op;
    w.slot[me - first] = &mine;
    if (++w.count == N) {
        ++B->collectives;
        f(reinterpret_cast<A**>(w.slot));
        w.count = 0;
        for (int l = 0; l < N; ++l) if (first + l != me) wake(first + l);
    } else park();
}
template <class A, class F> inline void warp_collective(int op, A& mine, F f) { collective<32>(B->warp[B->current >> 5], op, mine, f); }

// Work that a block began and nobody waited for; empty if none.
inline const char* left_over(const Block& b) {
    if (!b.async_events.empty()) return "block ended with copies in flight";
    for (auto& m : b.mbar) if (m.second.tx) return "block ended with bytes of an mbarrier outstanding";
    for (auto& w : b.wgmma)
        if (w.second.retired != w.second.committed || (!w.second.groups.empty() && !w.second.groups.back().empty()))
            return "block ended with wgmma not waited for";
    for (auto& n : b.named) if (n.arrived) return "block ended with a named barrier half full";
    for (auto& f : b.fiber)
        for (auto& g : f.groups) if (!g.empty()) return "block ended with cp.async not waited for";
    return "";
}

inline void launch(const Config& cfg, int grid_x, int grid_y, int threads, size_t smem_bytes, std::function<void()> body,
                   u64* switches = nullptr) {
    Block blk;
    B = &blk;
    blk.cfg = cfg;
    blk.threads = threads;
    blk.smem_bytes = smem_bytes;
    blk.rng.seed(cfg.seed);
    blk.body = std::move(body);
    blk.fiber.resize(threads);
    blk.warp.resize(threads / 32);
    blk.wgroup.resize((threads + 127) / 128);
    if (threads % 32) { B = nullptr; throw std::runtime_error("the block must be whole warps"); }
    for (auto& f : blk.fiber) f.stack = static_cast<char*>(std::malloc(cfg.stack));
    for (blk.by = 0; blk.by < grid_y; ++blk.by)
        for (blk.bx = 0; blk.bx < grid_x; ++blk.bx) {
            void* mem = nullptr;
            if (posix_memalign(&mem, 1024, smem_bytes)) throw std::bad_alloc();
            blk.smem = static_cast<unsigned char*>(mem);
            std::memset(mem, 0xff, smem_bytes);  // NaN in every float format used
            if (cfg.check_races) blk.shadow.assign((smem_bytes + 3) / 4, Word());
            blk.live = threads;
            blk.mbar.clear();
            blk.async_events.clear();
            blk.wgmma.clear();
            for (auto& b : blk.named) {
                b = NamedBarrier();
                if (cfg.check_races) b.coming.reset(threads + agents);
            }
            blk.at_barrier = 0;
            for (auto& g : blk.warp) g.count = 0;
            for (auto& g : blk.wgroup) g.count = 0;
            blk.ready.clear();
            blk.head = 0;
            for (int i = 0; i < threads; ++i) {
                Fiber& f = blk.fiber[i];
                f.done = false;
                f.groups.assign(1, {});
                f.fake_stack = nullptr;
                if (cfg.check_races) f.knows.reset(threads + agents), f.knows.seen[i] = 1;
#ifdef EMU_USE_UCONTEXT
                getcontext(&f.ctx.u);
                f.ctx.u.uc_stack.ss_sp = f.stack;
                f.ctx.u.uc_stack.ss_size = cfg.stack;
                f.ctx.u.uc_link = nullptr;
                makecontext(&f.ctx.u, reinterpret_cast<void (*)()>(fiber_main), 0);
#else
                auto top = (reinterpret_cast<std::uintptr_t>(f.stack) + cfg.stack) & ~std::uintptr_t(15);
                void** sp = reinterpret_cast<void**>(top);
                *--sp = nullptr;  // keeps the stack 8 mod 16 at entry, as a call would
                *--sp = reinterpret_cast<void*>(&fiber_main);
                for (int r = 0; r < 6; ++r) *--sp = nullptr;
                f.ctx.sp = sp;
#endif
                wake(i);
            }
            blk.current = -1;
            go(pop_ready());
            if (blk.error.empty()) blk.error = left_over(blk);
            std::free(mem);
            if (!blk.error.empty()) blk.bx = grid_x, blk.by = grid_y;
        }
    for (auto& f : blk.fiber) std::free(f.stack);
    if (switches) *switches = blk.switches;
    B = nullptr;
    if (!blk.error.empty()) throw std::runtime_error(blk.error);
}

inline float bf16_to_f(u16 h) { u32 u = (u32)h << 16; float f; std::memcpy(&f, &u, 4); return f; }
inline u16 f_to_bf16(float f) {
    u32 u; std::memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return (u16)((u >> 16) | 0x40);
    return (u16)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
struct HalfTable {
    std::vector<float> value;
    HalfTable() : value(65536) {
        for (int h = 0; h < 65536; ++h) {
            const int e = (h >> 10) & 31, m = h & 1023;
            const float v = e == 31 ? (m ? NAN : INFINITY) : e ? std::ldexp((float)(m + 1024), e - 25) : std::ldexp((float)m, -24);
            value[h] = h & 0x8000 ? -v : v;
        }
    }
};
inline float f16_to_f(u16 h) { static const HalfTable table; return table.value[h]; }
inline u16 f_to_f16(float f) {
    u32 u; std::memcpy(&u, &f, 4);
    u16 s = (u16)((u >> 16) & 0x8000);
    float a = std::fabs(f);
    if (a != a) return s | 0x7e00;
    if (a >= 65520.f) return s | 0x7c00;
    if (a < 6.103515625e-05f) return s | (u16)std::nearbyint(std::ldexp(a, 24));
    int e; float m = std::frexp(a, &e);
    u32 q = (u32)std::nearbyint(std::ldexp(m, 11));
    if (q == 2048) q = 1024, ++e;
    return s | (u16)(((e + 14) << 10) + (q - 1024));
}
template <bool BF16> inline float to_f(u16 h) { return BF16 ? bf16_to_f(h) : f16_to_f(h); }
template <bool BF16> inline u16 from_f(float f) { return BF16 ? f_to_bf16(f) : f_to_f16(f); }

}  // namespace emu

namespace p {
using emu::B;
enum Op { op_shfl = 1, op_ldsm, op_ldsm_t, op_mma, op_warp_barrier };

inline int tid() { return B->current; }
inline int bid_x() { return B->bx; }
inline int bid_y() { return B->by; }
inline u32 smem_base() { return 0; }
inline float exp2(float x) { return std::exp2(x); }
inline float log2(float x) { return std::log2(x); }
inline float max2(float a, float b) { return std::fmax(a, b); }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
template <bool BF16> inline u32 pack2(float lo, float hi) { return emu::from_f<BF16>(lo) | ((u32)emu::from_f<BF16>(hi) << 16); }

inline void sync_block() {
    const int me = B->current;
    if (++B->at_barrier == B->threads) {
        B->at_barrier = 0;
        if (B->cfg.check_races) {
            std::vector<int> all(B->threads);
            for (int i = 0; i < B->threads; ++i) all[i] = i;
            emu::Knowledge k;
            k.reset(B->threads + emu::agents);
            emu::meet(all, all, k);
        }
        for (int i = 0; i < B->threads; ++i) if (i != me) emu::wake(i);
    } else emu::park();
}
inline void sync_warp() {
    int x = 0;
    emu::warp_collective(op_warp_barrier, x, [](int**) {
        if (!B->cfg.check_races) return;
        std::vector<int> lanes(32);
        for (int l = 0; l < 32; ++l) lanes[l] = (B->current & ~31) + l;
        emu::Knowledge k;
        k.reset(B->threads + emu::agents);
        emu::meet(lanes, lanes, k);
    });
}
namespace detail {
// Barrier `id` completes when `count` threads have come; those that only arrive do not wait.
inline void named(int id, int count, bool wait) {
    auto& b = B->named[id];
    const int me = B->current;
    if (b.arrived && b.count != count) emu::die("named barrier used with two counts", me);
    b.count = count;
    if (B->cfg.check_races) {
        emu::Knowledge& mine = B->fiber[me].knows;
        b.coming.join(mine);
        ++mine.seen[me];
    }
    if (wait) b.waiters.push_back(me);
    if (++b.arrived > count) emu::die("more threads than the named barrier expects", me);
    if (b.arrived < count) {
        if (wait) emu::park();
        return;
    }
    if (b.waiters.empty()) emu::die("a named barrier completed with nobody waiting", me);
    b.arrived = 0;
    for (int f : b.waiters) {
        if (B->cfg.check_races) B->fiber[f].knows.join(b.coming);
        if (f != me) emu::wake(f);
    }
    b.waiters.clear();
    if (B->cfg.check_races) b.coming.reset(B->threads + emu::agents);
}
}  // namespace detail
inline float shfl_xor(float v, int m) {
    struct A { float in, out; int m; } a{v, 0, m};
    emu::warp_collective(op_shfl, a, [](A** l) { for (int i = 0; i < 32; ++i) l[i]->out = l[i ^ l[i]->m]->in; });
    return a.out;
}
inline void st_shared_u32(u32 a, u32 v) { emu::touch(a, 4, true); std::memcpy(B->smem + a, &v, 4); }
inline uint4 ld_shared_v4(u32 a) { uint4 v; emu::touch(a, 16, false); std::memcpy(&v, B->smem + a, 16); return v; }

inline void land(const emu::PendingCopy& c) {
    if (c.ok) std::memcpy(c.dst, c.src, 16);
    else std::memset(c.dst, 0, 16);
}
inline void cp_async16(u32 dst, const void* src, bool ok) {
    emu::touch(dst, 16, true);
    emu::PendingCopy c{B->smem + dst, src, ok};
    if (!B->cfg.late_copies) return land(c);
    std::memset(c.dst, 0xff, 16);
    B->fiber[B->current].groups.back().push_back(c);
}
inline void cp_commit() { B->fiber[B->current].groups.push_back({}); }
template <int N> inline void cp_wait() {
    auto& g = B->fiber[B->current].groups;
    while ((int)g.size() - 1 > N) {
        for (auto& c : g.front()) land(c);
        g.erase(g.begin());
    }
}

namespace detail {
struct Ldsm { u32 addr; u32* r; };
template <bool T> inline void ldsm(u32 (&r)[4], u32 addr) {
    emu::touch(addr, 16, false);
    Ldsm a{addr, r};
    emu::warp_collective(T ? op_ldsm_t : op_ldsm, a, [](Ldsm** l) {
        for (int i = 0; i < 4; ++i)
            for (int lane = 0; lane < 32; ++lane) {
                u16 v[2];
                for (int e = 0; e < 2; ++e) {
                    int row = T ? 2 * (lane & 3) + e : lane >> 2, col = T ? lane >> 2 : 2 * (lane & 3) + e;
                    std::memcpy(&v[e], B->smem + l[i * 8 + row]->addr + col * 2, 2);
                }
                l[lane]->r[i] = v[0] | ((u32)v[1] << 16);
            }
    });
}
}  // namespace detail
inline void ldsm4(u32 (&r)[4], u32 a) { detail::ldsm<false>(r, a); }
inline void ldsm4_t(u32 (&r)[4], u32 a) { detail::ldsm<true>(r, a); }

template <bool BF16> inline void mma16816(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct A { float* c; const u32* a; u32 b[2]; } m{c, a, {b0, b1}};
    emu::warp_collective(op_mma, m, [](A** l) {
        float a[16][16], b[8][16];
        for (int i = 0; i < 32; ++i) {
            const int g = i >> 2, t = i & 3;
            for (int r = 0; r < 4; ++r)
                for (int e = 0; e < 2; ++e)
                    a[g + (r & 1) * 8][t * 2 + (r >> 1) * 8 + e] = emu::to_f<BF16>((u16)(l[i]->a[r] >> (16 * e)));
            for (int r = 0; r < 2; ++r)
                for (int e = 0; e < 2; ++e) b[g][t * 2 + r * 8 + e] = emu::to_f<BF16>((u16)(l[i]->b[r] >> (16 * e)));
        }
        for (int i = 0; i < 32; ++i)
            for (int e = 0; e < 4; ++e) {
                const int row = (i >> 2) + (e >> 1) * 8, col = (i & 3) * 2 + (e & 1);
                float acc = 0;
                for (int kk = 0; kk < 16; ++kk) acc += a[row][kk] * b[col][kk];
                l[i]->c[e] += acc;
            }
    });
}
inline void red_add_u64(u64* dst, u64 v) { *dst += v; }
inline u64 to_fixed(float x, float scale) { return (u64)std::nearbyint((double)x * scale); }
}  // namespace p
