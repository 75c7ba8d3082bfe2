#include "kernels/attention_bwd_tile.h"

/*
 * Two passes, neither of which adds to what another task writes.  Both recompute the scores tile by tile of six rows:
 * attention_bwd has queries for rows and gives dq, attention_bwd_keys has keys for rows and gives dk and dv.  The chains
 * of a score are those of forward, so exp(x - max) is at most 1, as it was there.
 */

/* What backward knows of a query. */
typedef struct {
    float max, share, dot; /* share = 1 / sum; 0 where the query saw nothing, and then max is 0 */
} query;

/*
 * dot[t] = sum_d dy[t,d] * y[t,d] - dlse[t], in the order in which a tile sums dy * v: where one key has all the weight,
 * y is its v and the two cancel to 0, as they should.
 */
static void
queries_of(const struct ck_attention_bwd *a, size_t b, size_t h, size_t t0, size_t n, query *to)
{
    const source dy = source_of(&a->dy, b, h, a->D), y = source_of(&a->y, b, h, a->D);
    for (size_t i = 0; i < n; i += 16) {
        float dots[16], x[16][16], z[16][16];
        const size_t m = n - i < 16 ? n - i : 16;
        place dy_at[PLACES], y_at[PLACES];
        source_places(&dy, t0 + i, m, dy_at);
        source_places(&y, t0 + i, m, y_at);
        v16 dot = v16_zero(), chain = v16_zero();
        for (size_t d = 0; d < a->D; d += 16) {
            if (d != 0 && d % CHAIN == 0) {
                dot = d == CHAIN ? chain : v16_add(dot, chain);
                chain = v16_zero();
            }
            turn(x[0], &dy, dy_at, m, d);
            turn(z[0], &y, y_at, m, d);
            for (size_t c = 0; c < (a->D - d < 16 ? a->D - d : 16); c++)
                chain = v16_fma(v16_load_f32(x[c], 16), v16_load_f32(z[c], 16), chain);
        }
        v16_store_f32(dots, a->D <= CHAIN ? chain : v16_add(dot, chain), 16);
        for (size_t j = i; j < n && j < i + 16; j++) {
            const size_t row = (b * a->H + h) * a->T + t0 + j;
            const float of = dots[j - i] - (a->dlse != NULL ? a->dlse[row] : 0.0f);
            to[j] = a->sum[row] != 0.0f ? (query){a->max[row], 1.0f / a->sum[row], of} : (query){0.0f, 0.0f, of};
        }
    }
}

/* x: scores to weights; dp: gradients of weights to those of scores.  Both 0 where x is -inf. */
ALWAYS void
differentiate(float *x, float *dp, const float *slope, size_t i, v16 max, v16 share, v16 dot)
{
    const v16 z = v16_load_f32(x + i, 16), p = v16_mul(v16_exp(v16_sub(z, max)), share);
    v16 dx = v16_mul(p, v16_sub(v16_load_f32(dp + i, 16), dot));
    if (slope != NULL)
        dx = v16_mul(dx, v16_load_f32(slope + i, 16));
    const v16_mask shut = v16_eq(z, v16_splat(-INFINITY));
    v16_store_f32(x + i, v16_select(shut, v16_zero(), p), 16);
    v16_store_f32(dp + i, v16_select(shut, v16_zero(), dx), 16);
}

/* A task of either pass: rows (queries of all heads of a group, or keys) against panels (keys, or queries). */
typedef struct {
    rule rule;
    size_t D, width, b, g, heads;
    float *x, *dp, *slope, *chain;       /* [ROWS,KEYS] three times, [ROWS,width]: of the tile at work */
    float *columns, *other_columns;      /* packed: [KEYS/16][D][16] */
    float *rows, *other_rows;            /* packed: [width/16][KEYS][16] */
    float *own, *other_own;              /* this task's rows, [rows,width]: q and dy, or k and v */
    float *sum, *other_sum;              /* and their gradients: dq, or dk and dv */
    query *query;
} state;

