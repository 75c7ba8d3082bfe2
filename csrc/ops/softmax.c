#include "ops/softmax.h"

#include "ops/ops.h"
#include "ops/pieces.h"

CK_RUN(softmax_fwd)
{
    if (a->causal && a->queries <= 0 && a->R != 0)
        return ck_refuse(CK_BAD_VALUE, "'causal' needs 'x' to have an axis of queries before its last");
    return ck_run_rows(CK_FAST(softmax_fwd), a, a->R, a->C, (a->C <= CK_ROW_SHORT ? CK_ROW_GANG : 1) * sizeof(float));
}

CK_RUN(softmax_bwd)
{
    return ck_run_rows(CK_FAST(softmax_bwd), a, a->R, a->C, 0);
}
