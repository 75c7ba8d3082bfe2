#include "kernels/attention_tile.h"

/*
 * A task of the first pass is a chunk of queries, all heads of a group, taken block by block as in forward, each
 * against the keys in parts of BACK.  The scores and the gradients of the weights are computed again, once, and
 * give all three gradients: dq of the block, and what the chunk adds to dk and dv, which it keeps to itself.  The
 * second pass adds the chunks, in order. The chains of a score are those of forward, so exp(x - max) is at most 1,
 * as it was there.
 */
enum { BACK = 128 }; /* keys at a time: a multiple of TERMS, so it does not enter into the order */

typedef struct {
    rule rule;
    source q, k, v, y, dy;
    size_t D, width, g, heads, t0, n, rows;        /* n queries from t0; row = query * heads + head */
    size_t step;                                   /* from one plain row to the next */
    float *q_left, *dy_left, *q_rows, *dy_rows;    /* packed tiles, and plain rows */
    float *dq, *x, *dp, *slope;                    /* [rows,width]  [rows,STEP] three times */
    float *max, *share, *dot;                      /* [rows]; share = 1 / sum; both 0 where the query saw nothing */
    float *k_columns, *v_columns, *k_rows;
    span *of, *tiles;
    place *q_at, *y_at, *dy_at;
    bool finite;                                   /* q and dy of the block */
} block;

static inline size_t head_of(const block *s, size_t r) { return s->g * s->heads + r % s->heads; }
static inline size_t query_of(const block *s, size_t r) { return s->t0 + r / s->heads; }

static block
layout(size_t D, size_t rows, float *scratch)
{
    const size_t width = wide(D), step = width + 16;
    block s = {.D = D, .width = width, .step = step, .q_left = scratch};
    s.dy_left = s.q_left + rows * width;
    s.q_rows = s.dy_left + rows * width;
    s.dy_rows = s.q_rows + rows * step;
    s.dq = s.dy_rows + rows * step;
    s.x = s.dq + rows * width;
    s.dp = s.x + rows * STEP;
    s.slope = s.dp + rows * STEP;
    s.k_columns = s.slope + rows * STEP;
    s.v_columns = s.k_columns + BACK * width;
    s.k_rows = s.v_columns + BACK * width;
    s.max = s.k_rows + KEYS * width;
    s.share = s.max + rows;
    s.dot = s.share + rows;
    s.of = (span *)(s.dot + 2 * rows);
    s.tiles = s.of + rows;
    s.q_at = (place *)(s.tiles + rows);
    s.y_at = s.q_at + rows;
    s.dy_at = s.y_at + rows;
    return s;
}

/*
 * dot[t] = sum_d dy[t,d] * y[t,d] - dlse[t], in the order in which a tile sums dy * v: where one key has all the
 * weight, y is its v and the two cancel to 0, as they should.
 */
static void
dots(const block *s)
{
    for (size_t r = 0; r < s->rows; r += 16) {
        float x[16][16], z[16][16];
        const size_t m = s->rows - r < 16 ? s->rows - r : 16;
        v16 dot = v16_zero(), chain = v16_zero();
        for (size_t d = 0; d < s->D; d += 16) {
            if (d != 0 && d % CHAIN == 0) {
                dot = d == CHAIN ? chain : v16_add(dot, chain);
                chain = v16_zero();
            }
            turn(x[0], &s->dy, s->dy_at + r, m, d);
            turn(z[0], &s->y, s->y_at + r, m, d);
            for (size_t c = 0; c < (s->D - d < 16 ? s->D - d : 16); c++)
                chain = v16_fma(v16_load_f32(x[c], 16), v16_load_f32(z[c], 16), chain);
        }
        v16_store_f32(s->dot + r, s->D <= CHAIN ? chain : v16_add(dot, chain), m);
    }
}

