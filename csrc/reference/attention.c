#include "reference/reference.h"
#include "reference/kv_store.h"
#include "ops/attention.h"

/* Row (b, i, j) of an array with three leading axes. */
static const elem *
at(const ck_array *x, size_t b, size_t i, size_t j)
{
    return ck_row(x, (b * x->size[1] + i) * x->size[2] + j);
}

/* Whether a key is within reach of a query at p; its mask is another matter. */
static bool
in_reach(int64_t p, int64_t s, int64_t length, int causal, int64_t left, int64_t right)
{
    return s < length && !(causal && s > p) && !(left >= 0 && p - s > left) && !(right >= 0 && s - p > right);
}

/* The score of a key in reach, -inf where the mask closes it; *slope, if wanted, its derivative by scale * q.k */
static double
score(double dot, double scale, double softcap, const ck_array *mask, size_t row, size_t s, double *slope)
{
    double x = dot * scale, more = 0;
    if (mask->data) {
        const char *m = (const char *)ck_row(mask, row) + (ptrdiff_t)s * mask->stride[3];
        more = mask->width == 1 ? (*m ? 0 : -INFINITY) : get((const elem *)m);
    }
    if (more == -INFINITY)
        return more;
    if (slope)
        *slope = softcap > 0 ? 1 - tanh(x / softcap) * tanh(x / softcap) : 1;
    return (softcap > 0 ? softcap * tanh(x / softcap) : x) + more;
}

/* A mask's first three axes as rows; `mask` as ck_row wants it for row (b, h, t). */
static ck_array
rows_of(ck_array mask)
{
    mask.n = 3;
    return mask;
}

/* Channel d of key s of (b, g), or of its value, in an array or in a cache. */
static double
value(const struct ck_attention_fwd *a, const ck_array *x, const ck_kv_part *part, size_t b, size_t g, size_t s, size_t d)
{
    if (a->cache)
        return channel(&a->cache->form, part, row_of(&a->cache->form, b, g, s), d);
    return get(&at(x, b, g, s)[d]);
}

static double
dot_with_key(const struct ck_attention_fwd *a, const elem *q, size_t b, size_t g, size_t s)
{
    double sum = 0;
    for (size_t d = 0; d < a->D; d++)
        sum += get(&q[d]) * value(a, &a->k, a->cache ? &a->cache->k : NULL, b, g, s, d);
    return sum;
}

/* One query against all keys. */
static void
forward(const struct ck_attention_fwd *a, const ck_array *mask, const ck_attention_place *at_, size_t h, size_t t,
        double *sum_v)
{
    const ck_attention_item *item = at_->item;
    const size_t b = at_->b, g = h / (a->H / a->G), row = (b * a->H + h) * a->T + t, stat = item->stat + h * a->T + t;
    const elem *q = at(&a->q, b, h, item->q + t);
    elem *y = (elem *)at(&a->y, b, h, item->q + t);
    double max = -INFINITY, sum = 0;

    for (int64_t s = 0; s < item->S; s++)
        if (in_reach(item->offset + (int64_t)t, s, item->S, a->causal, a->left, a->right)) {
            const double x = score(dot_with_key(a, q, b, g, item->k + s), a->scale, a->softcap, mask, row, s, NULL);
            max = x > max || isnan(x) ? x : max;
        }
    if (a->sinks && !(a->sinks[h] <= max))
        max = a->sinks[h];
    max = (float)max; /* as it is saved, so that sum belongs to it */

    for (size_t d = 0; d < a->D; d++)
        sum_v[d] = 0;
    for (int64_t s = 0; s < item->S; s++) {
        double x = -INFINITY;
        if (in_reach(item->offset + (int64_t)t, s, item->S, a->causal, a->left, a->right))
            x = score(dot_with_key(a, q, b, g, item->k + s), a->scale, a->softcap, mask, row, s, NULL);
        if (x == -INFINITY)
            continue;
        sum += exp(x - max);
        for (size_t d = 0; d < a->D; d++)
            sum_v[d] += exp(x - max) * value(a, &a->v, a->cache ? &a->cache->v : NULL, b, g, item->k + s, d);
    }
    if (a->sinks && max != -INFINITY)
        sum += exp(a->sinks[h] - max);
    for (size_t d = 0; d < a->D; d++)
        set(&y[d], sum != 0 ? sum_v[d] / sum : 0);
    if (a->max)
        a->max[stat] = (float)max;
    if (a->sum)
        a->sum[stat] = (float)sum;
    if (a->lse)
        a->lse[stat] = (float)(max + log(sum));
}

CK_KERNEL(attention_fwd)
{
    const ck_attention_plan *plan = (const ck_attention_plan *)a->plan;
    const ck_array mask = rows_of(a->attn_mask);
    for (size_t i = task.begin; i < task.end; i++) {
        const ck_attention_place place = ck_attention_find(plan, a->B, a->G, i);
        const size_t heads = a->H / a->G, T = place.item->T, queries = ck_attention_queries(heads, T);
        if (place.part == 0) /* the first does it all */
            for (size_t h = place.g * heads; h < (place.g + 1) * heads; h++)
                for (size_t t = place.block * queries; t < T && t < (place.block + 1) * queries; t++)
                    forward(a, &mask, &place, h, t, task.scratch);
    }
}

/* There is nothing to merge: attention_fwd does not cut its sums. */
CK_KERNEL(attention_merge)
{
    (void)a;
    (void)task;
}

/* ---- backward ---- */

