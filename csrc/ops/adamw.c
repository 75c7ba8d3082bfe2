#include "ops/adamw.h"

#include "faults.h"
#include "ops/ops.h"
#include "ops/tensor_list.h"
#include "runtime/run.h"

#include <math.h>

CK_RUN(adamw_step)
{
    struct ck_adamw_step run = *a;
    for (size_t j = 0; j < a->N; j++)
        if (!(a->step[j] >= 1))
            return ck_refuse(CK_BAD_VALUE, "'step' is %g for tensor %zu: the first is 1", a->step[j], j);
    if (!ck_same_types(a->zeroed, a->grads, a->N))
        return ck_refuse(CK_BAD_TYPE, "'zeroed' must be 'grads', or of their dtypes");
    if (a->check)
        return CK_OK;
    const ck_array *const lists[] = {a->params, a->exp_avg, a->exp_avg_sq, a->max_exp_avg_sq, a->zeroed, a->grads};
    const ck_tensors t = ck_lay_out(lists, 6, a->R, a->C, a->N, 2 * a->N);
    if (t.start == NULL)
        return CK_NO_MEMORY;
    for (size_t j = 0; j < a->N; j++) {
        if (j > 0 && a->step[j] == a->step[j - 1]) { /* as a rule they are all equal */
            t.extra[2 * j] = t.extra[2 * j - 2];
            t.extra[2 * j + 1] = t.extra[2 * j - 1];
            continue;
        }
        t.extra[2 * j] = CK_FAULT(adamw_no_correction) ? a->lr : a->lr / (1 - pow(a->beta1, a->step[j]));
        t.extra[2 * j + 1] = sqrt(1 - pow(a->beta2, CK_FAULT(adamw_correction_late) ? a->step[j] + 1 : a->step[j]));
    }
    run.start = t.start, run.R = t.R, run.C = t.C, run.factor = t.extra;
    const ck_status status = ck_tasks(t.start[a->N], CK_LIST_ITEMS, CK_FAST(adamw_step), &run);
    ck_forget(t);
    return status;
}
