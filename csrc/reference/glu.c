#include "reference/reference.h"
#include "ops/glu.h"

static double
at(const ck_array *x, size_t F, size_t i)
{
    return get((const elem *)ck_row(x, i / F) + i % F);
}

static void
put(const ck_array *x, size_t F, size_t i, double value)
{
    set((elem *)ck_row(x, i / F) + i % F, value);
}

static double
sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

CK_KERNEL(swiglu_fwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const double gate = at(&a->gate, a->F, i), up = at(&a->up, a->F, i);
        put(&a->y, a->F, i, gate * sigmoid(gate) * up);
    }
}

CK_KERNEL(swiglu_bwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const double gate = at(&a->gate, a->F, i), up = at(&a->up, a->F, i), dy = at(&a->dy, a->F, i);
        put(&a->dgate, a->F, i, dy * up * sigmoid(gate) * (1 + gate * sigmoid(-gate)));
        put(&a->dup, a->F, i, dy * gate * sigmoid(gate));
    }
}
