#include "ops/rms_norm.h"

#include "ops/ops.h"
#include "ops/norm_rows.h"
#include "runtime/run.h"

CK_RUN(rms_norm_fwd)
{
    return ck_run_norm(k, &(ck_norm){.kernel = CK_FAST(rms_norm_fwd), .args = a, .R = a->R, .C = a->C,
                                     .grain = ck_grain(a->C), .weight = {a->weight}});
}

CK_RUN(rms_norm_bwd)
{
    const size_t at_once = ck_blocks(ck_grain(a->C), CK_RMS_NORM_ROWS); /* blocks that make a task */
    return ck_run_norm(k, &(ck_norm){.kernel = CK_FAST(rms_norm_bwd), .args = a, .R = a->R, .C = a->C,
                                     .grain = at_once * CK_RMS_NORM_ROWS, .weight = {a->weight},
                                     .sum = {a->dweight}, .accumulate = {a->accumulate}, .block = CK_RMS_NORM_ROWS});
}
