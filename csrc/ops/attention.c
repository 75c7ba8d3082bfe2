#include "ops/attention.h"

#include "ops/ops.h"
#include "runtime/run.h"

#include <math.h>

/* What forward and backward refuse. */
static ck_status
refuse_positions(const int64_t *offsets, const int64_t *lengths, int64_t q_offset, size_t B, size_t S)
{
    const int64_t far = INT64_C(1) << 60;
    for (size_t b = 0; b < B; b++) {
        const int64_t offset = offsets != NULL ? offsets[b] : q_offset;
        if (offset < -far || offset > far)
            return ck_refuse(CK_BAD_VALUE, "'q_offset' puts item %zu at position %lld", b, (long long)offset);
        if (lengths != NULL && (lengths[b] < 0 || (uint64_t)lengths[b] > S))
            return ck_refuse(CK_BAD_VALUE, "'lengths' holds %lld for item %zu, which has room for %zu keys",
                             (long long)lengths[b], b, S);
    }
    return CK_OK;
}

static ck_status
refuse_options(size_t H, size_t G, int64_t left, int64_t right, double scale, double softcap)
{
    if (H != 0 && (G == 0 || H % G != 0))
        return ck_refuse(CK_BAD_VALUE, "'q' has %zu heads, which is no multiple of the %zu of 'k' and 'v'", H, G);
    if (left < -1 || right < -1)
        return ck_refuse(CK_BAD_VALUE, "'window' must be two integers of at least 0, or None for an open side");
    if (!isfinite(scale))
        return ck_refuse(CK_BAD_VALUE, "'scale' must be finite, not %g", scale);
    if (!isfinite(softcap) || softcap < 0)
        return ck_refuse(CK_BAD_VALUE, "'softcap' must be finite and above 0, or None, not %g", softcap);
    return CK_OK;
}

#define REFUSE(a)                                                                                     \
    do {                                                                                              \
        ck_status no = refuse_options((a)->H, (a)->G, (a)->left, (a)->right, (a)->scale, (a)->softcap); \
        if (no == CK_OK)                                                                              \
            no = refuse_positions((a)->offsets, (a)->lengths, (a)->q_offset, (a)->B, (a)->S);         \
        if (no != CK_OK)                                                                              \
            return no;                                                                                \
    } while (0)

/* A plan of a call on B items, without their rows; NULL where there is no memory. */
static ck_attention_plan *
new_plan(size_t B, size_t *size)
{
    *size = sizeof(ck_attention_plan) + (B + 1) * sizeof(ck_attention_item);
    ck_attention_plan *plan = ck_take(*size);
    if (plan != NULL)
        plan->parts = 0;
    return plan;
}

static void
plan_items(ck_attention_plan *plan, size_t B, size_t H, size_t G, size_t T, size_t S, const int64_t *offsets,
           const int64_t *lengths, int64_t q_offset)
{
    for (size_t b = 0; b < B; b++)
        plan->item[b] = (ck_attention_item){
            .T = (int64_t)T, .S = lengths != NULL ? lengths[b] : (int64_t)S, .offset = offsets != NULL ? offsets[b] : q_offset,
            .stat = (int64_t)(b * H * T)};
    ck_attention_count(plan, B, G != 0 ? H / G : 0);
}

void
ck_attention_count(ck_attention_plan *plan, size_t B, size_t heads)
{
    int64_t blocks = 0;
    for (size_t b = 0; b < B; b++) {
        const size_t T = (size_t)plan->item[b].T;
        plan->item[b].block = blocks;
        blocks += T != 0 ? (int64_t)ck_blocks(T, ck_attention_queries(heads, T)) : 0;
    }
    plan->item[B].block = blocks;
}

/* Rows of the largest block, and keys of the longest item. */
static size_t
most_rows(const ck_attention_plan *plan, size_t B, size_t heads)
{
    size_t most = 0;
    for (size_t b = 0; b < B; b++) {
        const size_t T = (size_t)plan->item[b].T, queries = T != 0 ? ck_attention_queries(heads, T) : 0;
        most = queries > most ? queries : most;
    }
    return most * heads;
}

static size_t
most_keys(const ck_attention_plan *plan, size_t B)
{
    int64_t most = 0;
    for (size_t b = 0; b < B; b++)
        most = plan->item[b].S > most ? plan->item[b].S : most;
    return (size_t)most;
}

enum { LEAST_TASKS = 16 }; /* below, partitions are tasks */

