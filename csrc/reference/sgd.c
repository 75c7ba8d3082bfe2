#include "reference/reference.h"
#include "ops/sgd.h"

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
        double g = a->scale * get((const elem *)ck_row(&a->grads[j], r) + c);
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
            set((elem *)ck_row(&a->zeroed[j], r) + c, 0);
    }
}
