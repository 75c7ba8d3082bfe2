#include "reference/reference.h"
#include "ops/sgd.h"

static double
get_grad(const ck_array *grads, size_t r, size_t c) /* of elem or float */
{
    const void *row = ck_row(grads, r);
    return grads->width == sizeof(float) ? ((const float *)row)[c] : get((const elem *)row + c);
}

CK_KERNEL(sgd_step)
{
    for (size_t i = task.begin, j = 0; i < task.end; i++) {
        while (i >= a->start[j + 1])
            j++;
        const size_t element = i - a->start[j];
        if (element >= a->R[j] * a->C[j]) /* padding */
            continue;
        const size_t r = element / a->C[j], c = element % a->C[j];
        elem *param = (elem *)ck_row(&a->params[j], r) + c;
        double g = a->scale * get_grad(&a->grads[j], r, c);
        if (a->maximize)
            g = -g;
        if (a->weight_decay != 0)
            g += a->weight_decay * get(param);
        if (a->momentum != 0) {
            float *buffer = (float *)ck_row(&a->momentum_buffer[j], r) + c;
            const double b = a->first ? g : a->momentum * *buffer + (1 - a->dampening) * g;
            *buffer = (float)b;
            g = a->nesterov ? g + a->momentum * b : b;
        }
        set(param, get(param) - a->lr * g);
        if (a->zeroed != NULL)
            memset((char *)ck_row(&a->zeroed[j], r) + c * a->zeroed[j].width, 0, a->zeroed[j].width);
    }
}