static bool
all_finite(const float *rows, size_t n)
{
    v16 strange = v16_zero();
    for (size_t i = 0; i < n; i += 16)
        strange = v16_fma(v16_load_f32(rows + i, n - i), v16_zero(), strange);
    return v16_sum(strange) == 0.0f;
}

/* What backward knows of the rows of a block. */
static void
take_rows(block *s, const struct ck_attention_bwd *a, const ck_attention_place *at)
{
    for (size_t r = 0; r < s->rows; r++) {
        const size_t h = head_of(s, r), t = (size_t)at->item->q + query_of(s, r);
        s->q_at[r] = rows_at(&a->q, at->b, h) + (ptrdiff_t)t * a->q.stride[2];
        s->y_at[r] = rows_at(&a->y, at->b, h) + (ptrdiff_t)t * a->y.stride[2];
        s->dy_at[r] = rows_at(&a->dy, at->b, h) + (ptrdiff_t)t * a->dy.stride[2];
    }
    pack_left(s->q_left, &s->q, s->q_at, s->rows);
    pack_left(s->dy_left, &s->dy, s->dy_at, s->rows);
    pack_plain(s->q_rows, s->step, &s->q, s->q_at, s->rows);
    pack_plain(s->dy_rows, s->step, &s->dy, s->dy_at, s->rows);
    s->finite = all_finite(s->q_left, s->rows * s->D) && all_finite(s->dy_left, s->rows * s->D);
    dots(s);
    for (size_t r = 0; r < s->rows; r++) {
        const size_t row = (size_t)at->item->stat + head_of(s, r) * a->T + query_of(s, r);
        s->dot[r] -= a->dlse != NULL ? a->dlse[row] : 0.0f;
        s->max[r] = a->sum[row] != 0.0f ? a->max[row] : 0.0f;
        s->share[r] = a->sum[row] != 0.0f ? 1.0f / a->sum[row] : 0.0f;
    }
}

/* x: scores to weights; dp: gradients of weights to those of scores.  Both 0 where x is -inf. */
ALWAYS void
differentiate(float *x, float *dp, const float *slope, size_t i, v16 max, v16 share, v16 dot)
{
    const v16 z = v16_load_f32(x + i, 16), p = v16_mul(v16_exp_below(v16_sub(z, max)), share);
    v16 dx = v16_mul(p, v16_sub(v16_load_f32(dp + i, 16), CK_FAULT(attention_jacobian) ? v16_zero() : dot));
    if (slope != NULL)
        dx = v16_mul(dx, v16_load_f32(slope + i, 16));
    const v16_mask shut = v16_eq(z, v16_splat(-INFINITY));
    v16_store_f32(x + i, v16_select(shut, v16_zero(), p), 16);
    v16_store_f32(dp + i, v16_select(shut, v16_zero(), dx), 16);
}

/* Scores to weights and their gradients, row by row; 0 for the keys of `reach` that a tile does not see. */
static void
weights_of(const block *s, size_t s0, span reach)
{
    const size_t begin = reach.from / 16 * 16, end = wide(reach.to);
    for (size_t r = 0, height; r < s->rows; r += height) {
        height = tile_height(s->rows - r);
        const bool empty = s->tiles[r].from == s->tiles[r].to;
        const size_t from = empty ? end : s->tiles[r].from / 16 * 16, to = empty ? end : wide(s->tiles[r].to);
        for (size_t i = r; i < r + height; i++) {
            for (size_t j = begin; j < from; j += 16)
                v16_store_f32(s->x + i * STEP + j, v16_zero(), 16), v16_store_f32(s->dp + i * STEP + j, v16_zero(), 16);
            for (size_t j = to; j < end; j += 16)
                v16_store_f32(s->x + i * STEP + j, v16_zero(), 16), v16_store_f32(s->dp + i * STEP + j, v16_zero(), 16);
        }
        for (size_t i = r; i < r + height && !empty; i++) {
            float *x = s->x + i * STEP, *dp = s->dp + i * STEP;
            float *slope = s->rule.cap > 0.0f ? s->slope + i * STEP : NULL;
            const v16 max = v16_splat(s->max[i]), share = v16_splat(s->share[i]), dot = v16_splat(s->dot[i]);
            bend(&s->rule, x, slope, s->of[i], s->tiles[r]);
            add_mask(&s->rule, x, s->of[i], mask_at(&s->rule, head_of(s, i), query_of(s, i), s0));
            for (size_t j = from; j < to; j += 16)
                differentiate(x, dp, slope, j, max, share, dot);
        }
    }
}

