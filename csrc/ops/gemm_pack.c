#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(gemm_pack)
{
    return ck_tasks(ck_blocks(a->N, CK_PANEL), ck_grain(CK_PANEL * a->K), CK_FAST(gemm_pack), a);
}
