#include "ops/qk_norm_rope.h"

#include "ops/ops.h"
#include "runtime/run.h"

#define AS_ROPE(a)                                                                                                     \
    (&(struct ck_rope_fwd){.cos = (a)->cos, .sin = (a)->sin, .positions = (a)->positions, .N = (a)->N, .T = (a)->T,    \
                           .D = (a)->D, .S = (a)->S, .K = (a)->K, .P = (a)->P})

CK_RUN(qk_norm_rope_fwd)
{
    const size_t tokens = a->T < CK_ROPE_T ? a->T : CK_ROPE_T, items = ck_blocks(a->T, CK_ROPE_T) * a->N;
    struct ck_qk_norm_rope_fwd wide = *a;
    float *weight = NULL;
    ck_status status = ck_refuse_rope(AS_ROPE(a));

    if (status == CK_OK)
        status = ck_widen_weight(k, &wide.weight, a->D, &weight);
    if (status == CK_OK)
        status = ck_tasks(items, ck_grain(tokens * a->D), CK_FAST(qk_norm_rope_fwd), &wide);
    ck_give(weight, a->D * sizeof(float));
    return status;
}

CK_RUN(qk_norm_rope_bwd)
{
    const size_t tokens = a->T < CK_ROPE_T ? a->T : CK_ROPE_T, items = ck_blocks(a->T, CK_ROPE_T) * a->N;
    const size_t each = ck_qk_items(a->T), blocks = ck_blocks(items, each), row = a->D * sizeof(float);
    const size_t at_once = ck_blocks(ck_grain(tokens * a->D), each); /* blocks that make a task */
    struct ck_qk_norm_rope_bwd wide = *a;
    float *weight = NULL, *parts = NULL; /* [D] [blocks,D] */
    ck_status status = ck_refuse_rope(AS_ROPE(a));

    if (status == CK_OK)
        status = ck_widen_weight(k, &wide.weight, a->D, &weight);
    if (status == CK_OK && a->dweight.data != NULL && (parts = ck_take(blocks * row)) == NULL)
        status = CK_NO_MEMORY;
    if (status == CK_OK)
        status = ck_run(&(ck_job){.kernel = CK_FAST(qk_norm_rope_bwd), .args = &wide, .n = items,
                                  .grain = at_once * each, .work = parts, .work_each = at_once * row,
                                  .scratch_each = row});
    if (status == CK_OK && parts != NULL)
        status = ck_sum_rows(k, &(struct ck_sum_rows){.sum = a->dweight, .x = ck_rows(parts, blocks, a->D, sizeof(float)),
                                                      .accumulate = a->accumulate, .R = blocks, .C = a->D});
    ck_give(parts, blocks * row);
    ck_give(weight, row);
    return status;
}
