#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(linear_dz)
{
    return ck_tasks(a->R, ck_grain(a->N), CK_FAST(linear_dz), a);
}
