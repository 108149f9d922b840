// Performer kernels on the CPU against the unfused formula in float64, with the whole projection in fp32, all scopes of
// the key maximum, padded features, three thread orders, late copies and every buffer pre-filled with NaN. The error may
// be at most twice that of rounding the exact result to 16 bits. `races` adds the race clocks on fewer shapes.
#include "performer.cuh"
#include "checks.hpp"
using namespace checks;

enum Scope { HEAD, CELL, BATCH };  // over what the key maximum is taken: a cell and head, a cell, all there is

struct Case {
    Cells cells;
    int heads, features, split_rows;
    Scope scope;
    float size = 1.f, eps = 1e-4f;
};

struct Run {
    Worst out, rounding;  // ours and rounding alone
    double moved = 0;     // how far another scope of the maximum would have moved the exact result
    u64 print = 0;
    std::vector<u16> o;
};

static Run run(const Case& c, const emu::Config& cfg, bool reference = true) {
    using namespace performer;
    const float scale = 0.35355339059327373f;
    std::vector<int> cu = c.cells.cu();
    const i64 total = cu.back();
    const int cells = (int)c.cells.len.size(), heads = c.heads, m = c.features, padded = (m + FEATURES - 1) / FEATURES * FEATURES;
    std::mt19937 rng(7), wide(9);
    Packed q(total, heads, 64), k(total, heads), v(total, heads, 128), o(total, heads, 64);
    q.fill(rng, c.size), k.fill(rng, c.size), v.fill(rng);
    if (c.cells.sick >= 0)
        for (Packed* x : {&q, &k, &v}) x->poison(cu[c.cells.sick], cu[c.cells.sick + 1], c.cells.poison);
    std::vector<float> w(m * 64);
    std::normal_distribution<float> normal;
    for (auto& x : w) x = normal(wide);
    std::vector<u16> parts((size_t)TERMS * padded * 64, 0);
    for (int i = 0; i < m * 64; ++i) {
        float left = w[i];
        for (int t = 0; t < TERMS; ++t) {
            parts[(size_t)t * padded * 64 + i] = half(left);
            left -= (float)value(half(left));
        }
    }
    const Tiles t(c.cells, BM), splits(c.cells, c.split_rows);
    std::vector<int> cell_split(1, 0);
    for (int n : c.cells.len) cell_split.push_back(cell_split.back() + (n + c.split_rows - 1) / c.split_rows);
    const size_t groups = (size_t)cells * heads;
    std::vector<float> nq(total * heads, NAN), nk(nq), part_kv(splits.size() * (size_t)heads * padded * 64, NAN),
        part_sum(splits.size() * (size_t)heads * padded, NAN), ratio(groups * padded, NAN), rest(groups * 65, NAN);
    std::vector<u16> mean(2 * groups * padded * 64, NAN16);
    const int top_cell = c.scope == HEAD ? heads : c.scope == CELL, top_head = c.scope == HEAD;
    std::vector<u32> top(c.scope == HEAD ? groups : c.scope == CELL ? cells : 1, 0);
    if (total) {
        const int rows = (int)((total + 15) / 16);
        emu::launch(cfg, rows, heads, 128, 16, [&] { performer_norms(q.data(), nq.data(), total, q.row, 64, scale); });
        emu::launch(cfg, rows, heads, 128, 16, [&] { performer_norms(k.data(), nk.data(), total, k.row, 64, scale); });
        emu::launch(cfg, t.size(), heads, THREADS, MAX_SMEM, [&] {
            performer_key_max(k.data(), parts.data(), top.data(), cu.data(), t.cell.data(), t.row.data(), k.row, 64, m, padded,
                              top_cell, top_head);
        });
        emu::launch(cfg, splits.size(), heads * padded / FEATURES, KEY_THREADS, KEY_SMEM, [&] {
            performer_keys(k.data(), v.data(), parts.data(), nk.data(), top.data(), part_kv.data(), part_sum.data(), cu.data(),
                           splits.cell.data(), splits.row.data(), c.split_rows, total, k.row, 64, v.row, 64, heads, m,
                           padded, top_cell, top_head, scale, c.eps);
        });
        emu::launch(cfg, cells, heads, SUM_THREADS, (size_t)4 * (padded + SUM_THREADS), [&] {
            performer_summary(part_kv.data(), part_sum.data(), mean.data(), ratio.data(), rest.data(), cell_split.data(), cells,
                              heads, padded);
        });
        emu::launch(cfg, t.size(), heads, THREADS, QUERY_SMEM, [&] {
            performer_queries(q.data(), o.data(), parts.data(), nq.data(), mean.data(), ratio.data(), rest.data(), cu.data(),
                              t.cell.data(), t.row.data(), total, q.row, 64, o.row, 64, cells, heads, m, padded, scale, c.eps);
        });
    }
    Run r;
    Print f;
    f.see(o.x), f.see(top), f.see(part_kv), f.see(part_sum), f.see(mean), f.see(ratio), f.see(rest);
    r.print = f.h, r.o = o.x;
    for (i64 i = 0; i < total; ++i)
        for (i64 d = heads * 64; d < o.row; ++d)
            if (o.x[i * o.row + d] != NAN16) emu::die("a store beyond the heads of a token");
    if (!reference) return r;

    // The unfused formula. dash: w.cx for all tokens of one cell and head.
    auto dash = [&](const Packed& x, int cell, int h, std::vector<double>& norm) {
        std::vector<double> y((size_t)c.cells.len[cell] * m);
        norm.assign(c.cells.len[cell], 0);
        for (int i = 0; i < c.cells.len[cell]; ++i) {
            double row[64];
            for (int d = 0; d < 64; ++d) row[d] = x.at(cu[cell] + i, h, d) * (double)scale, norm[i] += row[d] * row[d] / 2;
            for (int f = 0; f < m; ++f) {
                double s = 0;
                for (int d = 0; d < 64; ++d) s += row[d] * (double)w[f * 64 + d];
                y[(size_t)i * m + f] = s;
            }
        }
        return y;
    };
    double whole = -INFINITY;
    std::vector<double> of_head(groups, -INFINITY), of_cell(cells, -INFINITY);
    std::vector<std::vector<double>> kd(groups), kn(groups);
    for (int cell = 0; cell < cells; ++cell)
        for (int h = 0; h < heads && cell != c.cells.sick; ++h) {
            kd[cell * heads + h] = dash(k, cell, h, kn[cell * heads + h]);
            for (double x : kd[cell * heads + h]) of_head[cell * heads + h] = std::max(of_head[cell * heads + h], x);
            of_cell[cell] = std::max(of_cell[cell], of_head[cell * heads + h]), whole = std::max(whole, of_cell[cell]);
        }
    auto largest = [&](int scope, int cell, int h) {
        return scope == HEAD ? of_head[cell * heads + h] : scope == CELL ? of_cell[cell] : whole;
    };
    for (int cell = 0; cell < cells; ++cell)
        for (int h = 0; h < heads && cell != c.cells.sick; ++h) {
            const int n = c.cells.len[cell];
            const auto &kx = kd[cell * heads + h], &kh = kn[cell * heads + h];
            std::vector<double> qh, qx = dash(q, cell, h, qh);
            std::vector<double> out[2];  // with the scope asked for, and with the next
            for (int scope = 0; scope < 2; ++scope) {
                const double most = largest((c.scope + scope) % 3, cell, h);
                std::vector<double> kv((size_t)m * 64), ks(m);
                for (int j = 0; j < n; ++j)
                    for (int f = 0; f < m; ++f) {
                        const double phi = std::exp(kx[(size_t)j * m + f] - kh[j] - most) + (double)c.eps;
                        ks[f] += phi;
                        for (int d = 0; d < 64; ++d) kv[f * 64 + d] += phi * v.at(cu[cell] + j, h, d);
                    }
                out[scope].assign((size_t)n * 64, 0);
                for (int i = 0; i < n; ++i) {
                    double high = -INFINITY, den = 0;
                    for (int f = 0; f < m; ++f) high = std::max(high, qx[(size_t)i * m + f]);
                    for (int f = 0; f < m; ++f) {
                        const double phi = std::exp(qx[(size_t)i * m + f] - qh[i] - high) + (double)c.eps;
                        den += phi * ks[f];
                        for (int d = 0; d < 64; ++d) out[scope][i * 64 + d] += phi * kv[f * 64 + d];
                    }
                    for (int d = 0; d < 64; ++d) out[scope][i * 64 + d] /= den;
                }
            }
            for (int i = 0; i < n; ++i)
                for (int d = 0; d < 64; ++d) {
                    const double want = out[0][i * 64 + d];
                    r.out.see(o.at(cu[cell] + i, h, d), want), r.rounding.see(value(half(want)), want);
                    r.moved = std::max(r.moved, std::fabs(out[1][i * 64 + d] - want));
                }
            const double got = performer::unordered(top[cell * top_cell + h * top_head]) * (double)scale;
            if (n && !(std::fabs(got - largest(c.scope, cell, h)) < 1e-5)) r.out.see(NAN, 0);
        }
    return r;
}

