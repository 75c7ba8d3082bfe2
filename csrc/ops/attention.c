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

CK_RUN(attention_fwd)
{
    REFUSE(a);
    if (a->H == 0 || (a->D == 0 && a->max == NULL && a->sum == NULL && a->lse == NULL)) /* then heads may be any number */
        return CK_OK;
    const size_t heads = a->H / a->G, queries = ck_attention_queries(heads, a->T);
    return ck_run(&(ck_job){.kernel = CK_FAST(attention_fwd), .args = a, .grain = 1,
                            .n = a->B * a->G * (a->T != 0 ? ck_blocks(a->T, queries) : 0),
                            .scratch_each = ck_attention_scratch(heads * queries, a->D)});
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
                            .scratch_each = ck_attention_scratch(heads * ck_attention_queries(heads, a->T), a->D)});
}

/* dk and dv: by keys. */
static ck_status
run_keys(const ck_kernels *k, const struct ck_attention_bwd *a)
{
    if (a->D == 0)
        return CK_OK;
    return ck_run(&(ck_job){.kernel = CK_FAST(attention_bwd_keys), .args = a, .grain = 1,
                            .n = a->B * a->G * ck_blocks(a->S, CK_ATTENTION_KEY_BLOCK),
                            .scratch_each = ck_attention_scratch(CK_ATTENTION_KEY_BLOCK, a->D)});
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
