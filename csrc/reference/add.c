#include "reference/reference.h"

CK_KERNEL(add_fwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const elem *x = ck_row(&a->x, i / a->C), *y = ck_row(&a->y, i / a->C);
        elem *out = ck_row(&a->out, i / a->C);
        set(&out[i % a->C], get(&x[i % a->C]) + a->alpha * get(&y[i % a->C]));
    }
}
