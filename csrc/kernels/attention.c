#include "kernels/attention_forward.h"

/* The block that a task, or a merge, is about. */
static block
block_at(const struct ck_attention_fwd *a, const ck_attention_place *at, float *scratch)
{
    const size_t queries = ck_attention_queries(a->H / a->G, (size_t)at->item->T), t0 = at->block * queries;
    const size_t left = (size_t)at->item->T - t0;
    return block_of(RULE(a, at->item, at->b), a->D, at->g, a->H / a->G, t0, left < queries ? left : queries, scratch);
}

/* The sink, then y = sum of weighted v / sum of weights. */
static void
finish(block *s, const struct ck_attention_fwd *a, const ck_attention_place *at, size_t r)
{
    const size_t h = head_of(s, r), t = query_of(s, r), row = (size_t)at->item->stat + h * a->T + t;
    elem *y = (elem *)(rows_at(&a->y, at->b, h) + (ptrdiff_t)((size_t)at->item->q + t) * a->y.stride[2]);

    if (a->sinks != NULL && a->sinks[h] != -INFINITY && !CK_FAULT(attention_sinks_ignored))
        merge(s, r, a->sinks[h], 1.0f + 0.0f * a->sinks[h], NULL); /* exp(sink - sink): NaN where that is inf - inf */
    const v16 sum = v16_splat(s->sum[r] != 0.0f ? s->sum[r] : 1.0f);
    for (size_t d = 0; d < s->D; d += 16)
        v16_store(y + d, v16_div(v16_load_f32(s->y + r * s->width + d, 16), sum), s->D - d);
    if (a->max != NULL)
        a->max[row] = s->max[r];
    if (a->sum != NULL)
        a->sum[row] = s->sum[r];
    if (a->lse != NULL)
        a->lse[row] = (float)((double)s->max[r] + log((double)s->sum[r])); /* -inf for an empty row */
}

static void
forward(const struct ck_attention_fwd *a, const ck_attention_plan *plan, ck_attention_place at, float *part,
        float *scratch)
{
    at.block = at.blocks - 1 - at.block; /* the last ones, which see most under a causal mask, first */
    block s = block_at(a, &at, scratch);
    const source q = source_of(&a->q, at.b, 0, a->D);
    const size_t first = (size_t)at.item->k;

    const ck_kv_cache *cache = a->cache;
    const size_t k_of = CK_FAULT(attention_group_k) ? (at.g + 1) % a->G : at.g;
    const size_t v_of = CK_FAULT(attention_group_v) ? (at.g + 1) % a->G : at.g;
    s.k = cache != NULL ? source_of_cache(cache, &cache->k, at.b, k_of) : source_of(&a->k, at.b, k_of, a->D);
    s.v = cache != NULL ? source_of_cache(cache, &cache->v, at.b, v_of) : source_of(&a->v, at.b, v_of, a->D);
    s.k.first += (ptrdiff_t)first * s.k.step;
    s.v.first += (ptrdiff_t)first * s.v.step;
    for (size_t r = 0; r < s.rows; r++)
        s.at[r] = rows_at(&a->q, at.b, head_of(&s, r)) + (ptrdiff_t)((size_t)at.item->q + query_of(&s, r)) * q.step;
    if (plan->parts == 0) {
        block_forward(&s, &q, 0, s.rule.keys);
        for (size_t r = 0; r + CK_FAULT(attention_last_query) < s.rows; r++)
            finish(&s, a, &at, r);
        return;
    }
    block_forward(&s, &q, at.part * KEYS, (at.part + 1) * KEYS);
    memcpy(part, s.max, s.rows * sizeof *part);
    memcpy(part + s.rows, s.sum, s.rows * sizeof *part);
    memcpy(part + 2 * s.rows, s.y, s.rows * s.width * sizeof *part);
}

CK_KERNEL(attention_fwd)
{
    const ck_attention_plan *plan = (const ck_attention_plan *)a->plan;
    for (size_t i = task.begin; i < task.end; i++)
        forward(a, plan, ck_attention_find(plan, a->B, a->G, i), task.work, task.scratch);
}

CK_KERNEL(attention_merge)
{
    const ck_attention_plan *plan = (const ck_attention_plan *)a->of.plan;
    const size_t parts = (size_t)plan->parts;
    for (size_t i = task.begin; i < task.end; i++) {
        ck_attention_place at = ck_attention_find(plan, a->of.B, a->of.G, i * parts);
        const float *part = a->parts + i * parts * a->part;
        at.block = at.blocks - 1 - at.block;
        block s = block_at(&a->of, &at, task.scratch);
        for (size_t p = 0; p + CK_FAULT(attention_last_part) < parts; p++, part += a->part)
            for (size_t r = 0; r < s.rows; r++)
                if (part[r] != -INFINITY)
                    merge(&s, r, part[r], part[s.rows + r], part + 2 * s.rows + r * s.width);
        for (size_t r = 0; r < s.rows; r++)
            finish(&s, &a->of, &at, r);
    }
}