/* ---- what the block adds to the gradients of keys ---- */

static void
multiply_turned(const product *o, const float *a, size_t rows, size_t r, size_t j, size_t panels)
{
    multiply(o, a, rows, r, j, panels, TURNED);
}

/* Rows that see some of the keys from..to: they lie together, as both ends of what a query sees rise with it. */
static span
rows_that_see(const block *s, size_t from, size_t to)
{
    size_t first = 0, last = s->rows;
    while (first < last && !(s->of[first].from < to && s->of[first].to > from))
        first++;
    while (last > first && !(s->of[last - 1].from < to && s->of[last - 1].to > from))
        last--;
    return (span){first, last};
}

/* sum[key,:] += sum over rows, ascending, of w[row,key] * rows[row]: chains of TERMS rows of the block. */
static void
weigh_turned(const block *s, float *sum, const float *w, const float *rows, span keys)
{
    product o = {.c = sum, .ldc = s->width, .b = rows, .panel = 16, .step = s->step, .chain = TERMS};
    for (size_t j = 0, n; j < s->width / 16; j += n) {
        n = panels_from(j, s->width / 16);
        for (size_t i = keys.from, height; i < keys.to; i += height) {
            height = tile_height(keys.to - i);
            o.k = rows_that_see(s, i, i + height);
            if (o.k.from < o.k.to)
                multiply_turned(&o, w + i, height, i, j, n);
        }
    }
}

/* The same where a row is not finite: it is left out for keys that it does not see, or that its mask closes. */
static void
weigh_turned_strange(const block *s, float *sum, const float *w, const float *rows, span keys, size_t s0)
{
    const ptrdiff_t step = mask_step(&s->rule);
    for (size_t i = keys.from; i < keys.to; i++)
        for (size_t d = 0; d < s->width; d += 16) {
            v16 all = v16_load_f32(sum + i * s->width + d, 16), chain = v16_zero();
            for (size_t r = 0; r < s->rows; r++) {
                if (i >= s->of[r].from && i < s->of[r].to
                    && !is_shut(&s->rule, mask_at(&s->rule, head_of(s, r), query_of(s, r), s0), step, i))
                    chain = v16_fma(v16_splat(w[r * STEP + i]), v16_load_f32(rows + r * s->step + d, 16), chain);
                if ((r + 1) % TERMS == 0 || r + 1 == s->rows) {
                    all = v16_add(all, chain);
                    chain = v16_zero();
                }
            }
            v16_store_f32(sum + i * s->width + d, all, 16);
        }
}

