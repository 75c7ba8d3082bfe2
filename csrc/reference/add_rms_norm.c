#include "reference/reference.h"
#include "ops/add_rms_norm.h"
#include "ops/norm_rows.h"

CK_KERNEL(add_rms_norm_fwd)
{
    const float *weight = ck_norm_weight(task, 0);
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r), *residual = ck_row(&a->residual, r);
        elem *h = ck_row(&a->h, r), *y = ck_row(&a->y, r);
        double sum = 0;
        for (size_t c = 0; c < a->C; c++) {
            set(&h[c], get(&residual[c]) + get(&x[c]));
            sum += get(&h[c]) * get(&h[c]);
        }
        const double rstd = 1 / sqrt(sum / (double)a->C + a->eps);
        if (a->rstd)
            a->rstd[r] = (float)rstd;
        for (size_t c = 0; c < a->C; c++)
            set(&y[c], get(&h[c]) * rstd * weight[c]);
    }
}

/* Of a block of rows. */
static void
share_of_dweight(const struct ck_add_rms_norm_bwd *a, size_t begin, size_t end, float *dweight)
{
    for (size_t c = 0; c < a->C; c++) {
        double sum = 0;
        for (size_t r = begin; r < begin + CK_ADD_RMS_NORM_ROWS && r < end; r++)
            sum += get((const elem *)ck_row(&a->dy, r) + c) * get((const elem *)ck_row(&a->h, r) + c) * a->rstd[r];
        dweight[c] = (float)sum;
    }
}

CK_KERNEL(add_rms_norm_bwd)
{
    const float *weight = ck_norm_weight(task, 0);
    for (size_t begin = task.begin; a->dweight.data && begin < task.end; begin += CK_ADD_RMS_NORM_ROWS)
        share_of_dweight(a, begin, task.end, ((const ck_norm_rows *)task.work)->parts + begin / CK_ADD_RMS_NORM_ROWS * a->C);
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *h = ck_row(&a->h, r), *dy = ck_row(&a->dy, r), *dh = ck_row(&a->dh, r);
        const double rstd = a->rstd[r];
        double dot = 0;
        for (size_t c = 0; c < a->C; c++)
            dot += get(&dy[c]) * weight[c] * get(&h[c]);
        for (size_t c = 0; c < a->C; c++) {
            const double g = get(&dy[c]) * weight[c];
            const double dx = get(&dh[c]) + rstd * (g - get(&h[c]) * rstd * rstd * dot / (double)a->C);
            set((elem *)ck_row(&a->dx, r) + c, dx);
            if (a->dresidual.data)
                set((elem *)ck_row(&a->dresidual, r) + c, dx);
        }
    }
}