static state
layout(const struct ck_attention_bwd *a, size_t b, size_t g, size_t rows, float *scratch)
{
    const size_t width = wide(a->D);
    state s = {.rule = RULE(a), .D = a->D, .width = width, .b = b, .g = g, .heads = a->H / a->G, .x = scratch};
    s.dp = s.x + ROWS * KEYS;
    s.slope = s.dp + ROWS * KEYS;
    s.chain = s.slope + ROWS * KEYS;
    s.columns = s.chain + ROWS * width;
    s.other_columns = s.columns + KEYS * width;
    s.rows = s.other_columns + KEYS * width;
    s.other_rows = s.rows + KEYS * width;
    s.own = s.other_rows + KEYS * width;
    s.other_own = s.own + rows * width;
    s.sum = s.other_own + rows * width;
    s.other_sum = s.sum + rows * width;
    s.query = (query *)(s.other_sum + rows * width);
    return s;
}

/* n rows of D, times a factor, to where they belong. */
static inline void
put_rows(char *row, ptrdiff_t step, const float *from, size_t n, size_t D, float factor)
{
    for (size_t i = 0; i < n; i++, row += step)
        for (size_t d = 0; d < D; d += 16, from += 16)
            v16_store((elem *)row + d, v16_mul(v16_load_f32(from, 16), v16_splat(factor)), D - d);
}

/* Scores and the gradients of weights, of `rows` own rows with the columns of `all`. */
static void
both_products(state *s, size_t r0, size_t rows, span all)
{
    const size_t first = all.from / 16, n = wide(all.to) / 16 - first, at = first * s->D * 16;
    inner_products(s->x + 16 * first, s->own + r0 * s->width, s->width, rows, s->columns + at, s->D, n);
    inner_products(s->dp + 16 * first, s->other_own + r0 * s->width, s->width, rows, s->other_columns + at, s->D, n);
}

/* ---- dq ---- */

/* Rows r0.. of a block of n queries from t0, with the partition that begins at key s0. */
static void
queries_tile(state *s, size_t t0, size_t n, size_t r0, size_t rows, size_t s0, const span *of, span all, bool finite)
{
    const bool capped = s->rule.cap > 0.0f;
    closed shut = {.step = s->rule.mask.data != NULL ? s->rule.mask.stride[3] : 0};

    both_products(s, r0, rows, all);
    for (size_t i = 0; i < rows; i++) {
        const query *k = &s->query[r0 + i];
        float *x = s->x + i * KEYS, *dp = s->dp + i * KEYS, *slope = capped ? s->slope + i * KEYS : NULL;
        shut.of[i] = mask_at(&s->rule, s->b, s->g * s->heads + (r0 + i) / n, t0 + (r0 + i) % n, s0);
        bend(&s->rule, x, slope, of[i]);
        add_mask(&s->rule, x, of[i], shut.of[i], shut.step);
        for (size_t j = of[i].from / 16 * 16; j < of[i].to; j += 16)
            differentiate(x, dp, slope, j, v16_splat(k->max), v16_splat(k->share), v16_splat(k->dot));
    }
    weigh(&s->rule, s->sum + r0 * s->width, s->chain, s->width, s->dp, KEYS, of, rows, s->rows, KEYS,
          finite || shut.of[0] == NULL ? NULL : &shut);
}

static void
queries_partition(state *s, const struct ck_attention_bwd *a, size_t t0, size_t n, size_t s0, span of)
{
    const size_t rows = s->heads * n;
    const source k = source_of(&a->k, s->b, s->g, s->D), v = source_of(&a->v, s->b, s->g, s->D);
    pack_columns(s->columns, &k, s0, of);
    pack_columns(s->other_columns, &v, s0, of);
    const bool finite = pack_rows(s->rows, KEYS, &k, s0, of);

    for (size_t r = 0; r < rows; r += ROWS) {
        const size_t m = rows - r < ROWS ? rows - r : ROWS;
        span each[ROWS], all = {0, 0};
        for (size_t i = 0; i < m; i++) {
            each[i] = within(seen(&s->rule, s->b, t0 + (r + i) % n), s0, KEYS);
            all = around(all, each[i]);
        }
        if (all.from < all.to)
            queries_tile(s, t0, n, r, m, s0, each, all, finite);
    }
}

