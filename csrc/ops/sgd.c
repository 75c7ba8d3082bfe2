#include "ops/sgd.h"

#include "ops/elementwise.h"
#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(sgd_step)
{
    struct ck_sgd_step flat = *a;
    if (a->momentum != 0 && a->buffer.data == NULL)
        return ck_refuse(CK_BAD_VALUE, "'buffer' is missing: momentum is %g", a->momentum);
    if (a->check)
        return CK_OK;
    if (ck_is_flat(&a->param, a->C) && ck_is_flat(&a->grad, a->C)
        && (a->buffer.data == NULL || ck_is_flat(&a->buffer, a->C)))
        flat.C *= flat.R, flat.R = 1;
    return ck_tasks(flat.R * flat.C, CK_ELEMENTS, CK_FAST(sgd_step), &flat);
}

CK_RUN(sum_of_squares)
{
    if (a->S != 1)
        return ck_refuse(CK_BAD_VALUE, "'sum' holds %zu numbers instead of one", a->S);
    const size_t n = a->R * a->C, blocks = ck_blocks(n, CK_ELEMENTS), size = blocks * sizeof(double);
    double *parts = ck_take(size), sum = a->accumulate ? a->sum[0] : 0;
    if (blocks != 0 && parts == NULL)
        return CK_NO_MEMORY;

    const ck_status status = ck_run(&(ck_job){.kernel = CK_FAST(sum_of_squares), .args = a, .n = n,
                                              .grain = CK_ELEMENTS, .work = parts, .work_each = sizeof *parts});
    if (status == CK_OK) {
        for (size_t i = 0; i < blocks; i++)
            sum += parts[i];
        a->sum[0] = sum;
    }
    ck_give(parts, size);
    return status;
}