/* A block against the keys s0 + reach: adds to its dq, and to dk and dv of these keys. */
static void
block_keys(block *s, float *dk, float *dv, size_t s0, span reach)
{
    for (size_t r = 0; r < s->rows; r++)
        s->of[r] = within(seen(&s->rule, query_of(s, r)), s0, BACK);
    spans_of_tiles(s->tiles, s->of, s->rows);
    pack_columns(s->k_columns, &s->k, s0, reach);
    pack_columns(s->v_columns, &s->v, s0, reach);
    const bool finite = pack_rows(s->k_rows, KEYS, &s->k, s0, reach);
    inner_products(s->x, s->q_left, s->k_columns, s->D, s->rows, s->tiles, reach);
    inner_products(s->dp, s->dy_left, s->v_columns, s->D, s->rows, s->tiles, reach);
    weights_of(s, s0, reach);

    for (size_t r = 0; !finite && r < s->rows; r++)
        if (s->of[r].from < s->of[r].to)
            weigh_strange(&s->rule, s->dq + r * s->width, s->width, s->dp + r * STEP, s->k_rows, s->of[r],
                          mask_at(&s->rule, head_of(s, r), query_of(s, r), s0));
    if (finite)
        weigh(s->dq, s->width, s->dp, s->k_rows, s->rows, s->tiles);
    for (size_t r = 0; CK_FAULT(attention_group_sum) && r < s->rows; r++)
        if (r % s->heads != 0) {
            memset(s->x + r * STEP, 0, STEP * sizeof *s->x);
            memset(s->dp + r * STEP, 0, STEP * sizeof *s->dp);
        }
    if (s->finite) {
        weigh_turned(s, dk, s->dp, s->q_rows, reach);
        weigh_turned(s, dv, s->x, s->dy_rows, reach);
    } else {
        weigh_turned_strange(s, dk, s->dp, s->q_rows, reach, s0);
        weigh_turned_strange(s, dv, s->x, s->dy_rows, reach, s0);
    }
}

/* A row of D, times a factor, to where it belongs. */
static inline void
put_row(char *row, const float *from, size_t D, float factor)
{
    for (size_t d = 0; d < D; d += 16)
        v16_store((elem *)row + d, v16_mul(v16_load_f32(from + d, 16), v16_splat(factor)), D - d);
}

/* Queries t0..: their dq; what they add to [keys,width] of dk and dv; sinks[j] += the share of head j in dsinks. */
static void
block_backward(block *s, const struct ck_attention_bwd *a, const ck_attention_place *at, float *dk, float *dv,
               double *sinks)
{
    take_rows(s, a, at);
    for (size_t r = 0; sinks != NULL && r < s->rows; r++)
        if (s->share[r] != 0.0f)
            sinks[r % s->heads] -= exp((double)a->sinks[head_of(s, r)] - s->max[r]) * s->share[r] * s->dot[r];
    memset(s->dq, 0, s->rows * s->width * sizeof *s->dq);
    const span all = seen_by_some(&s->rule, s->t0, s->n);
    for (size_t s0 = all.from / BACK * BACK; s0 < all.to; s0 += BACK)
        block_keys(s, dk + s0 * s->width, dv + s0 * s->width, s0, within(all, s0, BACK));
    for (size_t r = 0; r < s->rows; r++) {
        const size_t t = (size_t)at->item->q + query_of(s, r);
        put_row(rows_at(&a->dq, at->b, head_of(s, r)) + (ptrdiff_t)t * a->dq.stride[2], s->dq + r * s->width, s->D,
                s->rule.scale);
    }
}

static inline source
from_row(source x, int64_t row)
{
    x.first += (ptrdiff_t)row * x.step;
    return x;
}

/* Queries of a chunk. */
static inline span
queries_of(const ck_attention_item *item, size_t heads, size_t chunk)
{
    const size_t T = (size_t)item->T, n = ck_attention_chunk(heads, T);
    return (span){chunk * n, T - chunk * n < n ? T : (chunk + 1) * n};
}

