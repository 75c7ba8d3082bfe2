#include "reference/reference.h"
#include "ops/adamw.h"

static double
get_grad(const ck_array *grads, size_t r, size_t c) /* of elem or float */
{
    const void *row = ck_row(grads, r);
    return grads->width == sizeof(float) ? ((const float *)row)[c] : get((const elem *)row + c);
}

CK_KERNEL(adamw_step)
{
    for (size_t i = task.begin, j = 0; i < task.end; i++) {
        while (i >= a->start[j + 1])
            j++;
        const size_t element = i - a->start[j];
        if (element >= a->R[j] * a->C[j]) /* padding */
            continue;
        const size_t r = element / a->C[j], c = element % a->C[j];
        elem *param = (elem *)ck_row(&a->params[j], r) + c;
        float *avg = (float *)ck_row(&a->exp_avg[j], r) + c, *sq = (float *)ck_row(&a->exp_avg_sq[j], r) + c;
        const double t = a->step[j], p = get(param);
        const double g = (a->maximize ? -a->scale : a->scale) * get_grad(&a->grads[j], r, c);
        const double m = a->beta1 * *avg + (1 - a->beta1) * g, v = a->beta2 * *sq + (1 - a->beta2) * g * g;
        double u = v;
        if (a->max_exp_avg_sq != NULL) {
            float *peak = (float *)ck_row(&a->max_exp_avg_sq[j], r) + c;
            if (!(*peak <= v) && !isnan(v)) /* a NaN of either stays */
                u = *peak;
            *peak = (float)u;
        }
        const double m_hat = m / (1 - pow(a->beta1, t)), u_hat = u / (1 - pow(a->beta2, t));
        const double decayed = a->weight_decay != 0 ? p - a->lr * a->weight_decay * p : p;
        *avg = (float)m;
        *sq = (float)v;
        set(param, decayed - a->lr * m_hat / (sqrt(u_hat) + a->eps));
        if (a->zeroed != NULL)
            memset((char *)ck_row(&a->zeroed[j], r) + c * a->zeroed[j].width, 0, a->zeroed[j].width);
    }
}
