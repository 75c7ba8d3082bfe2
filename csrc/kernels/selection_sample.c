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

/* weight = exp((x - peak) / temperature) */
static void
weigh(float *weight, const elem *x, size_t V, float peak, float temperature)
{
    const v16 top = v16_splat(peak), by = v16_splat(temperature);
    size_t c = 0;
    for (; c + 16 <= V; c += 16)
        v16_store_f32(weight + c, v16_exp(v16_div(v16_sub(v16_load(x + c, 16), top), by)), 16);
    if (c < V)
        v16_store_f32(weight + c, v16_exp(v16_div(v16_sub(v16_load(x + c, V - c), top), by)), V - c);
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

/* Nothing for logits below the k-th. */
static void
keep_top_k(float *weight, const elem *x, size_t V, size_t k, uint64_t *rank)
{
    find_first(rank, k, ck_topk_room(k), x, V);
    uint64_t least = rank[0];
    for (size_t i = 1; i < k; i++)
        least = rank[i] < least ? rank[i] : least;
    const v16 bar = v16_splat(value_of(least));
    for (size_t c = 0; c < V; c += 16) {
        const v16_mask below = v16_lt(v16_load(x + c, V - c), bar);
        v16_store_f32(weight + c, v16_select(below, v16_zero(), v16_load_f32(weight + c, V - c)), V - c);
    }
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
 * Nothing for what has top_p of the whole before it.  Weights so small that V of them do not make up the rest are not
 * ranked: all of them lie behind.
 */
static void
keep_top_p(float *weight, const elem *x, size_t V, double top_p, uint64_t *rank)
{
    const double sum = sum_of(weight, V);
    const float small = (float)(0.99 * (1 - top_p) * sum / (double)V);
    float group[GROUP];
    size_t n = 0;

    for (size_t c = 0; c < V; c += GROUP) {
        const size_t m = V - c < GROUP ? V - c : GROUP;
        v16 peak = v16_zero();
        for (size_t i = 0; i < m; i += 16)
            peak = v16_max(peak, v16_load_f32(weight + c + i, m - i));
        if (!(v16_peak(peak) > small))
            continue;
        load_group(group, x + c, m);
        for (size_t i = 0; i < m; i++) {
            rank[n] = rank_of(group[i], c + i);
            n += weight[c + i] > small;
        }
    }
    const size_t kept = first_ranks(rank, n, weight, top_p * sum);
    keep_above(weight, V, small, false);
    for (size_t i = kept; i < n; i++)
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
    uint64_t *rank = task.scratch;
    float *weight = (float *)(rank + V + ck_topk_room(V));

    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->logits, r);
        weigh(weight, x, V, work->peak[r], (float)a->temperature);
        if ((uint64_t)a->top_k < V)
            keep_top_k(weight, x, V, (size_t)a->top_k, rank);
        if (a->top_p < 1)
            keep_top_p(weight, x, V, a->top_p, rank);
        if (a->min_p > 0)
            keep_above(weight, V, (float)a->min_p, true);
        const uint64_t seed = (uint64_t)(a->seeds.data != NULL ? ck_id(&a->seeds, r) : a->seed);
        *(int64_t *)ck_row(&a->y, r) = (int64_t)draw(weight, V, uniform(seed, a->seeds.data != NULL ? 0 : r));
    }
}
