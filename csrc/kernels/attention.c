#include "kernels/attention_tile.h"

/*
 * A task: up to 126 rows, which are a block of queries times the heads of a group.  For each partition of the keys: pack
 * K as columns and V as rows, once for all rows; then tile by tile of six rows: scores, exponentials, the weighted sum
 * of V, all in L1; then merge into what the partitions before gave.
 */
typedef struct {
    rule rule;
    size_t D, width, b, g, heads, t0, n; /* n queries from t0 of heads rows each; row = head * n + query */
    float *q, *y, *max, *sum;            /* [rows,width] [rows,width] [rows] [rows] */
    float *k, *v;                        /* [KEYS/16][D][16]  [width/16][KEYS][16] */
    float *x, *part, *chain;             /* [ROWS,KEYS] [ROWS,width] [ROWS,width], of the tile at work */
} state;

static inline float
exp_one(float x)
{
    float z[16];
    v16_store_f32(z, v16_exp(v16_splat(x)), 16);
    return z[0];
}

/* Row r of what is kept takes a part with its own maximum: the larger maximum stays, the other side shrinks to it. */
static void
merge(state *s, size_t r, float max, float sum, const float *part)
{
    float *y = s->y + r * s->width;
    if (s->max[r] == -INFINITY) { /* the first part that sees a key */
        s->max[r] = max;
        s->sum[r] = sum;
        if (part != NULL)
            memcpy(y, part, s->width * sizeof *y);
        return;
    }
    const bool stays = max <= s->max[r];
    const float shrink = exp_one(stays ? max - s->max[r] : s->max[r] - max);
    const v16 by = v16_splat(shrink);
    s->sum[r] = stays ? s->sum[r] + sum * shrink : s->sum[r] * shrink + sum;
    if (!stays)
        s->max[r] = max;
    for (size_t d = 0; d < s->width; d += 16) {
        const v16 old = v16_load_f32(y + d, 16), new = part != NULL ? v16_load_f32(part + d, 16) : v16_zero();
        v16_store_f32(y + d, stays ? v16_fma(new, by, old) : v16_fma(old, by, new), 16);
    }
}

/* x becomes exp(x - max), whose sum is returned; *max is -inf where there is no key to see. */
static float
exponentials(float *x, span of, float *max)
{
    const size_t begin = of.from / 16 * 16, end = wide(of.to);
    v16 peak = v16_splat(-INFINITY), sum = v16_zero();
    for (size_t i = begin; i < end; i += 16)
        peak = v16_max(v16_load_f32(x + i, 16), peak); /* a NaN that comes first is passed over */
    *max = v16_peak(peak);
    if (*max == -INFINITY) {
        for (size_t i = of.from; i < of.to; i++)
            if (x[i] != x[i])
                *max = x[i]; /* nothing but NaN: the row is NaN, not empty */
        if (*max == -INFINITY)
            return 0.0f;
    }
    const v16 top = v16_splat(*max);
    for (size_t i = begin; i < end; i += 16) {
        const v16 p = v16_exp(v16_sub(v16_load_f32(x + i, 16), top));
        v16_store_f32(x + i, p, 16);
        sum = v16_add(sum, p);
    }
    return v16_sum(sum);
}

/* Rows r0.. of one partition, which begins at key s0: `of` their keys in it, `all` the span around these. */
static void
one_tile(state *s, size_t r0, size_t rows, size_t s0, const span *of, span all, bool finite)
{
    const size_t first = all.from / 16;
    float max[ROWS], sum[ROWS];
    closed shut = {.step = s->rule.mask.data != NULL ? s->rule.mask.stride[3] : 0};

    inner_products(s->x + 16 * first, s->q + r0 * s->width, s->width, rows, s->k + first * s->D * 16, s->D,
                   wide(all.to) / 16 - first);
    for (size_t i = 0; i < rows; i++) {
        const size_t h = s->g * s->heads + (r0 + i) / s->n, t = s->t0 + (r0 + i) % s->n;
        float *x = s->x + i * KEYS;
        shut.of[i] = mask_at(&s->rule, s->b, h, t, s0);
        bend(&s->rule, x, NULL, of[i]);
        add_mask(&s->rule, x, of[i], shut.of[i], shut.step);
        sum[i] = exponentials(x, of[i], &max[i]);
        if (max[i] == -INFINITY) /* no weight at all: say so for sums that may meet a NaN */
            memset(x + of[i].from, 0, (of[i].to - of[i].from) * sizeof *x);
    }
    memset(s->part, 0, rows * s->width * sizeof *s->part);
    weigh(&s->rule, s->part, s->chain, s->width, s->x, KEYS, of, rows, s->v, KEYS, finite || shut.of[0] == NULL ? NULL : &shut);
    for (size_t i = 0; i < rows; i++)
        if (max[i] != -INFINITY)
            merge(s, r0 + i, max[i], sum[i], s->part + i * s->width);
}

