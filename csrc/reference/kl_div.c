#include "reference/reference.h"
#include "ops/kl_div.h"

CK_KERNEL(kl_div_fwd)
{
    double sum = 0;
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t r = i / a->C, c = i % a->C;
        const double x = get((const elem *)ck_row(&a->input, r) + c), t = get((const elem *)ck_row(&a->target, r) + c);
        const double loss = a->log_target ? exp(t) * (t - x) : (t == 0 ? 0 : t * log(t)) - t * x;
        if (a->losses.data)
            ((float *)ck_row(&a->losses, r))[c] = (float)loss;
        sum += loss;
    }
    if (!a->losses.data)
        *(double *)task.work = sum;
}

CK_KERNEL(kl_div_bwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t r = i / a->C, c = i % a->C;
        const double g = a->dy.data ? ((const float *)ck_row(&a->dy, r))[c] : a->dloss / a->divisor;
        const double t = get((const elem *)ck_row(&a->target, r) + c);
        set((elem *)ck_row(&a->dinput, r) + c, -g * (a->log_target ? exp(t) : t));
    }
}
