// What the drivers of the backward, the gene sums and the Performer share: ragged cells with random 16-bit values,
// the thread orders, bitwise fingerprints and the worst error.
#pragma once
#include <algorithm>
#include <chrono>
#include <string>
#include "prims_more.cuh"

#ifndef CFM_BF16
#define CFM_BF16 1
#endif

namespace checks {
constexpr bool BF16 = CFM_BF16;
constexpr u16 NAN16 = 0xffff;  // a NaN in bf16 and in fp16
constexpr u16 INF16 = BF16 ? 0x7f80 : 0x7c00;

inline double value(u16 h) { return emu::to_f<BF16>(h); }
inline u16 half(double x) { return emu::from_f<BF16>((float)x); }

struct Cells {
    std::vector<int> len, known;  // known empty: every key is known
    int sick = -1;                // this cell holds nothing but `poison`
    u16 poison = NAN16;
    std::vector<int> cu() const {
        std::vector<int> at(1, 0);
        for (int n : len) at.push_back(at.back() + n);
        return at;
    }
    int seen(int cell) const { return known.empty() ? len[cell] : known[cell]; }
};

struct Tiles {
    std::vector<int> cell, row;
    Tiles(const Cells& c, int step) {
        for (int i = 0; i < (int)c.len.size(); ++i)
            for (int r = 0; r < c.len[i]; r += step) cell.push_back(i), row.push_back(r);
    }
    int size() const { return (int)cell.size(); }
};

// [tokens, heads, 64] of normal numbers in 16 bits; `gap` unused elements (NaN) follow the heads of each token.
struct Packed {
    int heads;
    i64 row;
    std::vector<u16> x;
    Packed(i64 total, int heads, int gap = 0) : heads(heads), row((i64)heads * 64 + gap), x(total * row, NAN16) {}
    Packed& fill(std::mt19937& rng, float size = 1.f) {
        std::normal_distribution<float> normal;
        for (size_t i = 0; i < x.size(); ++i)
            if ((i64)(i % row) < heads * 64) x[i] = half(size * normal(rng));
        return *this;
    }
    void poison(i64 from, i64 to, u16 with) { std::fill(x.begin() + from * row, x.begin() + to * row, with); }
    double at(i64 token, int head, int d) const { return value(x[token * row + head * 64 + d]); }
    u16* data() { return x.data(); }
};

struct Worst {  // the largest error; a NaN sticks
    double e = 0;
    void see(double got, double want) {
        const double d = std::fabs(got - want);
        if (e == e && !(d <= e)) e = d;
    }
};

struct Print {  // FNV-1a over everything a kernel wrote
    u64 h = 14695981039346656037ull;
    template <class T> void see(const std::vector<T>& v) {
        const auto* b = reinterpret_cast<const unsigned char*>(v.data());
        for (size_t i = 0; i < v.size() * sizeof(T); ++i) h = (h ^ b[i]) * 1099511628211ull;
    }
};

constexpr emu::Order ORDERS[] = {emu::Order::fifo, emu::Order::lifo, emu::Order::random};
inline emu::Config config(emu::Order order, bool races) {
    emu::Config cfg;
    cfg.order = order;
    cfg.late_copies = order != emu::Order::fifo;
    cfg.check_races = races;
    return cfg;
}
inline bool asked(int argc, char** argv, const char* word) {
    for (int i = 1; i < argc; ++i)
        if (!std::strcmp(argv[i], word)) return true;
    return false;
}
// The body of main: what the emulation throws (a race, a deadlock, an access out of bounds) is said and fails.
inline int guarded(int (*all)(int, char**), int argc, char** argv) {
    try {
        return all(argc, argv);
    } catch (const std::exception& e) {
        std::printf("%s FAILED\n", e.what());
        return 1;
    }
}
inline double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace checks
