#include "ops/add_rms_norm.h"

#include "ops/ops.h"
#include "ops/norm_rows.h"
#include "runtime/run.h"

CK_RUN(add_rms_norm_fwd)
{
    return ck_run_norm(k, &(ck_norm){.kernel = CK_FAST(add_rms_norm_fwd), .args = a, .R = a->R, .C = a->C,
                                     .grain = ck_grain(a->C), .weight = {a->weight}});
}

CK_RUN(add_rms_norm_bwd)
{
    const size_t at_once = ck_blocks(ck_grain(a->C), CK_ADD_RMS_NORM_ROWS); /* blocks that make a task */
    return ck_run_norm(k, &(ck_norm){.kernel = CK_FAST(add_rms_norm_bwd), .args = a, .R = a->R, .C = a->C,
                                     .grain = at_once * CK_ADD_RMS_NORM_ROWS, .weight = {a->weight},
                                     .sum = {a->dweight}, .accumulate = {a->accumulate}, .block = CK_ADD_RMS_NORM_ROWS});
}
