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
 *     for (size_t i = 0; i < walk->n; i += NORM_GANG(way)) {
 *         const norm_gang gang = norm_gang_sums(1, term, row_at, &row, a, walk, i, C, way);
 *         if (norm_measured(&gang, walk, i, C, way))
 *             continue;
 *         ... from gang.a[j], what there is one of span j of the gang, for all of them
 *         for (size_t j = 0; j < gang.n; j++)
 *             ... write span i + j; what there is one of a row where its `begin` is 0
 *
 * in a template on `way`, which NORM_WALK calls: whole rows have no time for what rows that are cut ask, and short ones
 * go by the gang, whose sums are folded together and have one wait for a root and a division.
 */
#include "kernels/kernel.h"
#include "kernels/sum_columns.h"
#include "ops/norm_rows.h"
#include "simd/words.h"

#include <math.h>

enum {
    NORM_BLOCK = 4096,
    NORM_MOST = 16,       /* rows of a gang */
    NORM_SHORT = 256,     /* elements of a row that goes by the gang */
    NORM_AHEAD = 1 << 18, /* bytes of a row that is fetched while the one before it is written: both fit the cache */
};

/* Up to three sums that run beside one another. */
typedef struct { v16 a, b, c; } norm_lanes;
typedef ck_norm_sums norm_sums;

/* Adds the elements c..c+min(n,16)-1 of what `of` points to; nothing for those behind n. */
typedef norm_lanes norm_term(const void *of, size_t c, size_t n, norm_lanes sum);

/* Lane by lane, the sums over elements from..to-1: at most a block.  With `term` a constant, all of it is inlined. */
CK_TEMPLATE norm_lanes
norm_lanes_of(norm_term *term, const void *of, size_t from, size_t to)
{
    norm_lanes lo = {v16_zero(), v16_zero(), v16_zero()}, hi = lo;
    size_t c = from;
    for (; c + 32 <= to; c += 32) {
        lo = term(of, c, 16, lo);
        hi = term(of, c + 16, 16, hi);
    }
    if (c < to)
        lo = term(of, c, to - c + CK_FAULT(memory_read_past), lo);
    if (c + 16 < to && !CK_FAULT(norm_lanes_skipped))
        hi = term(of, c + 16, to - c - 16, hi);
    return (norm_lanes){v16_add(lo.a, hi.a), v16_add(lo.b, hi.b), v16_add(lo.c, hi.c)};
}

CK_TEMPLATE norm_sums
norm_sum_block(norm_term *term, const void *of, size_t from, size_t to)
{
    const norm_lanes sum = norm_lanes_of(term, of, from, to);
    return (norm_sums){v16_sum(sum.a), v16_sum(sum.b), v16_sum(sum.c)};
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
    size_t from, to; /* columns */
    const float *weight[2]; /* of those columns; NULL: none */
    float *part[2];         /* [blocks,to-from] of theirs: shares of a gradient; NULL: not wanted */
} norm_walk;

CK_TEMPLATE size_t norm_blocks(const ck_norm *norm) { return norm->block != 0 ? (norm->R - 1) / norm->block + 1 : 0; }

/* What there is of the columns: of all of them, or of a task's piece or slice in its scratch. */
static inline norm_walk
norm_walk_of(ck_task task)
{
    norm_walk walk = {.rows = *(const ck_norm_rows *)task.work, .begin = task.begin, .n = task.end - task.begin};
    const ck_norm_rows *rows = &walk.rows;
    const ck_norm *norm = &rows->norm;
    const bool cut = rows->sums != NULL;
    float *room = cut ? task.scratch : rows->parts;

    walk.to = norm->C;
    if (cut) {
        const size_t width = rows->write ? CK_NORM_SLICE : CK_NORM_PIECE;
        walk.from = (rows->write ? rows->slices - 1 - task.begin : task.begin) * width;
        walk.to = norm->C - walk.from < width ? norm->C : walk.from + width;
        walk.begin = 0, walk.n = norm->R;
    }
    const size_t n = walk.to - walk.from;
    for (size_t i = 0; i < 2 && !(cut && !rows->write && norm->block == 0); i++) {
        const ck_array *weight = &norm->weight[i];
        if (weight->data == NULL)
            continue;
        walk.weight[i] = ck_as_floats(room, weight, walk.from, n);
        if (walk.weight[i] == room)
            room += n;
    }
    for (size_t i = 0; i < 2 && (!cut || rows->write); i++)
        if (norm->sum[i].data != NULL) {
            walk.part[i] = room;
            room += norm_blocks(norm) * n;
        }
    return walk;
}

/* The gradients of the columns of a slice: nothing else is to come. */
static inline void
norm_leave(const norm_walk *walk)
{
    const ck_norm *norm = &walk->rows.norm;
    for (size_t i = 0; i < 2 && walk->rows.write; i++)
        if (norm->sum[i].data != NULL) {
            const ck_array parts = ck_rows(walk->part[i], norm_blocks(norm), walk->to - walk->from, sizeof(float));
            ck_sum_columns(&norm->sum[i], &parts, norm_blocks(norm), walk->to - walk->from, walk->from, walk->from, walk->to,
                           norm->accumulate[i]);
        }
}

typedef enum { NORM_CUT, NORM_WHOLE, NORM_BY_GANG } norm_way;
#define NORM_GANG(way) ((way) == NORM_BY_GANG ? (size_t)NORM_MOST : 1)

/* each(..., &walk, way) for rows of C */
#define NORM_WALK(each, task, C, ...)                   \
    do {                                                \
        const norm_walk walk = norm_walk_of(task);      \
        if (walk.rows.sums != NULL)                     \
            each(__VA_ARGS__, &walk, NORM_CUT);         \
        else if ((C) <= NORM_SHORT)                     \
            each(__VA_ARGS__, &walk, NORM_BY_GANG);     \
        else                                            \
            each(__VA_ARGS__, &walk, NORM_WHOLE);       \
        norm_leave(&walk);                              \
    } while (0)

CK_TEMPLATE norm_span
norm_span_at(const norm_walk *walk, size_t i, size_t C, norm_way way)
{
    const ck_norm_rows *rows = &walk->rows;
    if (way != NORM_CUT)
        return (norm_span){walk->begin + i, 0, C, NULL, NULL, 0};
    norm_sums *sums = rows->sums + i * rows->pieces;
    return (norm_span){i, walk->from, walk->to - walk->from, rows->write ? NULL : sums + walk->from / CK_NORM_PIECE,
                       rows->write ? sums : NULL, rows->pieces};
}

/* Of a span to be measured, its sums; else those of the whole row.  `of` begins where the span does. */
CK_TEMPLATE norm_sums
norm_sum_span(norm_term *term, const void *of, norm_span s)
{
    norm_sums sum = {0, 0, 0};
    if (s.known == NULL)
        return norm_sum(term, of, s.n);
    for (size_t i = 0; i + CK_FAULT(norm_last_piece) < s.pieces; i++)
        sum = norm_plus(sum, s.known[i]);
    return sum;
}

/* The sums of n spans side by side: loops over them become vectors. */
typedef struct {
    size_t n;
    double a[NORM_MOST], b[NORM_MOST], c[NORM_MOST];
} norm_gang;

/* to[j] = the fold of lanes[j], j < n. */
CK_TEMPLATE void
norm_fold(double *to, v16 *lanes, size_t n)
{
    float sums[NORM_MOST];
    if (n < NORM_MOST)
        for (size_t j = n; j < NORM_MOST; j++)
            lanes[j] = v16_zero();
    v16_store_f32(sums, v16_sums(lanes), NORM_MOST);
    for (size_t j = 0; j < n; j++)
        to[j] = sums[j];
}

/* Fills the row that a term wants to be given, of a span. */
typedef void norm_place(void *row, const void *args, const norm_walk *walk, norm_span s);

/* The first `wanted` of the sums a, b and c of the spans from i on that go together. */
CK_TEMPLATE norm_gang
norm_gang_sums(size_t wanted, norm_term *term, norm_place *place, void *row, const void *args, const norm_walk *walk,
               size_t i, size_t C, norm_way way)
{
    norm_gang gang;
    gang.n = walk->n - i < NORM_GANG(way) ? walk->n - i : NORM_GANG(way);
    if (way != NORM_BY_GANG) {
        const norm_span s = norm_span_at(walk, i, C, way);
        place(row, args, walk, s);
        const norm_sums sum = norm_sum_span(term, row, s);
        gang.a[0] = sum.a, gang.b[0] = sum.b, gang.c[0] = sum.c;
        return gang;
    }
    v16 a[NORM_MOST], b[NORM_MOST], c[NORM_MOST];
    for (size_t j = 0; j < gang.n; j++) {
        place(row, args, walk, norm_span_at(walk, i + j, C, way));
        const norm_lanes sum = norm_lanes_of(term, row, 0, C);
        a[j] = sum.a, b[j] = sum.b, c[j] = sum.c;
    }
    norm_fold(gang.a, a, gang.n);
    if (wanted > 1)
        norm_fold(gang.b, b, gang.n);
    if (wanted > 2)
        norm_fold(gang.c, c, gang.n);
    return gang;
}

/* Whether that was all that is asked of them, and then keep it. */
CK_TEMPLATE bool
norm_measured(const norm_gang *gang, const norm_walk *walk, size_t i, size_t C, norm_way way)
{
    norm_sums *measured = norm_span_at(walk, i, C, way).measured;
    if (measured != NULL)
        *measured = (norm_sums){gang->a[0], gang->b[0], gang->c[0]};
    return measured != NULL;
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

/* How many of n elements are written: all of them. */
CK_TEMPLATE size_t
norm_written(size_t n)
{
    return n + (CK_FAULT(memory_write_past) && n < 16) - (CK_FAULT(memory_unwritten) && n < 16);
}

/* y[c] = value(c) along a row.  Where whole vectors begin depends on y, what they hold does not. */
CK_TEMPLATE void
norm_write(elem *y, size_t C, bool stream, norm_value *value, const void *of)
{
    if (stream)
        CK_WALK(c, n, y, C, true, { v16_put(y + c, value(of, c, n), n, true); });
    else
        CK_WALK(c, n, y, C, false, { v16_put(y + c, value(of, c, n), norm_written(n), false); });
}

/* Whether to write y past the caches: not where it is x, whose lines are there, or where `arrays` of [R,C] fit. */
static inline bool
norm_streams(const ck_array *y, const ck_array *x, size_t arrays, size_t R, size_t C)
{
    return y->data != x->data && ck_streams(arrays * R * C * sizeof(elem));
}

/* Where a span of x begins. */
CK_TEMPLATE elem *norm_row(const ck_array *x, norm_span s) { return (elem *)ck_row(x, s.r) + s.begin; }

/* Where the same columns of a weight begin, which are floats; NULL where there is none. */
CK_TEMPLATE const float *
norm_weight(const norm_walk *walk, size_t i, norm_span s)
{
    return walk->weight[i] != NULL ? walk->weight[i] + (s.begin - walk->from) : NULL;
}

/* What of x to fetch while a span is written: the next row, which is mostly this thread's too, or itself, which is there. */
CK_TEMPLATE const elem *
norm_next(const ck_array *x, norm_span s, size_t R)
{
    return (const elem *)ck_row(x, s.r + 1 < R && s.n * sizeof(elem) <= NORM_AHEAD ? s.r + 1 : s.r) + s.begin;
}

/* The share of a weight's gradient that a span adds to: that of its block of rows; NULL where none is wanted. */
CK_TEMPLATE float *
norm_part(const norm_walk *walk, size_t i, norm_span s, size_t block)
{
    return walk->part[i] != NULL ? walk->part[i] + s.r / block * (walk->to - walk->from) + (s.begin - walk->from) : NULL;
}

/* Into the second cache: the first one has no room for the row that is written and the next. */
CK_TEMPLATE void norm_fetch(const elem *p) { __builtin_prefetch(p, 0, 2); }

/* A share of a weight's gradient: of the first row of a block, or on top of what is there. */
static inline void
norm_add_to(float *part, bool first, v16 x, v16 y, size_t n)
{
    v16_store_f32(part, v16_fma(x, y, first && !CK_FAULT(memory_stale_workspace) ? v16_zero() : v16_load_f32(part, n)), n);
}

/* 1 / sqrt(mean of n squares + eps), from their sum. */
CK_TEMPLATE double
norm_rstd(double squares, size_t n, double eps)
{
    const double mean = squares / (double)(n + CK_FAULT(norm_mean_n));
    const double added = CK_FAULT(norm_eps_tenfold) ? 10 * eps : CK_FAULT(norm_eps_dropped) ? 0 : eps;
    if (CK_FAULT(norm_missing))
        return 1;
    return CK_FAULT(norm_eps_outside) ? 1 / (sqrt(mean) + eps) : 1 / sqrt(mean + added);
}
#endif
