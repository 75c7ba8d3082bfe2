#include "reference/reference.h"
#include "ops/rms_norm.h"
#include "ops/norm_rows.h"

CK_KERNEL(rms_norm_fwd)
{
    const float *weight = ck_norm_weight(task, 0);
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

/* Of a block of rows. */
static void
share_of_dweight(const struct ck_rms_norm_bwd *a, size_t begin, size_t end, float *dweight)
{
    for (size_t c = 0; c < a->C; c++) {
        double sum = 0;
        for (size_t r = begin; r < begin + CK_RMS_NORM_ROWS && r < end; r++)
            sum += get((const elem *)ck_row(&a->dy, r) + c) * get((const elem *)ck_row(&a->x, r) + c) * a->rstd[r];
        dweight[c] = (float)sum;
    }
}

CK_KERNEL(rms_norm_bwd)
{
    const float *weight = ck_norm_weight(task, 0);
    for (size_t begin = task.begin; a->dweight.data && begin < task.end; begin += CK_RMS_NORM_ROWS)
        share_of_dweight(a, begin, task.end, ((const ck_norm_rows *)task.work)->parts + begin / CK_RMS_NORM_ROWS * a->C);
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