/* One query: where it stands, and dot[t]. */
typedef struct {
    const struct ck_attention_bwd *a;
    const ck_attention_item *item;
    size_t b, h, t, row, stat; /* row of the call's, and place of its statistics */
    double dot;
} query;

static query
query_of(const struct ck_attention_bwd *a, const ck_attention_item *item, size_t b, size_t h, size_t t)
{
    query x = {a, item, b, h, t, (b * a->H + h) * a->T + t, item->stat + h * a->T + t, 0};
    const elem *dy = at(&a->dy, b, h, item->q + t), *y = at(&a->y, b, h, item->q + t);
    x.dot = a->dlse ? -a->dlse[x.stat] : 0;
    for (size_t d = 0; d < a->D; d++)
        x.dot += get(&dy[d]) * get(&y[d]);
    return x;
}

/* p[t,s] and dx[t,s], the latter by scale * q.k; both 0 where the key is not seen. */
static void
weights(const query *x, int64_t s, double *p, double *dx)
{
    const struct ck_attention_bwd *a = x->a;
    const ck_array mask = rows_of(a->attn_mask);
    const size_t g = x->h / (a->H / a->G);
    const elem *dy = at(&a->dy, x->b, x->h, x->item->q + x->t), *v = at(&a->v, x->b, g, x->item->k + s);
    const elem *q = at(&a->q, x->b, x->h, x->item->q + x->t), *k = at(&a->k, x->b, g, x->item->k + s);
    double slope = 1, z = -INFINITY, dp = 0, dot = 0;

    *p = *dx = 0;
    for (size_t d = 0; d < a->D; d++)
        dot += get(&q[d]) * get(&k[d]);
    if (in_reach(x->item->offset + (int64_t)x->t, s, x->item->S, a->causal, a->left, a->right))
        z = score(dot, a->scale, a->softcap, &mask, x->row, s, &slope);
    if (z == -INFINITY)
        return;
    for (size_t d = 0; d < a->D; d++)
        dp += get(&dy[d]) * get(&v[d]);
    *p = exp(z - a->max[x->stat]) / a->sum[x->stat];
    *dx = *p * (dp - x->dot) * slope;
}

/* dq of one query */
static void
backward(const query *x, double *dq)
{
    const struct ck_attention_bwd *a = x->a;
    double p, dx;
    for (size_t d = 0; d < a->D; d++)
        dq[d] = 0;
    for (int64_t s = 0; s < x->item->S; s++) {
        weights(x, s, &p, &dx);
        for (size_t d = 0; dx != 0 && d < a->D; d++)
            dq[d] += dx * get(&at(&a->k, x->b, x->h / (a->H / a->G), x->item->k + s)[d]);
    }
    for (size_t d = 0; d < a->D; d++)
        set(&((elem *)at(&a->dq, x->b, x->h, x->item->q + x->t))[d], dq[d] * a->scale);
}

CK_KERNEL(attention_bwd_queries)
{
    const struct ck_attention_bwd *of = &a->of;
    const size_t heads = of->H / of->G;
    for (size_t i = task.begin; i < task.end; i++) {
        const ck_attention_plan *plan = (const ck_attention_plan *)of->plan;
        const ck_attention_place place = ck_attention_find(plan, of->B, of->G, a->first + i);
        const size_t T = place.item->T, n = ck_attention_chunk(heads, T);
        for (size_t j = 0; j < heads; j++) {
            double sink = 0;
            for (size_t t = place.block * n; t < T && t < (place.block + 1) * n; t++) {
                const query x = query_of(of, place.item, place.b, place.g * heads + j, t);
                backward(&x, task.scratch);
                if (a->sinks && of->sum[x.stat] != 0)
                    sink -= exp(of->sinks[x.h] - of->max[x.stat]) / of->sum[x.stat] * x.dot;
            }
            if (a->sinks)
                a->sinks[ck_attention_number(&place, of->G) * heads + j] = sink;
        }
    }
}

/* All at once: the chunks have left no parts here. */
CK_KERNEL(attention_bwd_keys)
{
    const struct ck_attention_bwd *of = &a->of;
    const size_t D = of->D, heads = of->H / of->G;
    double *dk = task.scratch, *dv = dk + D, p, dx;

    for (size_t i = task.begin; i < task.end; i++) {
        const size_t b = (a->first + i / a->blocks) / of->G, g = (a->first + i / a->blocks) % of->G;
        const int64_t s0 = i % a->blocks * CK_ATTENTION_FOLD;
        const ck_attention_item *item = (const ck_attention_item *)((const ck_attention_plan *)of->plan)->item + b;
        for (int64_t s = s0; s < item->rows && s < s0 + CK_ATTENTION_FOLD; s++) {
            memset(dk, 0, 2 * D * sizeof *dk);
            for (size_t h = g * heads; h < (g + 1) * heads; h++)
                for (int64_t t = 0; t < item->T; t++) {
                    const query x = query_of(of, item, b, h, t);
                    weights(&x, s, &p, &dx);
                    for (size_t d = 0; d < D; d++) {
                        dk[d] += dx != 0 ? dx * get(&at(&of->q, b, h, item->q + t)[d]) : 0;
                        dv[d] += p != 0 ? p * get(&at(&of->dy, b, h, item->q + t)[d]) : 0;
                    }
                }
            for (size_t d = 0; d < D; d++) {
                set(&((elem *)at(&of->dk, b, g, item->k + s))[d], dk[d] * of->scale);
                set(&((elem *)at(&of->dv, b, g, item->k + s))[d], dv[d]);
            }
        }
    }
}
