// What the drivers of all kernels share: how a launch is to be run, exact copies of the inputs, errors as text.
#pragma once
#include "prims.cuh"

namespace driver {
// Layout shared with harness.py.
struct Mode {
    int order;  // 0 first come first served, 1 last come, 2 random
    int late_copies, check_races;
    unsigned seed;
    int withheld;  // bytes of shared memory that the launch lacks
    emu::Config config() const {
        emu::Config c;
        c.order = static_cast<emu::Order>(order), c.late_copies = late_copies, c.check_races = check_races, c.seed = seed;
        return c;
    }
};

// Runs f; nullptr when all went well, else what a launch found, valid until the next call.
template <class F> inline const char* guarded(F f) {
    static std::string message;
    try {
        f();
    } catch (const std::exception& e) {
        message = e.what();
        return message.c_str();
    }
    return nullptr;
}

// A heap block of exactly n elements (none: nullptr), aligned as 16-byte copies need it. What is larger than any test
// would fill is a sparse buffer that tests long strides, and is used in place.
template <class T> class Exact {
    T* p = nullptr;
    i64 n;
    bool own;

  public:
    Exact(const T* from, i64 count) : n(count), own(count * (i64)sizeof(T) < (1 << 28)) {
        if (n == 0) return;
        p = own ? static_cast<T*>(std::malloc(n * sizeof(T))) : const_cast<T*>(from);
        if (own) std::memcpy(p, from, n * sizeof(T));
    }
    Exact(const Exact&) = delete;
    ~Exact() { if (own) std::free(p); }
    T* get() { return p; }
    void give_back(T* to) const { if (n && own) std::memcpy(to, p, n * sizeof(T)); }
};
}  // namespace driver
