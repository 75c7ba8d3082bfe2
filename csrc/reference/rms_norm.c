#include "reference/reference.h"
#include "ops/rms_norm.h"

CK_KERNEL(rms_norm_fwd)
{
    const float *weight = a->weight.data;
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r);
        elem *y = ck_row(&a->y, r);
        double sum = 0;
        for (size_t c = 0; c < a->C; c++)
            sum += get(&x[c]) * get(&x[c]);
        const double rstd = 1 / sqrt(sum / (double)a->C + a->eps);
        if (a->rstd)
            a->rstd[r] = (float)rstd;
        for (size_t c = 0; c < a->C; c++)
            set(&y[c], get(&x[c]) * rstd * (weight ? a->offset + weight[c] : 1));
    }
}

CK_KERNEL(rms_norm_bwd)
{
    const float *weight = a->weight.data;
    float *dweight = task.work;
    for (size_t c = 0; a->dweight.data && c < a->C; c++) {
        double sum = 0;
        for (size_t r = task.begin; r < task.end; r++)
            sum += get((const elem *)ck_row(&a->dy, r) + c) * get((const elem *)ck_row(&a->x, r) + c) * a->rstd[r];
        dweight[c] = (float)sum;
    }
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r), *dy = ck_row(&a->dy, r);
        elem *dx = ck_row(&a->dx, r);
        const double rstd = a->rstd[r];
        double dot = 0;
        for (size_t c = 0; c < a->C; c++)
            dot += get(&dy[c]) * (weight ? a->offset + weight[c] : 1) * get(&x[c]);
        for (size_t c = 0; c < a->C; c++) {
            const double w = weight ? a->offset + weight[c] : 1;
            set(&dx[c], rstd * (get(&dy[c]) * w - get(&x[c]) * rstd * rstd * dot / (double)a->C));
        }
    }
}
