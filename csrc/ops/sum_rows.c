#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(sum_rows)
{
    return ck_tasks(a->C, 512, CK_FAST(sum_rows), a); /* along columns: each sum stays in one task */
}
