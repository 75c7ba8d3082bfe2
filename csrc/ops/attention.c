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

ck_status
ck_attention_refuse(size_t H, size_t G, int64_t left, int64_t right, double scale, double softcap)
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
        ck_status no = ck_attention_refuse((a)->H, (a)->G, (a)->left, (a)->right, (a)->scale, (a)->softcap); \
        if (no == CK_OK)                                                                              \
            no = refuse_positions((a)->offsets, (a)->lengths, (a)->q_offset, (a)->B, (a)->S);         \
        if (no != CK_OK)                                                                              \
            return no;                                                                                \
    } while (0)

ck_attention_plan *
ck_attention_new_plan(size_t B, size_t *size)
{
    *size = sizeof(ck_attention_plan) + (B + 1) * sizeof(ck_attention_item);
    ck_attention_plan *plan = ck_take(*size);
    if (plan != NULL)
        plan->parts = 0;
    return plan;
}

/* The items of a call, each with its rows of the arrays. */
static void
plan_items(ck_attention_plan *plan, size_t B, size_t H, size_t T, size_t S, const int64_t *offsets, const int64_t *lengths,
           int64_t q_offset)
{
    for (size_t b = 0; b < B; b++)
        plan->item[b] = (ck_attention_item){
            .T = (int64_t)T, .S = lengths != NULL ? lengths[b] : (int64_t)S,
            .offset = offsets != NULL ? offsets[b] : q_offset,
            .rows = (int64_t)S, .stat = (int64_t)(b * H * T)};
}

/* Blocks before each item. */
static void
count_blocks(ck_attention_plan *plan, size_t B, size_t heads)
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
    const size_t heads = a->H / a->G;
    count_blocks(plan, a->B, heads);
    const size_t blocks = (size_t)plan->item[a->B].block * a->G, rows = most_rows(plan, a->B, heads);
    const size_t parts = ck_blocks(most_keys(plan, a->B), CK_ATTENTION_KEYS);
    planned.plan = (const int64_t *)plan;
    if (blocks == 0)
        return CK_OK;
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
    ck_attention_plan *plan = ck_attention_new_plan(a->B, &size);
    if (plan == NULL)
        return CK_NO_MEMORY;
    plan_items(plan, a->B, a->H, a->T, a->S, a->offsets, a->lengths, a->q_offset);
    const ck_status status = ck_attention_planned(k, a, plan);
    ck_give(plan, size);
    return status;
}

/* ---- backward ---- */

/* dsinks[h] from the share of each chunk. */
static void
sum_sinks(const struct ck_attention_bwd *a, const ck_attention_plan *plan, const double *parts)
{
    const size_t heads = a->H / a->G;
    for (size_t h = 0; h < a->H; h++) {
        double sum = a->accumulate ? a->dsinks[h] : 0;
        for (size_t b = 0; b < a->B; b++) {
            const size_t first = (size_t)plan->item[b].block, chunks = (size_t)plan->item[b + 1].block - first;
            for (size_t c = 0; c < chunks; c++)
                sum += parts[(first * a->G + h / heads * chunks + c) * heads + h % heads];
        }
        a->dsinks[h] = (float)sum;
    }
}

/* Chunks and parts before each item; the longest one's rows of k. */
static size_t
count_chunks(const struct ck_attention_bwd *a, ck_attention_plan *plan)
{
    int64_t chunks = 0, floats = 0, rows = 0;
    for (size_t b = 0; b < a->B; b++) {
        ck_attention_item *item = &plan->item[b];
        const size_t each = ck_attention_chunk(a->H / a->G, (size_t)item->T);
        const int64_t n = item->T != 0 && a->H != 0 ? (int64_t)ck_blocks((size_t)item->T, each) : 0;
        item->block = chunks;
        item->part = floats;
        chunks += n;
        floats += n * (int64_t)(a->G * ck_attention_floats(item, a->D));
        rows = item->rows > rows ? item->rows : rows;
    }
    plan->item[a->B].block = chunks;
    plan->item[a->B].part = floats;
    return (size_t)rows;
}

/* Before kv head `pair`, counted over items: chunks, or floats of their parts. */
static int64_t
before(const ck_attention_plan *plan, size_t G, size_t D, size_t pair, bool floats)
{
    const ck_attention_item *item = &plan->item[pair / G];
    const int64_t chunks = pair % G != 0 ? (int64_t)(pair % G) * (item[1].block - item->block) : 0;
    if (!floats)
        return item->block * (int64_t)G + chunks;
    return item->part + (chunks != 0 ? chunks * (int64_t)ck_attention_floats(item, D) : 0);
}

