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

/* Puts x where heap[i] was, in a heap whose smallest is heap[0]. */
static inline void
sift(uint64_t *heap, size_t k, size_t i, uint64_t x)
{
    for (size_t child; (child = 2 * i + 1) < k; i = child) {
        child += child + 1 < k && heap[child + 1] < heap[child];
        if (heap[child] > x)
            break;
        heap[i] = heap[child];
    }
    heap[i] = x;
}

static inline void
make_heap(uint64_t *heap, size_t k)
{
    for (size_t i = k / 2; i-- > 0;)
        sift(heap, k, i, heap[i]);
}

/*
 * The k first in order of C >= k elements into `heap`, the last of them heap[0].  Elements that are not above it are
 * passed over, GROUP at a time: of a row in random order, all but k log(C / k).
 */
static inline void
find_first(uint64_t *heap, size_t k, const elem *x, size_t C)
{
    float group[GROUP], bar = -INFINITY; /* the value of heap[0] */
    size_t found = 0;

    for (size_t c = 0; c < C && bar == bar; c += GROUP) { /* nothing later comes before k NaN */
        const size_t n = C - c < GROUP ? C - c : GROUP;
        size_t i = 0;
        if (found == k && bar < INFINITY && group_peak(x + c, n) <= bar)
            continue;
        load_group(group, x + c, n);
        for (; i < n && found < k; i++) {
            heap[found++] = rank_of(group[i], c + i);
            if (found == k) {
                make_heap(heap, k);
                bar = value_of(heap[0]);
            }
        }
        for (; i < n; i++) {
            const uint64_t rank = group[i] <= bar ? 0 : rank_of(group[i], c + i);
            if (rank > heap[0]) {
                sift(heap, k, 0, rank);
                bar = value_of(heap[0]);
            }
        }
    }
}
#endif
