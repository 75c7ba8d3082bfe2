#include "ops/add_rms_norm.h"

#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(add_rms_norm_fwd)
{
    return ck_tasks(a->R, ck_grain(a->C), CK_FAST(add_rms_norm_fwd), a);
}

CK_RUN(add_rms_norm_bwd)
{
    const size_t blocks = ck_blocks(a->R, CK_ADD_RMS_NORM_ROWS), row = a->C * sizeof(float);
    float *parts = NULL; /* [blocks,C] */
    if (a->dweight != NULL && (parts = ck_take(blocks * row)) == NULL)
        return CK_NO_MEMORY;

    ck_status status = ck_run(&(ck_job){.kernel = CK_FAST(add_rms_norm_bwd), .args = a, .n = a->R,
                                        .grain = CK_ADD_RMS_NORM_ROWS, .work = parts, .work_each = row});
    if (status == CK_OK && a->dweight != NULL)
        status = ck_sum_rows(k, &(struct ck_sum_rows){.sum = a->dweight, .x = parts, .accumulate = a->accumulate,
                                                      .R = blocks, .C = a->C});
    ck_give(parts, blocks * row);
    return status;
}
