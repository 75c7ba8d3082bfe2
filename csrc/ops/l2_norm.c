#include "ops/l2_norm.h"

#include "ops/ops.h"
#include "ops/norm_rows.h"
#include "runtime/run.h"

CK_RUN(l2_norm_fwd)
{
    return ck_run_norm(k, &(ck_norm){.kernel = CK_FAST(l2_norm_fwd), .args = a, .R = a->R, .C = a->C, .grain = ck_grain(a->C)});
}

CK_RUN(l2_norm_bwd)
{
    return ck_run_norm(k, &(ck_norm){.kernel = CK_FAST(l2_norm_bwd), .args = a, .R = a->R, .C = a->C, .grain = ck_grain(a->C)});
}
