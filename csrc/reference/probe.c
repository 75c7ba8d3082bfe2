#include "reference/reference.h"
#include "ops/probe.h"

CK_KERNEL(probe_copy)
{
    for (size_t b = task.begin; b < task.end; b++) {
        const elem *x = ck_row(&a->x, b);
        elem *out = ck_row(&a->out, b);
        for (size_t c = 0; c < a->C; c++)
            out[c] = x[c];
    }
}

CK_KERNEL(probe_update)
{
    for (size_t b = task.begin; b < task.end; b++) {
        const elem *x = ck_row(&a->x, b);
        elem *out = ck_row(&a->out, b);
        for (size_t c = 0; c < a->C; c++)
            set(&out[c], -get(&x[c]));
    }
}

CK_KERNEL(probe_read)
{
    for (size_t b = task.begin; b < task.end; b++) {
        const elem *x = ck_row(&a->x, b);
        double sum = 0;
        for (size_t c = 0; c < a->C; c++)
            sum += get(&x[c]);
        a->sum[b] = (float)sum;
    }
}

CK_KERNEL(probe_fma)
{
    for (size_t b = task.begin; b < task.end; b++) {
        double sum = 0;
        for (int i = 0; i < 128; i++) {
            double y = 0;
            for (int64_t step = 0; step < a->n; step++)
                y = y * y - (0.5 - i / 512.0);
            sum += y;
        }
        a->sum[b] = (float)sum;
    }
}
