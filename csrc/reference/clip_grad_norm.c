#include "reference/reference.h"
#include "ops/clip_grad_norm.h"

CK_KERNEL(sum_of_squares)
{
    double sum = 0;
    for (size_t i = task.begin, j = 0; i < task.end; i++) {
        while (i >= a->start[j + 1])
            j++;
        const size_t element = i - a->start[j];
        if (element >= a->R[j] * a->C[j]) /* padding */
            continue;
        const double x = get((const elem *)ck_row(&a->grads[j], element / a->C[j]) + element % a->C[j]);
        sum += x * x;
    }
    *(double *)task.work = sum;
}

CK_KERNEL(grad_scale)
{
    for (size_t i = task.begin, j = 0; i < task.end; i++) {
        while (i >= a->start[j + 1])
            j++;
        const size_t element = i - a->start[j];
        if (element >= a->R[j] * a->C[j]) /* padding */
            continue;
        elem *x = (elem *)ck_row(&a->grads[j], element / a->C[j]) + element % a->C[j];
        set(x, a->scale * get(x));
    }
}
