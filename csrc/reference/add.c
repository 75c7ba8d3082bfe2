#include "reference/reference.h"
#include "ops/add.h"

CK_KERNEL(add_fwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const elem *x = ck_row(&a->x, i / a->C), *y = ck_row(&a->y, i / a->C);
        elem *out = ck_row(&a->out, i / a->C);
        set(&out[i % a->C], get(&x[i % a->C]) + a->alpha * get(&y[i % a->C]));
    }
}

CK_KERNEL(add_bwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const elem dout = *((const elem *)ck_row(&a->dout, i / a->C) + i % a->C);
        *((elem *)ck_row(&a->dx, i / a->C) + i % a->C) = dout;
        set((elem *)ck_row(&a->dy, i / a->C) + i % a->C, a->alpha * get(&dout));
    }
}