enum { MOST_PARTS = 1 << 23 }; /* floats of parts at a time, where there are tasks enough */

/* The first kv head behind those that go together with `pair`. */
static size_t
wave_end(const struct ck_attention_bwd *a, const ck_attention_plan *plan, size_t pair)
{
    const int64_t chunks = before(plan, a->G, a->D, pair, false), floats = before(plan, a->G, a->D, pair, true);
    size_t end = pair + 1;
    while (end < a->B * a->G && (before(plan, a->G, a->D, end, false) - chunks < LEAST_TASKS
                                 || before(plan, a->G, a->D, end + 1, true) - floats < MOST_PARTS))
        end++;
    return end;
}

static ck_status
run_wave(const ck_kernels *k, const struct ck_attention_bwd *a, const ck_attention_plan *plan, size_t pair, size_t end,
         size_t rows, size_t keys, float *parts, double *sinks)
{
    const size_t first = (size_t)before(plan, a->G, a->D, pair, false);
    const size_t last = (size_t)before(plan, a->G, a->D, end, false);
    const int64_t base = before(plan, a->G, a->D, pair, true);
    ck_status status = ck_run(&(ck_job){.kernel = CK_FAST(attention_bwd_queries), .n = last - first, .grain = 1,
                                        .args = &(struct ck_attention_bwd_queries){*a, parts, sinks, first, base},
                                        .scratch_each = ck_attention_bwd_scratch(rows, a->D)});
    const size_t blocks = ck_blocks(keys, CK_ATTENTION_FOLD);
    if (status == CK_OK && a->D != 0)
        status = ck_run(&(ck_job){.kernel = CK_FAST(attention_bwd_keys), .n = (end - pair) * blocks, .grain = 1,
                                  .args = &(struct ck_attention_bwd_keys){*a, parts, pair, blocks, base},
                                  .scratch_each = ck_attention_bwd_scratch(1, a->D)});
    return status;
}

/* Wave after wave; the parts of the largest have room in `parts`. */
static ck_status
run_waves(const ck_kernels *k, const struct ck_attention_bwd *a, const ck_attention_plan *plan, size_t keys, double *sinks)
{
    const size_t rows = most_rows(plan, a->B, a->H / a->G);
    int64_t most = 1;
    for (size_t pair = 0, end; pair < a->B * a->G; pair = end) {
        end = wave_end(a, plan, pair);
        const int64_t floats = before(plan, a->G, a->D, end, true) - before(plan, a->G, a->D, pair, true);
        most = floats > most ? floats : most;
    }
    float *parts = ck_take((size_t)most * sizeof *parts);
    ck_status status = parts != NULL ? CK_OK : CK_NO_MEMORY;
    for (size_t pair = 0, end; status == CK_OK && pair < a->B * a->G; pair = end) {
        end = wave_end(a, plan, pair);
        status = run_wave(k, a, plan, pair, end, rows, keys, parts, sinks);
    }
    ck_give(parts, parts != NULL ? (size_t)most * sizeof *parts : 0);
    return status;
}

ck_status
ck_attention_planned_bwd(const ck_kernels *k, const struct ck_attention_bwd *a, ck_attention_plan *plan)
{
    struct ck_attention_bwd planned = *a;
    planned.plan = (const int64_t *)plan;
    if (a->G == 0 || a->B == 0)
        return CK_OK;
    const size_t keys = count_chunks(a, plan), heads = a->H / a->G;
    const size_t size = a->dsinks != NULL ? ((size_t)plan->item[a->B].block * a->G * heads + 1) * sizeof(double) : 0;
    double *sinks = NULL;
    if (size != 0 && (sinks = ck_take(size)) == NULL)
        return CK_NO_MEMORY;
    const ck_status status = run_waves(k, &planned, plan, keys, sinks);
    if (status == CK_OK && sinks != NULL) /* it may accumulate: it comes when all has gone well */
        sum_sinks(a, plan, sinks);
    ck_give(sinks, size);
    return status;
}

CK_RUN(attention_bwd)
{
    REFUSE(a);
    if (a->dsinks != NULL && a->sinks == NULL)
        return ck_refuse(CK_BAD_VALUE, "'out.sinks' is given, but no 'sinks'");
    size_t size;
    ck_attention_plan *plan = ck_attention_new_plan(a->B, &size);
    if (plan == NULL)
        return CK_NO_MEMORY;
    plan_items(plan, a->B, a->H, a->T, a->S, a->offsets, a->lengths, a->q_offset);
    const ck_status status = ck_attention_planned_bwd(k, a, plan);
    ck_give(plan, size);
    return status;
}