/* The share of n queries in the gradient of their head's sink. */
static float
sink_of(float sink, const query *q, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        if (q[i].share != 0.0f)
            sum -= exp((double)sink - q[i].max) * q[i].share * q[i].dot;
    return (float)sum;
}

/* dq of a block of queries, all heads of a group; sinks[j] the share of head j in dsinks. */
static void
queries_block(const struct ck_attention_bwd *a, size_t b, size_t g, size_t t0, size_t n, float *sinks, float *scratch)
{
    const size_t heads = a->H / a->G, rows = heads * n;
    state s = layout(a, b, g, rows, scratch);
    span reach = {0, 0};

    memset(s.sum, 0, rows * s.width * sizeof *s.sum);
    for (size_t j = 0; j < heads; j++) {
        const size_t h = g * heads + j, to = j * n * s.width;
        pack_plain(s.own + to, rows_at(&a->q, b, h) + (ptrdiff_t)t0 * a->q.stride[2], a->q.stride[2], n, s.D);
        pack_plain(s.other_own + to, rows_at(&a->dy, b, h) + (ptrdiff_t)t0 * a->dy.stride[2], a->dy.stride[2], n, s.D);
        queries_of(a, b, h, t0, n, s.query + j * n);
        if (sinks != NULL)
            sinks[j] = sink_of(a->sinks[h], s.query + j * n, n);
    }
    for (size_t t = t0; t < t0 + n; t++)
        reach = around(reach, seen(&s.rule, b, t));
    for (size_t s0 = reach.from / KEYS * KEYS; s0 < reach.to; s0 += KEYS)
        queries_partition(&s, a, t0, n, s0, within(reach, s0, KEYS));
    for (size_t j = 0; j < heads; j++)
        put_rows((char *)rows_at(&a->dq, b, g * heads + j) + (ptrdiff_t)t0 * a->dq.stride[2], a->dq.stride[2],
                 s.sum + j * n * s.width, n, s.D, s.rule.scale);
}

CK_KERNEL(attention_bwd)
{
    const size_t heads = a->H / a->G, queries = ck_attention_queries(heads, a->T), blocks = (a->T + queries - 1) / queries;
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t t0 = i % blocks * queries, n = a->T - t0 < queries ? a->T - t0 : queries;
        queries_block(a, i / blocks / a->G, i / blocks % a->G, t0, n, a->dsinks != NULL ? task.work : NULL, task.scratch);
    }
}

/* ---- dk, dv ---- */

enum { QUERIES = CK_ATTENTION_QUERIES };

/* Queries t0 <= t < t0 + n that see key s; they lie together, as both ends of what a query sees rise with t. */
static span
seen_by(const rule *u, size_t b, size_t s, size_t t0, size_t n)
{
    size_t from = 0, to = n;
    while (from < to && !(seen(u, b, t0 + from).from <= s && s < seen(u, b, t0 + from).to))
        from++;
    while (to > from && !(seen(u, b, t0 + to - 1).from <= s && s < seen(u, b, t0 + to - 1).to))
        to--;
    return from < to ? (span){from, to} : (span){0, 0};
}

/* Keys s.. of the block, which begins at s0, with n queries of head h from t0: `of` those that see each. */
static void
keys_tile(state *s, size_t h, size_t t0, size_t s0, size_t r0, size_t rows, const span *of, span all, bool finite)
{
    const bool capped = s->rule.cap > 0.0f;
    closed shut = {.step = s->rule.mask.data != NULL ? s->rule.mask.stride[2] : 0};
    float max[QUERIES], share[QUERIES], dot[QUERIES];

    for (size_t i = 0; i < QUERIES; i++) {
        max[i] = s->query[i].max;
        share[i] = s->query[i].share;
        dot[i] = s->query[i].dot;
    }
    both_products(s, r0, rows, all);
    for (size_t i = 0; i < rows; i++) {
        float *x = s->x + i * KEYS, *dp = s->dp + i * KEYS, *slope = capped ? s->slope + i * KEYS : NULL;
        shut.of[i] = mask_at(&s->rule, s->b, h, t0, s0 + r0 + i);
        bend(&s->rule, x, slope, of[i]);
        add_mask(&s->rule, x, of[i], shut.of[i], shut.step);
        for (size_t j = of[i].from / 16 * 16; j < of[i].to; j += 16)
            differentiate(x, dp, slope, j, v16_load_f32(max + j, 16), v16_load_f32(share + j, 16), v16_load_f32(dot + j, 16));
    }
    const closed *skip = finite || shut.of[0] == NULL ? NULL : &shut;
    weigh(&s->rule, s->sum + r0 * s->width, s->chain, s->width, s->dp, KEYS, of, rows, s->rows, KEYS, skip);
    weigh(&s->rule, s->other_sum + r0 * s->width, s->chain, s->width, s->x, KEYS, of, rows, s->other_rows, KEYS, skip);
}