static int all(int argc, char** argv) {
    const bool races = asked(argc, argv, "races");
    std::vector<Case> cases = {{{{70, 1, 17}, {}}, 1, 40, 64, HEAD}, {{{0, 5, 0, 66, 0}, {}}, 2, 97, 64, BATCH},
                               {{{5, 0, 70}, {}}, 2, 40, 64, CELL}, {{{200}, {}}, 1, 40, 256, HEAD}};  // the last: four tiles a split, so the ring is used again
    if (!races)
        for (Case c : std::vector<Case>{
                 {{{130, 64}, {}}, 2, 266, 64, HEAD},
                 {{{130, 64}, {}}, 2, 266, 128, BATCH},
                 {{{130, 64}, {}}, 3, 266, 128, CELL},
                 {{{330}, {}}, 1, 96, 320, HEAD},
                 {{{63, 65}, {}}, 1, 266, 64, BATCH, 2.f},
                 {{{100, 30}, {}}, 1, 128, 64, HEAD, 3.f},
                 {{{128, 20}, {}}, 1, 1, 64, HEAD},
                 {{{40, 60}, {}}, 1, 64, 64, HEAD, 1.f, 0.f},
                 {{{70, 60, 65}, {}, 1}, 1, 40, 64, BATCH},
                 {{{70, 60, 65}, {}, 1}, 2, 266, 64, CELL},
                 {{{70, 60, 65}, {}, 1, INF16}, 1, 40, 64, HEAD},
                 {{{0, 0}, {}}, 1, 40, 64, HEAD},
                 {{{}, {}}, 1, 40, 64, BATCH}}) cases.push_back(c);
    int failed = 0;
    Print first;
    for (auto order : ORDERS) {
        const emu::Config cfg = config(order, races);
        const double t0 = now();
        Print print;
        double worst = 0, rounding = 0, moved = 0;
        bool ok = true;
        for (int n = 0; n < (int)cases.size(); ++n) {
            const Run r = run(cases[n], cfg, order == emu::Order::fifo);
            print.see(std::vector<u64>{r.print});
            if (!(r.out.e <= 2 * r.rounding.e + 1e-6)) ok = false, std::printf("case %d: error %.2e, rounding alone %.2e\n", n, r.out.e, r.rounding.e);
            worst = std::max(worst, r.out.e), rounding = std::max(rounding, r.rounding.e), moved = std::max(moved, r.moved);
        }
        if (order == emu::Order::fifo) first = print;
        ok &= print.h == first.h;
        failed += !ok;
        std::printf("performer %s order %d: max |o - ref| %.2e (rounding alone %.2e, another scope %.2e away), %.2f s %s\n",
                    BF16 ? "bf16" : "fp16", (int)order, worst, rounding, moved, now() - t0, ok ? "ok" : "FAILED");
    }
    return failed != 0;
}

int main(int argc, char** argv) { return guarded(all, argc, argv); }
