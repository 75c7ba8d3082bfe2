#ifndef CK_ATTENTION_FORWARD_H
#define CK_ATTENTION_FORWARD_H
/*
 * Forward of a block: queries t0.. of all heads of a group, up to 126 rows, which share one reading of the keys. 
 * For each partition of the keys: scores of all rows, exponentials, the weighted sum of V; then merge into what
 * the partitions before gave.  K is packed as columns and V as rows, once for all rows; few rows take both where
 * they lie.
 */
#include "kernels/attention_direct.h"

typedef struct {
    rule rule;
    source k, v;                          /* of this item and kv head */
    size_t D, width, g, heads, t0, n;     /* n queries from t0 of heads rows each; row = query * heads + head */
    size_t rows, q_step;
    float *q;                             /* packed tiles; where rows are few plain, q_step apart */
    float *y, *max, *sum;                 /* [rows,width] [rows] [rows]: what the partitions so far gave */
    float *x, *part, *part_max, *part_sum;/* [rows,STEP] [rows,width] [rows] [rows]: this partition's */
    float *columns, *values;              /* [KEYS/16][D][16]  [width/16][KEYS][16] */
    span *of, *tiles;                     /* keys of the partition that a row, and that a tile, sees */
    place *at;                            /* of the rows of q */
} block;

static inline float
exp_one(float x)
{
    float z[16];
    v16_store_f32(z, v16_exp(v16_splat(x)), 16);
    return z[0];
}

static inline size_t head_of(const block *s, size_t r) { return s->g * s->heads + r % s->heads; }
static inline size_t query_of(const block *s, size_t r) { return s->t0 + r / s->heads; }

/* Everything but the sources and the rows of q, from scratch of ck_attention_scratch(). */
static inline block
block_of(rule rule, size_t D, size_t g, size_t heads, size_t t0, size_t n, float *scratch)
{
    const size_t width = wide(D), rows = heads * n;
    block s = {.rule = rule, .D = D, .width = width, .g = g, .heads = heads, .t0 = t0, .n = n, .rows = rows};
    s.q_step = width + 16;
    s.q = scratch;
    s.y = s.q + rows * s.q_step + 16;
    s.part = s.y + rows * width;
    s.x = s.part + rows * width;
    s.columns = s.x + rows * STEP;
    s.values = s.columns + KEYS * width;
    s.max = s.values + KEYS * width;
    s.sum = s.max + rows;
    s.part_max = s.sum + rows;
    s.part_sum = s.part_max + rows;
    s.at = (place *)(s.part_sum + rows);
    s.of = (span *)(s.at + rows);
    s.tiles = s.of + rows;
    for (size_t r = 0; r < rows; r++) {
        s.max[r] = -INFINITY;
        s.sum[r] = 0.0f;
    }
    memset(s.y, 0, rows * width * sizeof *s.y);
    return s;
}

/* Row r of what is kept takes a part with its own maximum: the larger maximum stays, the other side shrinks to it. */
static inline void
merge(block *s, size_t r, float max, float sum, const float *part)
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
    const float shrink = CK_FAULT(attention_no_rescale) ? 1.0f : exp_one(stays ? max - s->max[r] : s->max[r] - max);
    const v16 by = v16_splat(shrink);
    s->sum[r] = stays ? s->sum[r] + sum * shrink : s->sum[r] * shrink + sum;
    if (!stays)
        s->max[r] = max;
    for (size_t d = 0; d < s->width; d += 16) {
        const v16 old = v16_load_f32(y + d, 16), new = part != NULL ? v16_load_f32(part + d, 16) : v16_zero();
        v16_store_f32(y + d, stays ? v16_fma(new, by, old) : v16_fma(old, by, new), 16);
    }
}