/* Adds the share of n queries of head h from t0 to the gradients of `keys` keys from s0. */
static void
keys_with(state *s, const struct ck_attention_bwd *a, size_t h, size_t t0, size_t n, size_t s0, size_t keys)
{
    const source q = source_of(&a->q, s->b, h, s->D), dy = source_of(&a->dy, s->b, h, s->D);
    const span block = {0, n};
    bool packed = false, finite = true;

    for (size_t r = 0; r < keys; r += ROWS) {
        const size_t m = keys - r < ROWS ? keys - r : ROWS;
        span each[ROWS], all = {0, 0};
        for (size_t i = 0; i < m; i++) {
            each[i] = seen_by(&s->rule, s->b, s0 + r + i, t0, n);
            all = around(all, each[i]);
        }
        if (all.from == all.to)
            continue;
        if (!packed) {
            pack_columns(s->columns, &q, t0, block);
            pack_columns(s->other_columns, &dy, t0, block);
            finite = pack_rows(s->rows, KEYS, &q, t0, block);
            finite = pack_rows(s->other_rows, KEYS, &dy, t0, block) && finite;
            memset(s->query, 0, QUERIES * sizeof *s->query);
            queries_of(a, s->b, h, t0, n, s->query);
            packed = true;
        }
        keys_tile(s, h, t0, s0, r, m, each, all, finite);
    }
}

static void
keys_block(const struct ck_attention_bwd *a, size_t b, size_t g, size_t s0, size_t keys, float *scratch)
{
    state s = layout(a, b, g, CK_ATTENTION_KEY_BLOCK, scratch);
    /* Keys past an item's length are not read, and get 0. */
    const size_t length = s.rule.lengths != NULL ? (size_t)s.rule.lengths[b] : a->S;
    const size_t there = length <= s0 ? 0 : length - s0 < keys ? length - s0 : keys;

    memset(s.sum, 0, keys * s.width * sizeof *s.sum);
    memset(s.other_sum, 0, keys * s.width * sizeof *s.other_sum);
    pack_plain(s.own, rows_at(&a->k, b, g) + (ptrdiff_t)s0 * a->k.stride[2], a->k.stride[2], there, s.D);
    pack_plain(s.other_own, rows_at(&a->v, b, g) + (ptrdiff_t)s0 * a->v.stride[2], a->v.stride[2], there, s.D);
    for (size_t h = g * s.heads; h < (g + 1) * s.heads; h++)
        for (size_t t0 = 0; t0 < a->T; t0 += QUERIES)
            keys_with(&s, a, h, t0, a->T - t0 < QUERIES ? a->T - t0 : QUERIES, s0, there);
    put_rows((char *)rows_at(&a->dk, b, g) + (ptrdiff_t)s0 * a->dk.stride[2], a->dk.stride[2], s.sum, keys, s.D, s.rule.scale);
    put_rows((char *)rows_at(&a->dv, b, g) + (ptrdiff_t)s0 * a->dv.stride[2], a->dv.stride[2], s.other_sum, keys, s.D, 1.0f);
}

CK_KERNEL(attention_bwd_keys)
{
    const struct ck_attention_bwd *of = &a->of;
    const size_t block = CK_ATTENTION_KEY_BLOCK, blocks = (of->S + block - 1) / block;
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t s0 = i % blocks * block;
        keys_block(of, i / blocks / of->G, i / blocks % of->G, s0, of->S - s0 < block ? of->S - s0 : block, task.scratch);
    }
}
