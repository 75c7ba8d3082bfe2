#include "reference/reference.h"
#include "ops/l2_norm.h"

CK_KERNEL(l2_norm_fwd)
{
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r);
        elem *y = ck_row(&a->y, r);
        double sum = 0;
        for (size_t c = 0; c < a->C; c++)
            sum += get(&x[c]) * get(&x[c]);
        const double rnorm = 1 / sqrt(sum + a->eps);
        if (a->rnorm)
            a->rnorm[r] = (float)rnorm;
        for (size_t c = 0; c < a->C; c++)
            set(&y[c], get(&x[c]) * rnorm);
    }
}

CK_KERNEL(l2_norm_bwd)
{
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r), *dy = ck_row(&a->dy, r);
        elem *dx = ck_row(&a->dx, r);
        const double rnorm = a->rnorm[r];
        double dot = 0;
        for (size_t c = 0; c < a->C; c++)
            dot += get(&dy[c]) * get(&x[c]);
        for (size_t c = 0; c < a->C; c++)
            set(&dx[c], rnorm * (get(&dy[c]) - get(&x[c]) * rnorm * rnorm * dot));
    }
}
