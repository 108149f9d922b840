// Gene sums on the CPU. Two truths: the weights in float64, and the kernel's own fp32 weights repeated step by step
// here and added as integers, which the matrix must equal to the bit, in every thread order and split of the keys.
// `races` adds the race clocks on fewer shapes.
#include "gene_sums.cuh"
#include "checks.hpp"
using namespace checks;

struct Sums {
    std::vector<u64> sum, bad{0};
    std::vector<u32> count;
};

struct Input {
    const Cells& c;
    std::vector<int> cu;
    i64 total, genes;
    int heads;
    Packed q, k;
    std::vector<float> lse;
    std::vector<int> row_of;
    const int* known() const { return c.known.empty() ? nullptr : c.known.data(); }
    // Genes: a random choice without repeats in each cell, the last third of the rows never used, some tokens skipped.
    Input(const Cells& c, int heads, bool skip, float size = 1.f)
        : c(c), cu(c.cu()), total(cu.back()), genes(0), heads(heads), q(total, heads), k(total, heads, 64) {
        std::mt19937 rng(7);
        q.fill(rng, size), k.fill(rng);
        int most = 1;
        for (int n : c.len) most = std::max(most, n);
        genes = most + most / 2 + 3;
        for (int n : c.len) {
            std::vector<int> order(most + 1);
            for (int i = 0; i <= most; ++i) order[i] = i;
            std::shuffle(order.begin(), order.end(), rng);
            for (int i = 0; i < n; ++i) row_of.push_back(skip && rng() % 4 == 0 ? -1 : order[i]);
        }
        lse.assign(total * heads, 0);
        for (int cell = 0; cell < (int)c.len.size(); ++cell)
            for (int h = 0; h < heads; ++h)
                for (int i = 0; i < c.len[cell]; ++i) {
                    double top = -INFINITY, sum = 0;
                    for (int j = 0; j < c.len[cell]; ++j)
                        if (sees(cell, i, j)) top = std::max(top, score(cell, h, i, j));
                    for (int j = 0; j < c.len[cell]; ++j)
                        if (sees(cell, i, j)) sum += std::exp(score(cell, h, i, j) - top);
                    lse[h * total + cu[cell] + i] = (float)(top + std::log(sum));
                }
        if (c.sick >= 0) {
            q.poison(cu[c.sick], cu[c.sick + 1], c.poison), k.poison(cu[c.sick], cu[c.sick + 1], c.poison);
            for (int h = 0; h < heads; ++h)
                for (i64 i = cu[c.sick]; i < cu[c.sick + 1]; ++i) lse[h * total + i] = NAN;
        }
    }
    bool sees(int cell, int i, int j) const { return j < c.seen(cell) || j == i; }
    double score(int cell, int h, int i, int j) const {
        double s = 0;
        for (int d = 0; d < 64; ++d) s += q.at(cu[cell] + i, h, d) * k.at(cu[cell] + j, h, d);
        return s * .125;
    }
    // The kernel's weight: sixteen products at a time, one fma, one exp2, heads in order.
    float weight32(int cell, int i, int j) const {
        float acc = 0;
        for (int h = 0; h < heads; ++h) {
            float s = 0;
            for (int kk = 0; kk < 64; kk += 16) {
                float part = 0;
                for (int d = kk; d < kk + 16; ++d)
                    part += (float)q.at(cu[cell] + i, h, d) * (float)k.at(cu[cell] + j, h, d);
                s += part;
            }
            const float lse2 = lse[h * total + cu[cell] + i] * tile::LOG2E;
            acc += std::exp2(std::fma(s, .125f * tile::LOG2E, -lse2));
        }
        return acc * (1.f / (float)heads);
    }
    Sums run(const emu::Config& cfg, int splits) {
        Sums r;
        r.sum.assign(genes * genes, 0), r.count.assign(genes * genes, 0);
        const Tiles t(c, gene::BM);
        if (t.size())
            emu::launch(cfg, t.size(), splits, gene::THREADS, gene::SMEM, [&] {
                gene_sums(q.data(), k.data(), lse.data(), row_of.data(), r.sum.data(), r.count.data(), r.bad.data(), cu.data(),
                          known(), t.cell.data(), t.row.data(), total, q.row, 64, k.row, 64, heads, splits, genes, .125f);
            });
        return r;
    }
};

static bool fail(const char* what, int n) { return std::printf("case %d: %s\n", n, what), false; }

