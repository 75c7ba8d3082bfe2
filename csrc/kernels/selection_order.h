#ifndef CK_SELECTION_ORDER_H
#define CK_SELECTION_ORDER_H
/*
 * An element's place in order as one number: larger comes first.  Upper half the value, lower half the complement of
 * the index.
 */
#include "ops/op.h"
#include "simd/words.h"

#include <string.h>

enum { GROUP = 64 }; /* elements looked at together */

static inline uint64_t
rank_of(float x, size_t index)
{
    const float number = x + 0.0f; /* -0 becomes +0 */
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    const uint32_t value = x != x ? UINT32_MAX : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)value << 32 | (uint32_t)~index;
}

static inline size_t index_of(uint64_t rank) { return (uint32_t)~rank; }

static inline float
value_of(uint64_t rank)
{
    const uint32_t value = (uint32_t)(rank >> 32), bits = value & 0x80000000u ? value ^ 0x80000000u : ~value;
    float x;
    memcpy(&x, &bits, sizeof x);
    return value == UINT32_MAX ? NAN : x;
}

/* n elements, at most GROUP, as floats. */
static inline void
load_group(float *to, const elem *x, size_t n)
{
    for (size_t i = 0; i < n; i += 16)
        v16_store_f32(to + i, v16_load(x + i, n - i), 16);
}

/* The largest of such a group; inf where there is a NaN. */
static inline float
group_peak(const elem *x, size_t n)
{
    const v16 inf = v16_splat(INFINITY);
    v16 peak = v16_splat(-INFINITY);
    for (size_t i = 0; i < n; i += 16) {
        const v16 y = v16_load_or(x + i, n - i, -INFINITY);
        peak = v16_max(peak, v16_select(v16_is_nan(y), inf, y));
    }
    return v16_peak(peak);
}

/*
 * Reorders n ranks, all different, so that those come first whose predecessors weigh less than `budget` together; how
 * many these are.  A rank weighs weight[index], or 1.  One bit at a time, from the highest in which they differ: at
 * most 64 rounds, each over the half in which the last one lies.
 */
static inline size_t
first_ranks(uint64_t *rank, size_t n, const float *weight, double budget)
{
    size_t low = 0, high = n;
    double before = 0;

    while (high - low > 1) {
        uint64_t any = 0, all = UINT64_MAX;
        for (size_t i = low; i < high; i++)
            any |= rank[i], all &= rank[i];
        const uint64_t bit = (uint64_t)1 << (63 - __builtin_clzll(any ^ all));
        size_t end = low, last = high;
        double sum = 0;
        while (end < last) {
            const uint64_t x = rank[end];
            if (x & bit) {
                sum += weight == NULL ? 1 : weight[index_of(x)];
                end++;
            }
            else {
                rank[end] = rank[--last];
                rank[last] = x;
            }
        }
        if (before + sum >= budget)
            high = end;
        else {
            before += sum;
            low = end;
        }
    }
    return high;
}

/* The k first in order of C elements to the front of `rank`, which has ck_topk_room(k) places; in no order. */
static inline void
find_first(uint64_t *rank, size_t k, size_t room, const elem *x, size_t C)
{
    float group[GROUP], bar = -INFINITY; /* at least the value of the last of k found */
    uint64_t least = 0;
    size_t found = 0;

    for (size_t c = 0; c < C && bar == bar; c += GROUP) { /* nothing later comes before k NaN */
        const size_t n = C - c < GROUP ? C - c : GROUP;
        if (least != 0 && bar < INFINITY && group_peak(x + c, n) <= bar)
            continue;
        load_group(group, x + c, n);
        for (size_t i = 0; i < n; i++) {
            rank[found] = rank_of(group[i], c + i);
            found += rank[found] > least;
        }
        if (found + GROUP > room) {
            found = first_ranks(rank, found, NULL, (double)k);
            least = rank[0];
            for (size_t i = 1; i < found; i++)
                least = rank[i] < least ? rank[i] : least;
            bar = value_of(least);
        }
    }
    first_ranks(rank, found, NULL, (double)k);
}
#endif
