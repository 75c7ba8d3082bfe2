#include "ops/l2_norm.h"

#include "ops/ops.h"
#include "ops/norm_rows.h"
#include "runtime/run.h"

CK_RUN(l2_norm_fwd)
{
    return ck_run_norm(CK_FAST(l2_norm_fwd), a, a->R, a->C, ck_grain(a->C), NULL);
}

CK_RUN(l2_norm_bwd)
{
    return ck_run_norm(CK_FAST(l2_norm_bwd), a, a->R, a->C, ck_grain(a->C), NULL);
}
