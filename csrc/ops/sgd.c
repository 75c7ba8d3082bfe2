#include "ops/sgd.h"

#include "ops/ops.h"
#include "ops/tensor_list.h"
#include "runtime/run.h"

CK_RUN(sgd_step)
{
    struct ck_sgd_step run = *a;
    if (a->momentum != 0 && a->momentum_buffer == NULL)
        return ck_refuse(CK_BAD_VALUE, "'momentum_buffer' is missing: momentum is %g", a->momentum);
    if (!ck_same_types(a->zeroed, a->grads, a->N))
        return ck_refuse(CK_BAD_TYPE, "'zeroed' must be 'grads', or of their dtypes");
    if (a->check)
        return CK_OK;
    const ck_array *const lists[] = {a->params, a->momentum_buffer, a->zeroed, a->grads};
    const ck_tensors t = ck_lay_out(lists, 4, a->R, a->C, a->N, 0);
    if (t.start == NULL)
        return CK_NO_MEMORY;
    run.start = t.start, run.R = t.R, run.C = t.C;
    const ck_status status = ck_tasks(t.start[a->N], CK_LIST_ITEMS, CK_FAST(sgd_step), &run);
    ck_forget(t);
    return status;
}
