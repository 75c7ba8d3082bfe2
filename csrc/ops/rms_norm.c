#include "ops/rms_norm.h"

#include "ops/ops.h"
#include "ops/norm_rows.h"
#include "runtime/run.h"

CK_RUN(rms_norm_fwd)
{
    struct ck_rms_norm_fwd wide = *a;
    float *weight;
    ck_status status = ck_widen_weight(k, &wide.weight, a->C, &weight);

    if (status == CK_OK)
        status = ck_run_norm(CK_FAST(rms_norm_fwd), &wide, a->R, a->C, ck_grain(a->C), NULL);
    ck_give(weight, a->C * sizeof(float));
    return status;
}

CK_RUN(rms_norm_bwd)
{
    const size_t blocks = ck_blocks(a->R, CK_RMS_NORM_ROWS), row = a->C * sizeof(float);
    const size_t at_once = ck_blocks(ck_grain(a->C), CK_RMS_NORM_ROWS); /* blocks that make a task */
    struct ck_rms_norm_bwd wide = *a;
    float *weight, *parts = NULL; /* [C] [blocks,C] */
    ck_status status = ck_widen_weight(k, &wide.weight, a->C, &weight);

    if (status == CK_OK && a->dweight.data != NULL && (parts = ck_take(blocks * row)) == NULL)
        status = CK_NO_MEMORY;
    if (status == CK_OK)
        status = ck_run_norm(CK_FAST(rms_norm_bwd), &wide, a->R, a->C, at_once * CK_RMS_NORM_ROWS, parts);
    if (status == CK_OK && parts != NULL)
        status = ck_sum_rows(k, &(struct ck_sum_rows){.sum = a->dweight, .x = ck_rows(parts, blocks, a->C, sizeof(float)),
                                                      .accumulate = a->accumulate, .R = blocks, .C = a->C});
    ck_give(parts, blocks * row);
    ck_give(weight, row);
    return status;
}