static void
one_partition(state *s, const struct ck_attention_fwd *a, size_t s0, span of)
{
    const size_t rows = s->heads * s->n;
    const ck_kv_cache *cache = a->cache;
    const source k = cache == NULL ? source_of(&a->k, s->b, s->g, s->D) : source_of_cache(cache, &cache->k, s->b, s->g);
    const source v = cache == NULL ? source_of(&a->v, s->b, s->g, s->D) : source_of_cache(cache, &cache->v, s->b, s->g);
    pack_columns(s->k, &k, s0, of);
    const bool finite = pack_rows(s->v, KEYS, &v, s0, of);

    for (size_t r = 0; r < rows; r += ROWS) {
        const size_t n = rows - r < ROWS ? rows - r : ROWS;
        span each[ROWS], all = {0, 0};
        for (size_t i = 0; i < n; i++) {
            each[i] = within(seen(&s->rule, s->b, s->t0 + (r + i) % s->n), s0, KEYS);
            all = around(all, each[i]);
        }
        if (all.from < all.to)
            one_tile(s, r, n, s0, each, all, finite);
    }
}

/* The sink, then y = sum of weighted v / sum of weights. */
static void
finish(state *s, const struct ck_attention_fwd *a, size_t r)
{
    const size_t h = s->g * s->heads + r / s->n, t = s->t0 + r % s->n, row = (s->b * a->H + h) * a->T + t;
    elem *y = (elem *)(rows_at(&a->y, s->b, h) + (ptrdiff_t)t * a->y.stride[2]);
    const bool empty = s->max[r] == -INFINITY;

    if (a->sinks != NULL && a->sinks[h] != -INFINITY)
        merge(s, r, a->sinks[h], 1.0f, NULL);
    const v16 sum = v16_splat(s->sum[r]);
    for (size_t d = 0; d < s->D; d += 16)
        v16_store(y + d, empty ? v16_zero() : v16_div(v16_load_f32(s->y + r * s->width + d, 16), sum), s->D - d);
    if (a->max != NULL)
        a->max[row] = s->max[r];
    if (a->sum != NULL)
        a->sum[row] = s->sum[r];
    if (a->lse != NULL)
        a->lse[row] = (float)((double)s->max[r] + log((double)s->sum[r])); /* -inf for an empty row */
}

static void
one_block(const struct ck_attention_fwd *a, size_t b, size_t g, size_t t0, size_t n, float *scratch)
{
    const size_t D = a->D, width = wide(D), heads = a->H / a->G, rows = heads * n;
    state s = {RULE(a), D, width, b, g, heads, t0, n, .q = scratch};
    s.y = s.q + rows * width;
    s.k = s.y + rows * width;
    s.v = s.k + KEYS * width;
    s.x = s.v + KEYS * width;
    s.part = s.x + ROWS * KEYS;
    s.chain = s.part + ROWS * width;
    s.max = s.chain + ROWS * width;
    s.sum = s.max + rows;

    span reach = {0, 0};
    for (size_t h = 0; h < heads; h++)
        pack_plain(s.q + h * n * width, rows_at(&a->q, b, g * heads + h) + (ptrdiff_t)t0 * a->q.stride[2], a->q.stride[2], n, D);
    for (size_t r = 0; r < rows; r++) {
        s.max[r] = -INFINITY;
        s.sum[r] = 0.0f;
    }
    for (size_t t = t0; t < t0 + n; t++)
        reach = around(reach, seen(&s.rule, b, t));
    for (size_t s0 = reach.from / KEYS * KEYS; s0 < reach.to; s0 += KEYS)
        one_partition(&s, a, s0, within(reach, s0, KEYS));
    for (size_t r = 0; r < rows; r++)
        finish(&s, a, r);
}

CK_KERNEL(attention_fwd)
{
    const size_t queries = ck_attention_queries(a->H / a->G, a->T), blocks = (a->T + queries - 1) / queries;
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t t0 = (blocks - 1 - i % blocks) * queries; /* the last ones, which see most under a causal mask, first */
        one_block(a, i / blocks / a->G, i / blocks % a->G, t0, a->T - t0 < queries ? a->T - t0 : queries, task.scratch);
    }
}