CK_KERNEL(attention_bwd_queries)
{
    const struct ck_attention_bwd *of = &a->of;
    const ck_attention_plan *plan = (const ck_attention_plan *)of->plan;
    const size_t heads = of->H / of->G;
    for (size_t i = task.begin; i < task.end; i++) {
        ck_attention_place at = ck_attention_find(plan, of->B, of->G, a->first + i);
        at.block = at.blocks - 1 - at.block; /* the last ones, which see most under a causal mask, first */
        const size_t T = (size_t)at.item->T, queries = ck_attention_queries(heads, T);
        const span chunk = queries_of(at.item, heads, at.block);
        block s = layout(of->D, heads * queries, task.scratch);
        s.rule = RULE(of, at.item, at.b);
        s.g = at.g, s.heads = heads;
        s.q = source_of(&of->q, 0, 0, of->D);
        s.y = source_of(&of->y, 0, 0, of->D);
        s.dy = source_of(&of->dy, 0, 0, of->D);
        s.k = from_row(source_of(&of->k, at.b, at.g, of->D), at.item->k);
        s.v = from_row(source_of(&of->v, at.b, at.g, of->D), at.item->k);

        const size_t keys = s.rule.keys * s.width;
        float *dk = a->parts + ck_attention_part_at(&at, of->D) - a->base, *dv = dk + keys;
        double *sinks = a->sinks != NULL ? a->sinks + ck_attention_number(&at, of->G) * heads : NULL;
        for (size_t j = 0; sinks != NULL && j < heads; j++)
            sinks[j] = 0;
        const span all = seen_by_some(&s.rule, chunk.from, chunk.to - chunk.from);
        memset(dk + all.from * s.width, 0, (all.to - all.from) * s.width * sizeof *dk);
        memset(dv + all.from * s.width, 0, (all.to - all.from) * s.width * sizeof *dv);
        for (size_t t = chunk.from; t < chunk.to; t += queries) {
            s.t0 = t;
            s.n = chunk.to - t < queries ? chunk.to - t : queries;
            s.rows = s.n * heads;
            block_backward(&s, of, &at, dk, dv, sinks);
        }
    }
}

/* to[key,:] = factor * the sum of the chunks' parts, ascending: of those whose queries see some key near it. */
static void
fold(const struct ck_attention_bwd_keys *a, const ck_attention_place *at, const ck_array *to, size_t skip, span keys,
     float factor)
{
    const struct ck_attention_bwd *of = &a->of;
    const ck_attention_item *item = at->item;
    const size_t D = of->D, width = wide(D), heads = of->H / of->G;
    const rule u = RULE(of, item, at->b);
    ck_attention_place chunk = *at;
    span seen_by[CK_ATTENTION_CHUNKS];
    for (size_t c = 0; c < at->blocks; c++) {
        const span queries = queries_of(item, heads, c);
        seen_by[c] = seen_by_some(&u, queries.from, queries.to - queries.from);
    }
    for (size_t s = keys.from; s < keys.to; s++) {
        elem *row = (elem *)(rows_at(to, at->b, at->g) + (ptrdiff_t)((size_t)item->k + s) * to->stride[2]);
        for (size_t d = 0; d < D; d += 16) {
            v16 sum = v16_zero();
            for (size_t c = 0; c < at->blocks; c++) {
                if (s < seen_by[c].from || s >= seen_by[c].to || (CK_FAULT(attention_chunk_lost) && c + 1 == at->blocks))
                    continue;
                chunk.block = c;
                const float *part = a->parts + ck_attention_part_at(&chunk, D) - a->base + skip + s * width;
                sum = v16_add(sum, v16_load_f32(part + d, 16));
            }
            v16_store(row + d, v16_mul(sum, v16_splat(factor)), D - d);
        }
    }
}

CK_KERNEL(attention_bwd_keys)
{
    const struct ck_attention_bwd *of = &a->of;
    const ck_attention_plan *plan = (const ck_attention_plan *)of->plan;
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t pair = a->first + i / a->blocks, b = pair / of->G, g = pair % of->G;
        const size_t s = i % a->blocks * CK_ATTENTION_FOLD;
        const ck_attention_item *item = &plan->item[b];
        const ck_attention_place at = {item, b, g, 0, (size_t)(item[1].block - item->block), 0};
        const span keys = within((span){0, (size_t)item->rows}, s, CK_ATTENTION_FOLD);
        const span there = {keys.from + s, keys.to + s};
        fold(a, &at, &of->dk, 0, there, (float)of->scale);
        fold(a, &at, &of->dv, (size_t)item->S * wide(of->D), there, 1.0f);
    }
}