/* Partitions as tasks of their own, then their merge: the same sums in the same order. */
static ck_status
run_parts(const ck_kernels *k, const struct ck_attention_fwd *a, size_t blocks, size_t parts, size_t rows)
{
    const size_t part = ck_attention_part(rows, a->D), size = blocks * parts * part * sizeof(float);
    struct ck_attention_merge merge = {*a, ck_take(size), part};
    if (merge.parts == NULL)
        return CK_NO_MEMORY;
    ck_status status = ck_run(&(ck_job){
        .kernel = CK_FAST(attention_fwd), .args = a, .n = blocks * parts, .grain = 1, .work = (void *)merge.parts,
        .work_each = part * sizeof(float), .scratch_each = ck_attention_scratch(rows, a->D)});
    if (status == CK_OK)
        status = ck_run(&(ck_job){.kernel = CK_FAST(attention_merge), .args = &merge, .n = blocks, .grain = 1,
                                  .scratch_each = ck_attention_scratch(rows, a->D)});
    ck_give((void *)merge.parts, size);
    return status;
}

ck_status
ck_attention_planned(const ck_kernels *k, const struct ck_attention_fwd *a, ck_attention_plan *plan)
{
    struct ck_attention_fwd planned = *a;
    const size_t heads = a->H / a->G, blocks = (size_t)plan->item[a->B].block * a->G, rows = most_rows(plan, a->B, heads);
    const size_t parts = ck_blocks(most_keys(plan, a->B), CK_ATTENTION_KEYS);
    planned.plan = (const int64_t *)plan;
    if (blocks < LEAST_TASKS && parts > 1) {
        plan->parts = (int64_t)parts;
        return run_parts(k, &planned, blocks, parts, rows);
    }
    return ck_run(&(ck_job){.kernel = CK_FAST(attention_fwd), .args = &planned, .n = blocks, .grain = 1,
                            .scratch_each = ck_attention_scratch(rows, a->D)});
}

CK_RUN(attention_fwd)
{
    REFUSE(a);
    if (a->H == 0 || (a->D == 0 && a->max == NULL && a->sum == NULL && a->lse == NULL)) /* then heads may be any number */
        return CK_OK;
    size_t size;
    ck_attention_plan *plan = new_plan(a->B, &size);
    if (plan == NULL)
        return CK_NO_MEMORY;
    plan_items(plan, a->B, a->H, a->G, a->T, a->S, a->offsets, a->lengths, a->q_offset);
    const ck_status status = ck_attention_planned(k, a, plan);
    ck_give(plan, size);
    return status;
}

/* dsinks[h] from the share of each task of the first pass, which has one of each head of its group. */
static void
sum_sinks(const struct ck_attention_bwd *a, const float *parts, size_t blocks, size_t heads)
{
    for (size_t h = 0; h < a->H; h++) {
        double sum = a->accumulate ? a->dsinks[h] : 0;
        for (size_t b = 0; b < a->B; b++)
            for (size_t i = 0; i < blocks; i++)
                sum += parts[((b * a->G + h / heads) * blocks + i) * heads + h % heads];
        a->dsinks[h] = (float)sum;
    }
}

/* dq, and the parts of dsinks: by queries. */
static ck_status
run_queries(const ck_kernels *k, const struct ck_attention_bwd *a, float *parts, size_t blocks, size_t heads)
{
    return ck_run(&(ck_job){.kernel = CK_FAST(attention_bwd), .args = a, .n = a->B * a->G * blocks, .grain = 1,
                            .work = parts, .work_each = heads * sizeof(float),
                            .scratch_each = ck_attention_bwd_scratch(heads * ck_attention_queries(heads, a->T), a->D)});
}

/* dk and dv: by keys. */
static ck_status
run_keys(const ck_kernels *k, const struct ck_attention_bwd *a)
{
    if (a->D == 0)
        return CK_OK;
    return ck_run(&(ck_job){.kernel = CK_FAST(attention_bwd_keys), .args = a, .grain = 1,
                            .n = a->B * a->G * ck_blocks(a->S, CK_ATTENTION_KEY_BLOCK),
                            .scratch_each = ck_attention_bwd_scratch(CK_ATTENTION_KEY_BLOCK, a->D)});
}

/* Two passes, so that no task adds to what another writes.  dsinks may accumulate: it comes when all has gone well. */
CK_RUN(attention_bwd)
{
    REFUSE(a);
    if (a->dsinks != NULL && a->sinks == NULL)
        return ck_refuse(CK_BAD_VALUE, "'out.sinks' is given, but no 'sinks'");
    const size_t heads = a->G != 0 ? a->H / a->G : 0, queries = ck_attention_queries(heads, a->T);
    const size_t blocks = a->H != 0 && a->T != 0 ? ck_blocks(a->T, queries) : 0;
    const size_t size = a->dsinks != NULL ? a->B * a->G * blocks * heads * sizeof(float) : 0;
    float *parts = NULL; /* [B,G,blocks,heads] */
    if (size != 0 && (parts = ck_take(size)) == NULL)
        return CK_NO_MEMORY;

    ck_status status = run_queries(k, a, parts, blocks, heads);
    if (status == CK_OK)
        status = run_keys(k, a);
    if (status == CK_OK && a->dsinks != NULL)
        sum_sinks(a, parts, blocks, heads);
    ck_give(parts, size);
    return status;
}
