#include "reference/reference.h"
#include "ops/activation.h"
#include "reference/functions.h"

#define ACTIVATION(name, value, gradient)                                                     \
    CK_KERNEL(name##_fwd)                                                                     \
    {                                                                                         \
        for (size_t i = task.begin; i < task.end; i++) {                                      \
            const double x = get((const elem *)ck_row(&a->x, i / a->C) + i % a->C);           \
            set((elem *)ck_row(&a->y, i / a->C) + i % a->C, value);                           \
        }                                                                                     \
    }                                                                                         \
    CK_KERNEL(name##_bwd)                                                                     \
    {                                                                                         \
        for (size_t i = task.begin; i < task.end; i++) {                                      \
            const double x = get((const elem *)ck_row(&a->x, i / a->C) + i % a->C);           \
            const double dy = get((const elem *)ck_row(&a->dy, i / a->C) + i % a->C);         \
            set((elem *)ck_row(&a->dx, i / a->C) + i % a->C, gradient);                       \
        }                                                                                     \
    }

ACTIVATION(relu, x <= 0 ? 0 : x, x <= 0 ? 0 : dy)
ACTIVATION(silu, gated(x, x), dy * gated_slope(x, x, 1))
ACTIVATION(gelu, x * normal_below(x), dy * (normal_below(x) + x * normal_at(x)))
ACTIVATION(gelu_tanh, gated(x, bent(x)), dy * gated_slope(x, bent(x), bent_slope(x)))
ACTIVATION(gelu_sigmoid, gated(x, 1.702 * x), dy * gated_slope(x, 1.702 * x, 1.702))
ACTIVATION(sigmoid, sigmoid(x), dy * sigmoid(x) * sigmoid(-x))
ACTIVATION(tanh, tanh(x), dy / square(cosh(x)))
ACTIVATION(softcap, a->cap * tanh(x / a->cap), dy / square(cosh(x / a->cap)))
