#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(widen)
{
    CK_FAST(widen)(a, (ck_task){.end = a->C});
    return CK_OK;
}

ck_status
ck_widen_weight(const ck_kernels *k, ck_array *x, size_t C, float **taken)
{
    *taken = NULL;
    if (x->data == NULL || x->width == sizeof(float))
        return CK_OK;
    if ((*taken = ck_take(C * sizeof(float))) == NULL)
        return CK_NO_MEMORY;
    const ck_status status = ck_widen(k, &(struct ck_widen){.y = *taken, .x = *x, .C = C});
    *x = ck_rows(*taken, 1, C, sizeof(float));
    return status;
}
