#include "ops/layer_norm.h"

#include "ops/ops.h"
#include "ops/norm_rows.h"
#include "runtime/run.h"

CK_RUN(layer_norm_fwd)
{
    return ck_run_norm(k, &(ck_norm){.kernel = CK_FAST(layer_norm_fwd), .args = a, .R = a->R, .C = a->C,
                                     .grain = ck_grain(a->C), .weight = {a->weight, a->bias}});
}

CK_RUN(layer_norm_bwd)
{
    const size_t at_once = ck_blocks(ck_grain(a->C), CK_LAYER_NORM_ROWS); /* blocks that make a task */
    return ck_run_norm(k, &(ck_norm){.kernel = CK_FAST(layer_norm_bwd), .args = a, .R = a->R, .C = a->C,
                                     .grain = at_once * CK_LAYER_NORM_ROWS, .weight = {a->weight},
                                     .sum = {a->dweight, a->dbias}, .accumulate = {a->add_weight, a->add_bias},
                                     .block = CK_LAYER_NORM_ROWS});
}
