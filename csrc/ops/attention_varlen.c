#include "ops/attention_varlen.h"

#include "faults.h"
#include "ops/ops.h"
#include "runtime/arena.h"

/* Packed rows [N,H,D] as attention reads [B,H,N,D]: every sequence in the same rows, from its first one on. */
static ck_array
heads_of(ck_array x)
{
    if (x.data == NULL)
        return x;
    return (ck_array){x.data, x.width, 3, {1, x.size[1], x.size[0]}, {0, x.stride[1], x.stride[0]}};
}

static ck_status
refuse_lengths(const ck_array *cu, size_t L, size_t rows, const char *name, const char *what)
{
    if (L == 0 || ck_id(cu, 0) != 0)
        return ck_refuse(CK_BAD_VALUE, "'%s' must begin with 0", name);
    for (size_t b = 1; b < L; b++)
        if (ck_id(cu, b) < ck_id(cu, b - 1))
            return ck_refuse(CK_BAD_VALUE, "'%s' falls from %lld to %lld at place %zu", name, (long long)ck_id(cu, b - 1),
                             (long long)ck_id(cu, b), b);
    if ((uint64_t)ck_id(cu, L - 1) != rows)
        return ck_refuse(CK_BAD_VALUE, "'%s' ends with %lld, and '%s' has %zu rows", name, (long long)ck_id(cu, L - 1),
                         what, rows);
    return CK_OK;
}

static ck_status
refuse_offsets(const int64_t *offsets, size_t B, size_t L)
{
    const int64_t far = INT64_C(1) << 60;
    if (offsets != NULL && B + 1 != L)
        return ck_refuse(CK_BAD_VALUE, "'q_offset' has %zu entries for %zu sequences", B, L - 1);
    for (size_t b = 0; offsets != NULL && b < B; b++)
        if (offsets[b] < -far || offsets[b] > far)
            return ck_refuse(CK_BAD_VALUE, "'q_offset' puts sequence %zu at position %lld", b, (long long)offsets[b]);
    return CK_OK;
}

#define REFUSE(a)                                                                                               \
    do {                                                                                                        \
        ck_status no = ck_attention_refuse((a)->H, (a)->G, (a)->left, (a)->right, (a)->scale, (a)->softcap);    \
        if (no == CK_OK)                                                                                        \
            no = refuse_lengths(&(a)->cu_seqlens_q, (a)->L, (a)->N, "cu_seqlens_q", "q");                       \
        if (no == CK_OK)                                                                                        \
            no = refuse_lengths(&(a)->cu_seqlens_k, (a)->L, (a)->M, "cu_seqlens_k", "k");                       \
        if (no == CK_OK)                                                                                        \
            no = refuse_offsets((a)->q_offset, (a)->B, (a)->L);                                                 \
        if (no != CK_OK)                                                                                        \
            return no;                                                                                          \
    } while (0)

/* Each sequence an item. */
static void
plan_sequences(ck_attention_plan *plan, const ck_array *cu_q, const ck_array *cu_k, const int64_t *offsets, size_t B)
{
    for (size_t b = 0; b < B; b++) {
        const int64_t q = ck_id(cu_q, b), T = ck_id(cu_q, b + 1) - q, k = ck_id(cu_k, b), S = ck_id(cu_k, b + 1) - k;
        plan->item[b] = (ck_attention_item){.q = q, .T = T, .k = k, .S = S, .rows = S, .stat = q,
                                            .offset = offsets != NULL ? offsets[b] : CK_FAULT(varlen_first_key) ? 0 : S - T};
    }
}

CK_RUN(attention_varlen_fwd)
{
    REFUSE(a);
    const size_t B = a->L - 1;
    size_t size;
    if (a->H == 0 || (a->D == 0 && a->max == NULL && a->sum == NULL && a->lse == NULL))
        return CK_OK;
    ck_attention_plan *plan = ck_attention_new_plan(B, &size);
    if (plan == NULL)
        return CK_NO_MEMORY;
    plan_sequences(plan, &a->cu_seqlens_q, &a->cu_seqlens_k, a->q_offset, B);
    const ck_status status = ck_attention_planned(k, &(struct ck_attention_fwd){
        .y = heads_of(a->y), .max = a->max, .sum = a->sum, .lse = a->lse, .q = heads_of(a->q), .k = heads_of(a->k),
        .v = heads_of(a->v), .sinks = a->sinks, .left = a->left, .right = a->right, .causal = a->causal, .scale = a->scale,
        .softcap = a->softcap, .B = B, .H = a->H, .G = a->G, .T = a->N, .S = a->M, .D = a->D}, plan);
    ck_give(plan, size);
    return status;
}

CK_RUN(attention_varlen_bwd)
{
    REFUSE(a);
    if (a->dsinks != NULL && a->sinks == NULL)
        return ck_refuse(CK_BAD_VALUE, "'out.sinks' is given, but no 'sinks'");
    const size_t B = a->L - 1;
    size_t size;
    ck_attention_plan *plan = ck_attention_new_plan(B, &size);
    if (plan == NULL)
        return CK_NO_MEMORY;
    plan_sequences(plan, &a->cu_seqlens_q, &a->cu_seqlens_k, a->q_offset, B);
    const ck_status status = ck_attention_planned_bwd(k, &(struct ck_attention_bwd){
        .dq = heads_of(a->dq), .dk = heads_of(a->dk), .dv = heads_of(a->dv), .dsinks = a->dsinks, .q = heads_of(a->q),
        .k = heads_of(a->k), .v = heads_of(a->v), .y = heads_of(a->y), .dy = heads_of(a->dy), .dlse = a->dlse, .max = a->max,
        .sum = a->sum, .sinks = a->sinks, .left = a->left, .right = a->right, .causal = a->causal, .scale = a->scale,
        .softcap = a->softcap, .accumulate = a->accumulate, .B = B, .H = a->H, .G = a->G, .T = a->N, .S = a->M,
        .D = a->D}, plan);
    ck_give(plan, size);
    return status;
}
