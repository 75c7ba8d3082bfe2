#include "ops/log_softmax.h"

#include "ops/ops.h"
#include "ops/pieces.h"

CK_RUN(log_softmax_fwd)
{
    return ck_run_rows(CK_FAST(log_softmax_fwd), a, a->R, a->C, 0);
}

CK_RUN(log_softmax_bwd)
{
    return ck_run_rows(CK_FAST(log_softmax_bwd), a, a->R, a->C, 0);
}
