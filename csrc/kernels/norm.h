#ifndef CK_NORM_H
#define CK_NORM_H
/*
 * What the norms share: sums along a row, all in one order, and the last pass, which writes.
 *
 * A row is summed by blocks of NORM_BLOCK elements, so that a long one is as exact as a short one.  In a block, element c
 * goes to lane c % 32, and the lanes are folded by halves (16, 8, 4, 2, 1 apart); the blocks' sums are added in double,
 * ascending.  So the order follows from the length alone, on every instruction set.
 */
#include "kernels/kernel.h"
#include "simd/words.h"

#include <math.h>

enum {
    NORM_BLOCK = 4096,
    NORM_AHEAD = 1 << 18, /* bytes of a row that is fetched while the one before it is written: both fit the cache */
};

/* Up to three sums that run beside one another. */
typedef struct { v16 a, b, c; } norm_lanes;
typedef struct { double a, b, c; } norm_sums;

/* Adds the elements c..c+min(n,16)-1 of what `of` points to; nothing for those behind n. */
typedef norm_lanes norm_term(const void *of, size_t c, size_t n, norm_lanes sum);

/* The sums over elements from..to-1: at most a block.  With `term` a constant, all of it is inlined. */
CK_TEMPLATE norm_sums
norm_sum_block(norm_term *term, const void *of, size_t from, size_t to)
{
    norm_lanes lo = {v16_zero(), v16_zero(), v16_zero()}, hi = lo;
    size_t c = from;
    for (; c + 32 <= to; c += 32) {
        lo = term(of, c, 16, lo);
        hi = term(of, c + 16, 16, hi);
    }
    if (c < to)
        lo = term(of, c, to - c, lo);
    if (c + 16 < to)
        hi = term(of, c + 16, to - c - 16, hi);
    return (norm_sums){v16_sum(v16_add(lo.a, hi.a)), v16_sum(v16_add(lo.b, hi.b)), v16_sum(v16_add(lo.c, hi.c))};
}

CK_TEMPLATE size_t norm_block_end(size_t from, size_t C) { return C - from < NORM_BLOCK ? C : from + NORM_BLOCK; }

/* The sums over a row. */
CK_TEMPLATE norm_sums
norm_sum(norm_term *term, const void *of, size_t C)
{
    norm_sums sum = {0, 0, 0};
    for (size_t from = 0; from < C; from += NORM_BLOCK) {
        const norm_sums block = norm_sum_block(term, of, from, norm_block_end(from, C));
        sum = (norm_sums){sum.a + block.a, sum.b + block.b, sum.c + block.c};
    }
    return sum;
}

/* A term: squares of the row at `of`. */
CK_TEMPLATE norm_lanes
norm_square(const void *of, size_t c, size_t n, norm_lanes sum)
{
    const v16 x = v16_load((const elem *)of + c, n);
    sum.a = v16_fma(x, x, sum.a);
    return sum;
}

/* Element c..c+15 of a result. */
typedef v16 norm_value(const void *of, size_t c, size_t n);

/* y[c] = value(c) along a row.  Where whole vectors begin depends on y, what they hold does not. */
CK_TEMPLATE void
norm_write(elem *y, size_t C, bool stream, norm_value *value, const void *of)
{
    if (stream)
        CK_WALK(c, n, y, C, true, { v16_put(y + c, value(of, c, n), n, true); });
    else
        CK_WALK(c, n, y, C, false, { v16_put(y + c, value(of, c, n), n, false); });
}

/* Whether to write y past the caches: not where it is x, whose lines are there, or where `arrays` of [R,C] fit. */
static inline bool
norm_streams(const ck_array *y, const ck_array *x, size_t arrays, size_t R, size_t C)
{
    return y->data != x->data && ck_streams(arrays * R * C * sizeof(elem));
}

/* The row of x to fetch while row r of R is written: the next, which is mostly this thread's too, or r, which is there. */
static inline const elem *
norm_next(const ck_array *x, size_t r, size_t R, size_t C)
{
    return ck_row(x, r + 1 < R && C * sizeof(elem) <= NORM_AHEAD ? r + 1 : r);
}

/* Into the second cache: the first one has no room for the row that is written and the next. */
static inline void norm_fetch(const elem *p) { __builtin_prefetch(p, 0, 2); }

/* A share of a weight's gradient: of the first row of a block, or on top of what is there. */
static inline void
norm_add_to(float *part, bool first, v16 x, v16 y, size_t n)
{
    v16_store_f32(part, v16_fma(x, y, first ? v16_zero() : v16_load_f32(part, n)), n);
}
#endif
