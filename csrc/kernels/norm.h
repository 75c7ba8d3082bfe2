#ifndef CK_NORM_H
#define CK_NORM_H
/*
 * What the norms share: sums along a row, all in one order, and the last pass, which writes.
 *
 * A row is summed by blocks of NORM_BLOCK elements, so that a long one is as exact as a short one.  In a block, element c
 * goes to lane c % 32, and the lanes are folded by halves (16, 8, 4, 2, 1 apart); the blocks' sums are added in double,
 * ascending, in pieces of CK_NORM_PIECE elements, and these likewise.  So the order follows from the length alone, on
 * every instruction set, and however the row is cut (ops/norm_rows.h).  A kernel walks its task as spans:
 *
 *     for (size_t i = 0; i < walk->n; i++) {
 *         const norm_span s = norm_span_at(walk, i, C, cut);
 *         ... the row from element s.begin on
 *         const norm_sums sum = norm_sum_span(term, &row, s);
 *         if (norm_measured(s, sum))
 *             continue;
 *         ... write s.n elements; what there is one of a row where s.begin is 0
 *
 * in a template on `cut`, which NORM_WALK calls: short rows, whole, have no time for what the cut asks.
 */
#include "kernels/kernel.h"
#include "ops/norm_rows.h"
#include "simd/words.h"

#include <math.h>

enum {
    NORM_BLOCK = 4096,
    NORM_AHEAD = 1 << 18, /* bytes of a row that is fetched while the one before it is written: both fit the cache */
};

/* Up to three sums that run beside one another. */
typedef struct { v16 a, b, c; } norm_lanes;
typedef ck_norm_sums norm_sums;

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

CK_TEMPLATE norm_sums norm_plus(norm_sums x, norm_sums y) { return (norm_sums){x.a + y.a, x.b + y.b, x.c + y.c}; }

/* The end of the piece that begins there. */
CK_TEMPLATE size_t norm_piece_end(size_t from, size_t C) { return C - from < CK_NORM_PIECE ? C : from + CK_NORM_PIECE; }

CK_TEMPLATE norm_sums
norm_sum_piece(norm_term *term, const void *of, size_t from, size_t to)
{
    norm_sums sum = {0, 0, 0};
    for (; from < to; from = norm_block_end(from, to))
        sum = norm_plus(sum, norm_sum_block(term, of, from, norm_block_end(from, to)));
    return sum;
}

/* The sums over a row. */
CK_TEMPLATE norm_sums
norm_sum(norm_term *term, const void *of, size_t C)
{
    norm_sums sum = norm_sum_piece(term, of, 0, norm_piece_end(0, C));
    for (size_t from = CK_NORM_PIECE; from < C; from += CK_NORM_PIECE)
        sum = norm_plus(sum, norm_sum_piece(term, of, from, norm_piece_end(from, C)));
    return sum;
}

/* A share of a row: elements begin to begin+n-1 of row r. */
typedef struct {
    size_t r, begin, n;
    norm_sums *measured;    /* where its sums go, and nothing else is done; or NULL */
    const norm_sums *known; /* those of the row's pieces; or NULL */
    size_t pieces;
} norm_span;

/* A task's work, copied so that what a kernel stores cannot have changed it. */
typedef struct {
    ck_norm_rows rows;
    size_t begin, n; /* spans */
} norm_walk;

CK_TEMPLATE norm_walk
norm_walk_of(ck_task task)
{
    const ck_norm_rows rows = *(const ck_norm_rows *)task.work;
    const bool slice = rows.sums != NULL && rows.write; /* a task of its own, of all rows */
    return (norm_walk){rows, task.begin, slice ? rows.R : task.end - task.begin};
}

/* each(..., &walk, cut) */
#define NORM_WALK(each, task, ...)                      \
    do {                                                \
        const norm_walk walk = norm_walk_of(task);      \
        if (walk.rows.sums == NULL)                     \
            each(__VA_ARGS__, &walk, false);            \
        else                                            \
            each(__VA_ARGS__, &walk, true);             \
    } while (0)

CK_TEMPLATE norm_span
norm_span_at(const norm_walk *walk, size_t i, size_t C, bool cut)
{
    const ck_norm_rows *rows = &walk->rows;
    if (!cut)
        return (norm_span){walk->begin + i, 0, C, NULL, NULL, 0};
    if (!rows->write) {
        const size_t at = walk->begin + i, from = at % rows->pieces * CK_NORM_PIECE;
        return (norm_span){at / rows->pieces, from, norm_piece_end(from, C) - from, rows->sums + at, NULL, rows->pieces};
    }
    const size_t from = walk->begin * CK_NORM_SLICE, n = C - from < CK_NORM_SLICE ? C - from : CK_NORM_SLICE;
    return (norm_span){i, from, n, NULL, rows->sums + i * rows->pieces, rows->pieces};
}

/* Of a span to be measured, its sums; else those of the whole row.  `of` begins where the span does. */
CK_TEMPLATE norm_sums
norm_sum_span(norm_term *term, const void *of, norm_span s)
{
    norm_sums sum = {0, 0, 0};
    if (s.known == NULL)
        return norm_sum(term, of, s.n);
    for (size_t i = 0; i < s.pieces; i++)
        sum = norm_plus(sum, s.known[i]);
    return sum;
}

/* Whether that was all, and then keep it. */
CK_TEMPLATE bool
norm_measured(norm_span s, norm_sums sum)
{
    if (s.measured != NULL)
        *s.measured = sum;
    return s.measured != NULL;
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

/* Where a span of x begins. */
CK_TEMPLATE elem *norm_row(const ck_array *x, norm_span s) { return (elem *)ck_row(x, s.r) + s.begin; }

/* The same of a weight, which has been made floats; NULL where there is none. */
CK_TEMPLATE const float *
norm_weight(const ck_array *weight, norm_span s)
{
    return weight->data != NULL ? (const float *)weight->data + s.begin : NULL;
}

/* What of x to fetch while a span is written: the next row, which is mostly this thread's too, or itself, which is there. */
CK_TEMPLATE const elem *
norm_next(const ck_array *x, norm_span s, size_t R, size_t C)
{
    return (const elem *)ck_row(x, s.r + 1 < R && C * sizeof(elem) <= NORM_AHEAD ? s.r + 1 : s.r) + s.begin;
}

/* The share of a weight's gradient that a span adds to: that of its block of rows; NULL where none is wanted. */
CK_TEMPLATE float *
norm_part(const norm_walk *walk, norm_span s, size_t block, size_t C)
{
    return walk->rows.parts != NULL ? walk->rows.parts + s.r / block * C + s.begin : NULL;
}

/* Into the second cache: the first one has no room for the row that is written and the next. */
CK_TEMPLATE void norm_fetch(const elem *p) { __builtin_prefetch(p, 0, 2); }

/* A share of a weight's gradient: of the first row of a block, or on top of what is there. */
static inline void
norm_add_to(float *part, bool first, v16 x, v16 y, size_t n)
{
    v16_store_f32(part, v16_fma(x, y, first ? v16_zero() : v16_load_f32(part, n)), n);
}
#endif