static int all(int argc, char** argv) {
    const bool races = asked(argc, argv, "races");
    std::vector<Cells> cases = {{{1}, {}}, {{70}, {}}, {{0, 5, 0, 66}, {}}, {{90, 1, 1}, {70, 0, 1}}, {{70, 60, 65}, {}, 1},
                                {{70, 66}, {65, 0}, 1, INF16}};
    if (!races)
        for (Cells c : std::vector<Cells>{{{}, {}}, {{0, 0}, {}}, {{2, 7, 63, 64, 65}, {}}, {{330}, {}}, {{200}, {130}},
                                          {{127, 128, 129}, {63, 64, 65}}, {{260}, {10}}, {{70, 60}, {1, 0}}, {{50, 50, 50, 50, 50, 50}, {}}})
            cases.push_back(c);
    int failed = 0;
    Print first;
    for (auto order : ORDERS) {
        const emu::Config cfg = config(order, races);
        const double t0 = now();
        Print print;
        double worst = 0, row_error = 0, fixed = 0;
        bool ok = true;
        for (int n = 0; n < (int)cases.size(); ++n) {
            const Cells& c = cases[n];
            Input in(c, n % 3 == 0 ? 3 : 1 + n % 2, n % 2 == 0, n % 2 ? 3.f : 1.f);
            const Sums r = in.run(cfg, 1 + n % 3);
            const Sums other = in.run(cfg, 4 - n % 3);
            if (r.sum != other.sum || r.count != other.count || r.bad != other.bad) ok = fail("depends on the split", n);
            print.see(r.sum), print.see(r.count), print.see(r.bad);

            std::vector<u64> exact(r.sum.size(), 0);
            std::vector<u32> count(r.sum.size(), 0);
            std::vector<double> want(r.sum.size(), 0);
            u64 sick = 0;
            for (int cell = 0; cell < (int)c.len.size(); ++cell)
                for (int i = 0; i < c.len[cell]; ++i)
                    for (int j = 0; j < c.len[cell]; ++j) {
                        const int a = in.row_of[in.cu[cell] + i], b = in.row_of[in.cu[cell] + j];
                        if (!in.sees(cell, i, j) || a < 0 || b < 0) continue;
                        ++count[a * in.genes + b];
                        if (cell == c.sick) {
                            ++sick;
                            continue;
                        }
                        exact[a * in.genes + b] += (u64)std::nearbyint((double)in.weight32(cell, i, j) * 1099511627776.);
                        double w = 0;
                        for (int h = 0; h < in.heads; ++h)
                            w += std::exp(in.score(cell, h, i, j) - in.lse[h * in.total + in.cu[cell] + i]) / in.heads;
                        want[a * in.genes + b] += w;
                    }
            if (r.sum != exact) ok = fail("not the integer sum of its own weights", n);
            if (r.count != count) ok = fail("wrong counts", n);
            if (r.bad[0] != sick) ok = fail("weights that are no numbers were not all counted", n);
            for (size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::fabs((double)r.sum[i] / gene::ONE - want[i]));

            // A single healthy cell with every token mapped: each row is the sum of its fp32 weights to within L 2^-41
            // (that is all the fixed point costs), which is 1 to within what fp32 weights and lse allow.
            if (c.len.size() == 1 && n % 2 == 1)
                for (int i = 0; i < c.len[0]; ++i) {
                    const int a = in.row_of[i];
                    double row = 0, ours = 0;
                    for (i64 b = 0; b < in.genes; ++b) row += (double)r.sum[a * in.genes + b] / gene::ONE;
                    for (int j = 0; j < c.len[0]; ++j) ours += in.sees(0, i, j) ? (double)in.weight32(0, i, j) : 0.;
                    const double off = std::fabs(row - ours) * 2199023255552. / c.len[0];
                    fixed = std::max(fixed, off), row_error = std::max(row_error, std::fabs(row - 1));
                    if (!(off <= 1)) ok = fail("a row is further than L 2^-41 from the sum of its weights", n);
                }
        }
        if (order == emu::Order::fifo) first = print;
        ok &= print.h == first.h && worst < 5e-6 && row_error < 5e-6;
        failed += !ok;
        std::printf("gene sums %s order %d: max |sum - ref| %.2e, |row - 1| %.2e, fixed point %.2f of L 2^-41, %.2f s %s\n",
                    BF16 ? "bf16" : "fp16", (int)order, worst, row_error, fixed, now() - t0, ok ? "ok" : "FAILED");
    }

    // Rows that are 1 exactly in fp32 (a token that sees itself alone, score 0) must come out as 2^40 exactly, and
    // equal scores of 64 keys (lse = ln 64 rounded) as 1 to a few units of fp32.
    Cells self{{100}, {0}}, even{{64}, {}};
    Input a(self, 2, false, 0.f), b(even, 2, false, 0.f);
    const Sums ra = a.run(config(ORDERS[0], races), 1), rb = b.run(config(ORDERS[0], races), 1);
    bool ok = true;
    for (int i = 0; i < 100; ++i) ok &= ra.sum[a.row_of[i] * a.genes + a.row_of[i]] == (u64)gene::ONE;
    for (int i = 0; i < 64; ++i) {
        double row = 0;
        for (i64 g = 0; g < b.genes; ++g) row += (double)rb.sum[b.row_of[i] * b.genes + g] / gene::ONE;
        ok &= std::fabs(row - 1) < 1e-6;
    }
    std::printf("gene sums %s exact rows %s\n", BF16 ? "bf16" : "fp16", ok ? "ok" : "FAILED");
    return failed + !ok != 0;
}

int main(int argc, char** argv) { return guarded(all, argc, argv); }
