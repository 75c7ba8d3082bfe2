#include "reference/reference.h"
#include "ops/mse_loss.h"

CK_KERNEL(mse_loss_fwd)
{
    double sum = 0;
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t r = i / a->C, c = i % a->C;
        const double d = get((const elem *)ck_row(&a->input, r) + c) - get((const elem *)ck_row(&a->target, r) + c);
        if (a->losses.data)
            ((float *)ck_row(&a->losses, r))[c] = (float)(d * d);
        sum += d * d;
    }
    if (!a->losses.data)
        *(double *)task.work = sum;
}

CK_KERNEL(mse_loss_bwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t r = i / a->C, c = i % a->C;
        const double g = a->dy.data ? ((const float *)ck_row(&a->dy, r))[c] : a->dloss / a->divisor;
        const double d = get((const elem *)ck_row(&a->input, r) + c) - get((const elem *)ck_row(&a->target, r) + c);
        set((elem *)ck_row(&a->dinput, r) + c, 2 * g * d);
    }
}
