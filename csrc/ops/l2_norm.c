#include "ops/l2_norm.h"

#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(l2_norm_fwd)
{
    return ck_tasks(a->R, ck_grain(a->C), CK_FAST(l2_norm_fwd), a);
}

CK_RUN(l2_norm_bwd)
{
    return ck_tasks(a->R, ck_grain(a->C), CK_FAST(l2_norm_bwd), a);
}
