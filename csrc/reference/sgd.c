#include "reference/reference.h"
#include "ops/sgd.h"

CK_KERNEL(sgd_step)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t r = i / a->C, c = i % a->C;
        elem *param = (elem *)ck_row(&a->param, r) + c;
        double g = a->scale * get((const elem *)ck_row(&a->grad, r) + c);
        if (a->maximize)
            g = -g;
        if (a->weight_decay != 0)
            g += a->weight_decay * get(param);
        if (a->momentum != 0) {
            float *buffer = (float *)ck_row(&a->buffer, r) + c;
            const double b = a->first ? g : a->momentum * *buffer + (1 - a->dampening) * g;
            *buffer = (float)b;
            g = a->nesterov ? g + a->momentum * b : b;
        }
        set(param, get(param) - a->lr * g);
    }
}

CK_KERNEL(sum_of_squares)
{
    double sum = 0;
    for (size_t i = task.begin; i < task.end; i++) {
        const double x = get((const elem *)ck_row(&a->x, i / a->C) + i % a->C);
        sum += x * x;
    }
    *(double *)task.work = sum;
}