/* x becomes exp(x - max), whose sum is returned; *max is -inf where there is no key to see, and then x is 0. */
static inline float
exponentials(float *x, span all, float *max)
{
    const size_t begin = all.from / 16 * 16, end = wide(all.to);
    v16 peak = v16_splat(-INFINITY), sum = v16_zero();
    for (size_t i = begin; i < end; i += 16)
        peak = v16_max(v16_load_f32(x + i, 16), peak); /* a NaN that comes first is passed over */
    *max = v16_peak(peak);
    for (size_t i = begin; *max == -INFINITY && i < end; i++)
        if (x[i] != x[i])
            *max = x[i]; /* nothing but NaN: the row is NaN, not empty */
    if (*max == -INFINITY && !CK_FAULT(attention_empty_split)) {
        memset(x + begin, 0, (end - begin) * sizeof *x);
        return 0.0f;
    }
    if (CK_FAULT(attention_no_maximum))
        *max = 0;
    const v16 top = v16_splat(*max);
    for (size_t i = begin; i < end; i += 16) {
        const v16 z = v16_sub(v16_load_f32(x + i, 16), top), p = CK_FAULT(attention_no_maximum) ? v16_exp(z) : v16_exp_below(z);
        v16_store_f32(x + i, p, 16);
        sum = v16_add(sum, p);
    }
    return v16_sum(sum);
}

/* Scores to weights, row by row. */
static inline void
weights_of(block *s, size_t s0)
{
    for (size_t r = 0, height; r < s->rows; r += height) {
        height = tile_height(s->rows - r);
        for (size_t i = r; i < r + height; i++) {
            float *x = s->x + i * STEP;
            s->part_max[i] = -INFINITY;
            if (s->tiles[r].from == s->tiles[r].to)
                continue;
            bend(&s->rule, x, NULL, s->of[i], s->tiles[r]);
            add_mask(&s->rule, x, s->of[i], mask_at(&s->rule, head_of(s, i), query_of(s, i), s0));
            s->part_sum[i] = exponentials(x, s->tiles[r], &s->part_max[i]);
        }
    }
}

static inline void
values_where_strange(block *s, size_t s0)
{
    memset(s->part, 0, s->rows * s->width * sizeof *s->part);
    for (size_t r = 0; r < s->rows; r++)
        if (s->of[r].from < s->of[r].to)
            weigh_strange(&s->rule, s->part + r * s->width, s->width, s->x + r * STEP, s->values, s->of[r],
                          mask_at(&s->rule, head_of(s, r), query_of(s, r), s0));
}

/* The partition that begins at key s0, of which `reach` is seen by some row. */
static void
block_partition(block *s, size_t s0, span reach)
{
    const bool few = s->rows <= DIRECT;
    for (size_t r = 0; r < s->rows; r++)
        s->of[r] = within(seen(&s->rule, query_of(s, r)), s0, KEYS);
    spans_of_tiles(s->tiles, s->of, s->rows);
    if (few) {
        for (size_t r = 0; r < s->rows; r++)
            s->tiles[r] = reach;
        direct_scores(s->x, s->q, s->q_step, &s->k, s0, reach, s->rows);
    } else {
        pack_columns(s->columns, &s->k, s0, reach);
        inner_products(s->x, s->q, s->columns, s->D, s->rows, s->tiles, reach);
    }
    weights_of(s, s0);

    memset(s->part, 0, s->rows * s->width * sizeof *s->part);
    if (!few || !direct_values(s->part, s->width, s->x, &s->v, s0, reach, s->rows)) {
        if (pack_rows(s->values, KEYS, &s->v, s0, reach))
            weigh(s->part, s->width, s->x, s->values, s->rows, s->tiles);
        else
            values_where_strange(s, s0);
    }
    for (size_t r = 0; r < s->rows; r++)
        if (s->part_max[r] != -INFINITY || CK_FAULT(attention_empty_split))
            merge(s, r, s->part_max[r], s->part_sum[r], s->part + r * s->width);
}

/* Rows of q, at s->at, and the partitions that hold the keys from..to of what its queries see. */
static inline void
block_forward(block *s, const source *q, size_t from, size_t to)
{
    const span all = seen_by_some(&s->rule, s->t0, s->n), reach = within(all, from, to - from);
    if (s->rows <= DIRECT)
        pack_plain(s->q, s->q_step, q, s->at, s->rows);
    else
        pack_left(s->q, q, s->at, s->rows);
    for (size_t s0 = (from + reach.from) / KEYS * KEYS; reach.from < reach.to && s0 < from + reach.to; s0 += KEYS)
        block_partition(s, s0, within(all, s0, KEYS));
}
#endif
