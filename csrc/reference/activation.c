#include "reference/reference.h"
#include "ops/activation.h"

static double
sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

CK_KERNEL(silu_fwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const double x = get((const elem *)ck_row(&a->x, i / a->C) + i % a->C);
        set((elem *)ck_row(&a->y, i / a->C) + i % a->C, x * sigmoid(x));
    }
}

CK_KERNEL(silu_bwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const double x = get((const elem *)ck_row(&a->x, i / a->C) + i % a->C);
        const double dy = get((const elem *)ck_row(&a->dy, i / a->C) + i % a->C);
        set((elem *)ck_row(&a->dx, i / a->C) + i % a->C, dy * sigmoid(x) * (1 + x * sigmoid(-x)));
    }
}
