#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(softmax_fwd)
{
    if (a->causal && a->queries <= 0 && a->R != 0)
        return ck_refuse(CK_BAD_VALUE, "'causal' needs 'x' to have an axis of queries before its last");
    return ck_run(&(ck_job){.kernel = CK_FAST(softmax_fwd), .args = a, .n = a->R, .grain = ck_grain(a->C),
                            .scratch_each = a->C * sizeof(float)});
}

CK_RUN(softmax_bwd)
{
    return ck_tasks(a->R, ck_grain(a->C), CK_FAST(softmax_bwd), a);
}
