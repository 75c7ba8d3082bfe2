#include "kernels/kernel.h"
#include "kernels/selection_order.h"
#include "ops/selection.h"
#include "simd/math.h"
#include "simd/words.h"

CK_KERNEL(sample_peaks)
{
    const struct ck_sample_fwd *of = a->of;
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&of->logits, r);
        v16 peak = v16_splat(-INFINITY), nans = v16_zero();
        for (size_t c = 0; c < of->V; c += 16) {
            const v16 y = v16_load_or(x + c, of->V - c, -INFINITY);
            nans = v16_select(v16_is_nan(y), y, nans);
            peak = v16_max(peak, y);
        }
        a->peak[r] = v16_sum(nans) == 0 ? v16_peak(peak) : NAN; /* without NaN it is a sum of zeros */
    }
}

/* Philox 4x32-10: multipliers and key steps of the paper's table 2 and its text. */
static double
uniform(uint64_t seed, uint64_t row)
{
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t x[4] = {(uint32_t)row, (uint32_t)(row >> 32), 0, 0};
    for (int round = 0; round < 10; round++) {
        const uint64_t p = (uint64_t)0xD2511F53u * x[0], q = (uint64_t)0xCD9E8D57u * x[2];
        const uint32_t y[4] = {(uint32_t)(q >> 32) ^ x[1] ^ key[0], (uint32_t)q,
                               (uint32_t)(p >> 32) ^ x[3] ^ key[1], (uint32_t)p};
        memcpy(x, y, sizeof x);
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return (double)(((uint64_t)x[0] << 32 | x[1]) >> 11) * 0x1p-53;
}

/* z = the row as floats */
static void
widen(float *z, const elem *x, size_t V)
{
    size_t c = 0;
    for (; c + 16 <= V; c += 16)
        v16_store_f32(z + c, v16_load(x + c, 16), 16);
    if (c < V)
        v16_store_f32(z + c, v16_load(x + c, V - c), V - c);
}

/* The logits of at least `bar` and where they were; how many. */
static size_t
keep_top_k(float *z, uint32_t *index, const elem *x, size_t V, float bar)
{
    float group[GROUP];
    size_t n = 0;
    for (size_t c = 0; c < V; c += GROUP) {
        const size_t m = V - c < GROUP ? V - c : GROUP;
        if (group_peak(x + c, m) < bar)
            continue;
        load_group(group, x + c, m);
        for (size_t i = 0; i < m; i++) {
            z[n] = group[i];
            index[n] = (uint32_t)(c + i);
            n += group[i] >= bar;
        }
    }
    return n;
}

/* weight = exp((z - peak) / temperature); of halves where the difference of large logits may be divided back into range. */
static void
weigh(float *weight, const float *z, size_t n, float peak, float temperature)
{
    const float part = temperature >= 1 ? 0.5f : 1.0f;
    const v16 scale = v16_splat(part), top = v16_splat(-part * peak), by = v16_splat(part * temperature);
    size_t c = 0;
    for (; c + 16 <= n; c += 16)
        v16_store_f32(weight + c, v16_exp(v16_div(v16_fma(v16_load_f32(z + c, 16), scale, top), by)), 16);
    if (c < n)
        v16_store_f32(weight + c, v16_exp(v16_div(v16_fma(v16_load_f32(z + c, n - c), scale, top), by)), n - c);
}

/* Sixteen sums, in order, then one after the other. */
static double
sum_of_block(const float *weight, size_t n)
{
    double sums[16] = {0}, sum = 0;
    size_t c = 0;
    for (; c + 16 <= n; c += 16)
        for (size_t i = 0; i < 16; i++)
            sums[i] += weight[c + i];
    for (size_t i = 0; c + i < n; i++)
        sums[i] += weight[c + i];
    for (size_t i = 0; i < 16; i++)
        sum += sums[i];
    return sum;
}

static inline size_t block_at(size_t begin, size_t V) { return V - begin < CK_SAMPLE_BLOCK ? V - begin : CK_SAMPLE_BLOCK; }

static double
sum_of(const float *weight, size_t V)
{
    double sum = 0;
    for (size_t b = 0; b < V; b += CK_SAMPLE_BLOCK)
        sum += sum_of_block(weight + b, block_at(b, V));
    return sum;
}

/* Nothing for weights of at most `bar` (or below it). */
static void
keep_above(float *weight, size_t V, float bar, bool equal)
{
    const v16 limit = v16_splat(bar);
    for (size_t c = 0; c < V; c += 16) {
        const v16 w = v16_load_f32(weight + c, V - c);
        v16_store_f32(weight + c, v16_select(equal ? v16_lt(w, limit) : v16_le(w, limit), v16_zero(), w), V - c);
    }
}

/*
 * Reorders n ranks, all different, so that those come first whose predecessors weigh less than `budget` together; how
 * many these are.  One bit at a time, from the highest in which they differ: at most 64 rounds, each over the half in
 * which the last one lies.  Without a branch that depends on the rank, which nobody could predict.
 */
static size_t
first_ranks(uint64_t *rank, uint64_t *other, size_t n, const float *weight, double budget)
{
    size_t low = 0, high = n;
    double before = 0;

    while (high - low > 1) {
        uint64_t any = 0, all = UINT64_MAX;
        for (size_t i = low; i < high; i++)
            any |= rank[i], all &= rank[i];
        const int bit = 63 - __builtin_clzll(any ^ all);
        size_t end = low, last = high;
        double sum = 0;
        for (size_t i = low; i < high; i++) {
            const uint64_t x = rank[i], upper = x >> bit & 1;
            other[end] = other[last - 1] = x; /* one of them stays */
            end += upper;
            last -= 1 - upper;
            sum += (double)upper * weight[index_of(x)];
        }
        memcpy(rank + low, other + low, (high - low) * sizeof *rank);
        if (before + sum >= budget)
            high = end;
        else {
            before += sum;
            low = end;
        }
    }
    return high;
}

/*
 * Nothing for what has top_p of the whole before it.  Weights so small that n of them do not make up the rest are not
 * ranked: all of them lie behind.
 */
static void
keep_top_p(float *weight, const float *z, size_t n, double top_p, uint64_t *rank, uint64_t *other)
{
    const double sum = sum_of(weight, n);
    const float small = (float)(0.99 * (1 - top_p) * sum / (double)n);
    size_t found = 0;

    for (size_t c = 0; c < n; c += GROUP) {
        const size_t m = n - c < GROUP ? n - c : GROUP;
        v16 peak = v16_zero();
        for (size_t i = 0; i < m; i += 16)
            peak = v16_max(peak, v16_load_f32(weight + c + i, m - i));
        if (!(v16_peak(peak) > small))
            continue;
        for (size_t i = c; i < c + m; i++) {
            rank[found] = rank_of(z[i], i);
            found += weight[i] > small;
        }
    }
    const size_t kept = first_ranks(rank, other, found, weight, top_p * sum);
    keep_above(weight, n, small, false);
    for (size_t i = kept; i < found; i++)
        weight[index_of(rank[i])] = 0;
}

/* The first at which the sum exceeds u of the whole.  Where rounding leaves none, the last that weighs anything. */
static size_t
draw(const float *weight, size_t V, double u)
{
    const double target = u * sum_of(weight, V);
    double before = 0;
    size_t last = 0;

    for (size_t b = 0; b < V; b += CK_SAMPLE_BLOCK) {
        const size_t n = block_at(b, V);
        const double sum = sum_of_block(weight + b, n);
        if (before + sum > target || b + n == V) {
            for (size_t i = 0; i < n; i++)
                if (weight[b + i] > 0) {
                    last = b + i;
                    if ((before += weight[b + i]) > target)
                        return last;
                }
            if (last >= b && weight[last] > 0)
                return last;
        }
        else {
            for (size_t i = n; sum > 0 && i-- > 0;)
                if (weight[b + i] > 0) {
                    last = b + i;
                    break;
                }
            before += sum;
        }
    }
    return last;
}

CK_KERNEL(sample_fwd)
{
    const ck_sample_work *work = task.work;
    const size_t V = a->V;
    const bool one_seed = a->seeds.data == NULL, all = (uint64_t)a->top_k >= V;
    uint64_t *rank = task.scratch, *other = rank + V;
    float *z = (float *)(other + V), *weight = z + V;
    uint32_t *index = (uint32_t *)(weight + V);

    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->logits, r);
        size_t n = V;
        if (all)
            widen(z, x, V);
        else {
            find_first(rank, (size_t)a->top_k, x, V);
            n = keep_top_k(z, index, x, V, value_of(rank[0]));
        }
        weigh(weight, z, n, work->peak[r], (float)a->temperature);
        if (a->top_p < 1)
            keep_top_p(weight, z, n, a->top_p, rank, other);
        if (a->min_p > 0)
            keep_above(weight, n, (float)a->min_p, true);
        const double u = one_seed ? uniform((uint64_t)a->seed, r) : uniform((uint64_t)ck_id(&a->seeds, r), 0);
        const size_t drawn = draw(weight, n, u);
        *(int64_t *)ck_row(&a->y, r) = (int64_t)(all ? drawn : index[drawn]);
    }
}
