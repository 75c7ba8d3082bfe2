#include "ops/clip_grad_norm.h"

#include "ops/ops.h"
#include "ops/tensor_list.h"
#include "runtime/run.h"

CK_RUN(sum_of_squares)
{
    struct ck_sum_of_squares run = *a;
    if (a->S != 1)
        return ck_refuse(CK_BAD_VALUE, "'sum' holds %zu numbers instead of one", a->S);
    const ck_tensors t = ck_lay_out(&a->grads, 1, a->R, a->C, a->N, 0);
    if (t.start == NULL)
        return CK_NO_MEMORY;
    run.start = t.start, run.R = t.R, run.C = t.C;

    const size_t blocks = ck_blocks(t.start[a->N], CK_LIST_ITEMS), size = blocks * sizeof(double);
    double *parts = ck_take(size), sum = a->accumulate ? a->sum[0] : 0;
    ck_status status = CK_NO_MEMORY;
    if (blocks == 0 || parts != NULL)
        status = ck_run(&(ck_job){.kernel = CK_FAST(sum_of_squares), .args = &run, .n = t.start[a->N],
                                  .grain = CK_LIST_ITEMS, .work = parts, .work_each = sizeof *parts});
    if (status == CK_OK) {
        for (size_t i = 0; i < blocks; i++)
            sum += parts[i];
        a->sum[0] = sum;
    }
    ck_give(parts, size);
    ck_forget(t);
    return status;
}

CK_RUN(grad_scale)
{
    struct ck_grad_scale run = *a;
    if (a->scale == 1)
        return CK_OK;
    const ck_tensors t = ck_lay_out(&a->grads, 1, a->R, a->C, a->N, 0);
    if (t.start == NULL)
        return CK_NO_MEMORY;
    run.start = t.start, run.R = t.R, run.C = t.C;
    const ck_status status = ck_tasks(t.start[a->N], CK_LIST_ITEMS, CK_FAST(grad_scale), &run);
    ck_forget(t);
    return status;
}
