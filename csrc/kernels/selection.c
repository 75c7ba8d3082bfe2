#include "kernels/kernel.h"
#include "kernels/selection_order.h"
#include "ops/selection.h"
#include "simd/words.h"

enum { BLOCK = 512 }; /* elements whose peak is looked at before going on */

/* The largest of n elements, at most BLOCK, all of whose NaN go to `nans`. */
static inline float
block_peak(const elem *x, size_t n, v16 *nans)
{
    v16 peak[4], nan = *nans;
    size_t c = 0;
    for (size_t i = 0; i < 4; i++)
        peak[i] = v16_splat(-INFINITY);
    for (; c + 64 <= n; c += 64)
        for (size_t i = 0; i < 4; i++) {
            const v16 y = v16_load(x + c + 16 * i, 16);
            nan = v16_select(v16_is_nan(y), y, nan);
            peak[i] = v16_max(peak[i], y);
        }
    for (; c < n; c += 16) {
        const v16 y = v16_load_or(x + c, n - c, -INFINITY);
        nan = v16_select(v16_is_nan(y), y, nan);
        peak[0] = v16_max(peak[0], y);
    }
    *nans = nan;
    return v16_peak(v16_max(v16_max(peak[0], peak[1]), v16_max(peak[2], peak[3])));
}

/* Where the first of n elements lies, at most BLOCK, that is `value`, or NaN; BLOCK: none is.  Lanes count as floats. */
static inline size_t
first_in_block(const elem *x, size_t n, float value, bool nan)
{
    static const float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const v16 none = v16_splat(BLOCK), wanted = v16_splat(value);
    v16 first = none, at = v16_load_f32(lanes, 16);
    for (size_t c = 0; c < n; c += 16) {
        const v16 y = v16_load_or(x + c, n - c, -INFINITY);
        first = v16_min(first, v16_select(nan ? v16_is_nan(y) : v16_eq(y, wanted), at, none));
        at = v16_add(at, v16_splat(16.0f));
    }
    return (size_t)-v16_peak(v16_neg(first));
}

static size_t
first_nan(const elem *x, size_t n)
{
    for (size_t b = 0; b < n; b += BLOCK) {
        const size_t at = first_in_block(x + b, n - b < BLOCK ? n - b : BLOCK, 0, true);
        if (at < BLOCK)
            return b + at;
    }
    return 0;
}

/* The first in order of n elements: the block first, then the element. */
static ck_argmax_part
first_of(const elem *x, size_t n)
{
    float best = -INFINITY;
    size_t block = 0;
    v16 nans = v16_zero();

    for (size_t b = 0; b < n; b += BLOCK) {
        const float peak = block_peak(x + b, n - b < BLOCK ? n - b : BLOCK, &nans);
        if (peak > best) {
            best = peak;
            block = b;
        }
    }
    const float sum = v16_sum(nans);
    if (sum != sum)
        return (ck_argmax_part){NAN, first_nan(x, n)};
    return (ck_argmax_part){best, block + first_in_block(x + block, n - block < BLOCK ? n - block : BLOCK, best, false)};
}

CK_KERNEL(argmax_fwd)
{
    const size_t blocks = ck_argmax_blocks(a->C);
    ck_argmax_part *part = task.work;

    for (size_t i = task.begin; i < task.end; i++) {
        const size_t at = i % blocks * CK_ARGMAX_BLOCK, left = a->C - at;
        ck_argmax_part first = first_of((const elem *)ck_row(&a->x, i / blocks) + at, left < CK_ARGMAX_BLOCK ? left : CK_ARGMAX_BLOCK);
        first.index += at;
        if (blocks == 1)
            *(int64_t *)ck_row(&a->y, i) = (int64_t)first.index;
        else
            part[i - task.begin] = first;
    }
}

/* Descending, in `rank` or in `other`: the one it returns.  Runs of sixteen by insertion, then merged. */
static uint64_t *
sort(uint64_t *rank, uint64_t *other, size_t n)
{
    size_t run = 16;
    for (size_t begin = 0; begin < n; begin += run)
        for (size_t i = begin + 1; i < n && i < begin + run; i++) {
            const uint64_t x = rank[i];
            size_t j = i;
            for (; j > begin && rank[j - 1] < x; j--)
                rank[j] = rank[j - 1];
            rank[j] = x;
        }
    for (; run < n; run *= 2) {
        for (size_t begin = 0; begin < n; begin += 2 * run) {
            const size_t half = n - begin < run ? n : begin + run, end = n - begin < 2 * run ? n : begin + 2 * run;
            size_t i = begin, j = half;
            for (size_t to = begin; to < end; to++) {
                const bool left = j >= end || (i < half && rank[i] > rank[j]);
                other[to] = left ? rank[i] : rank[j];
                i += left;
                j += !left;
            }
        }
        uint64_t *const sorted = other;
        other = rank;
        rank = sorted;
    }
    return rank;
}

CK_KERNEL(topk_fwd)
{
    const size_t k = (size_t)a->k;
    uint64_t *rank = task.scratch;

    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r);
        elem *values = ck_row(&a->values, r);
        int64_t *indices = ck_row(&a->indices, r);
        find_first(rank, k, x, a->C);
        const uint64_t *sorted = sort(rank, rank + k, k);
        for (size_t j = 0; j < k; j++) {
            indices[j] = (int64_t)index_of(sorted[j]);
            values[j] = x[index_of(sorted[j])];
        }
    }
}
