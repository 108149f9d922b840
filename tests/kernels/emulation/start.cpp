// Starts any kernel as the driver of a GPU does: by name, with the grid, the threads, the shared memory and the addresses
// of arguments that the launcher in Python passes. Built once for the forward kernel (-DCFM_TILE) and once for the others.
#include "driver.hpp"
#ifdef CFM_TILE
#include "varlen_fwd.cuh"
#define ENTRIES START(varlen_fwd)
#else
#include "gene_sums.cuh"
#include "performer.cuh"
#include "varlen_bwd.cuh"
#define ENTRIES                                                                                                          \
    START(gene_sums) START(performer_norms) START(performer_key_max) START(performer_keys) START(performer_summary)      \
    START(performer_queries) START(varlen_bwd_delta) START(varlen_bwd_dkdv) START(varlen_bwd_dq)
#endif

template <class... A, size_t... I> static void call(void (*kernel)(A...), void** given, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(given[I])...);
}
template <class... A>
static void start(void (*kernel)(A...), const emu::Config& cfg, int x, int y, int threads, int shared, void** given) {
    emu::launch(cfg, x, y, threads, shared, [&] { call(kernel, given, std::index_sequence_for<A...>()); });
}

extern "C" const char* emu_start(const char* name, const driver::Mode* mode, int x, int y, int threads, int shared,
                                 void** given) {
    return driver::guarded([&] {
#define START(kernel) \
    if (!std::strcmp(name, #kernel)) return start(kernel, mode->config(), x, y, threads, shared, given);
        ENTRIES
        emu::die("no such kernel");
    });
}
