#include "reference/reference.h"
#include "ops/layer_norm.h"
#include "ops/norm_rows.h"

CK_KERNEL(layer_norm_fwd)
{
    const float *weight = ck_norm_weight(task, 0), *bias = ck_norm_weight(task, 1);
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r);
        elem *y = ck_row(&a->y, r);
        double sum = 0, squares = 0;
        for (size_t c = 0; c < a->C; c++)
            sum += get(&x[c]);
        const double mean = sum / (double)a->C;
        for (size_t c = 0; c < a->C; c++)
            squares += (get(&x[c]) - mean) * (get(&x[c]) - mean);
        const double rstd = 1 / sqrt(squares / (double)a->C + a->eps);
        if (a->mean)
            a->mean[r] = (float)mean;
        if (a->rstd)
            a->rstd[r] = (float)rstd;
        for (size_t c = 0; c < a->C; c++) {
            const double normed = (get(&x[c]) - mean) * rstd;
            set(&y[c], normed * (weight ? weight[c] : 1) + (bias ? bias[c] : 0));
        }
    }
}

/* The mean as a double again, of which a->mean is the rounded one: so that a large offset costs nothing. */
static double
mean_of(const elem *x, size_t C, double about)
{
    double rest = 0;
    for (size_t c = 0; c < C; c++)
        rest += get(&x[c]) - about;
    return about + rest / (double)C;
}

/* The share of dweight and dbias of a block of rows, where they are wanted. */
static void
shares(const struct ck_layer_norm_bwd *a, size_t begin, size_t end, float *dweight, float *dbias)
{
    double mean[CK_LAYER_NORM_ROWS];
    for (size_t r = begin; r < end; r++)
        mean[r - begin] = mean_of(ck_row(&a->x, r), a->C, a->mean[r]);
    for (size_t c = 0; c < a->C; c++) {
        double weights = 0, biases = 0;
        for (size_t r = begin; r < end; r++) {
            const double dy = get((const elem *)ck_row(&a->dy, r) + c);
            weights += dy * (get((const elem *)ck_row(&a->x, r) + c) - mean[r - begin]) * a->rstd[r];
            biases += dy;
        }
        if (dweight)
            dweight[c] = (float)weights;
        if (dbias)
            dbias[c] = (float)biases;
    }
}

static void
backward_row(const struct ck_layer_norm_bwd *a, const float *weight, size_t r)
{
    const elem *x = ck_row(&a->x, r), *dy = ck_row(&a->dy, r);
    elem *dx = ck_row(&a->dx, r);
    const double mean = mean_of(x, a->C, a->mean[r]), rstd = a->rstd[r];
    double sum = 0, dot = 0;
    for (size_t c = 0; c < a->C; c++) {
        const double g = get(&dy[c]) * (weight ? weight[c] : 1);
        sum += g;
        dot += g * (get(&x[c]) - mean) * rstd;
    }
    for (size_t c = 0; c < a->C; c++) {
        const double g = get(&dy[c]) * (weight ? weight[c] : 1), normed = (get(&x[c]) - mean) * rstd;
        set(&dx[c], rstd * (g - sum / (double)a->C - normed * dot / (double)a->C));
    }
}

CK_KERNEL(layer_norm_bwd)
{
    const size_t blocks = (a->R + CK_LAYER_NORM_ROWS - 1) / CK_LAYER_NORM_ROWS;
    float *const parts = ((const ck_norm_rows *)task.work)->parts;
    for (size_t begin = task.begin; parts && begin < task.end; begin += CK_LAYER_NORM_ROWS) {
        float *part = parts + begin / CK_LAYER_NORM_ROWS * a->C;
        const size_t end = task.end - begin < CK_LAYER_NORM_ROWS ? task.end : begin + CK_LAYER_NORM_ROWS;
        shares(a, begin, end, a->dweight.data ? part : NULL,
               !a->dbias.data ? NULL : a->dweight.data ? part + blocks * a->C : part);
    }
    for (size_t r = task.begin; r < task.end; r++)
        backward_row(a, ck_norm_weight(task, 0), r); /* dx may be dy: last */
}
