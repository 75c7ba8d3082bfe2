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

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double normal_below(double x) { return 0.5 * erfc(-x * sqrt(0.5)); }                /* Phi */
static double normal_at(double x) { return exp(-0.5 * x * x) * (M_SQRT1_2 / sqrt(M_PI)); } /* phi */

/* x s(w), where w has the slope dw */
static double gated(double x, double w) { return x * sigmoid(w); }
static double gated_slope(double x, double w, double dw) { return sigmoid(w) * (1 + x * dw * sigmoid(-w)); }

static double bent(double x) { return sqrt(8 / M_PI) * (x + 0.044715 * x * x * x); }
static double bent_slope(double x) { return sqrt(8 / M_PI) * (1 + 3 * 0.044715 * x * x); }

/* f, and g f', of x */
#define GATED_UNIT(name, value, gradient)                                                            \
    CK_KERNEL(name##_fwd)                                                                            \
    {                                                                                                \
        for (size_t i = task.begin; i < task.end; i++) {                                             \
            const double x = at(&a->gate, a->F, i), up = at(&a->up, a->F, i);                        \
            put(&a->y, a->F, i, (value) * up);                                                       \
        }                                                                                            \
    }                                                                                                \
    CK_KERNEL(name##_bwd)                                                                            \
    {                                                                                                \
        for (size_t i = task.begin; i < task.end; i++) {                                             \
            const double x = at(&a->gate, a->F, i), up = at(&a->up, a->F, i), dy = at(&a->dy, a->F, i); \
            const double g = dy * up;                                                                \
            put(&a->dgate, a->F, i, gradient);                                                       \
            put(&a->dup, a->F, i, dy * (value));                                                     \
        }                                                                                            \
    }

GATED_UNIT(swiglu, gated(x, x), g * gated_slope(x, x, 1))
GATED_UNIT(geglu, x * normal_below(x), g * (normal_below(x) + x * normal_at(x)))
GATED_UNIT(geglu_tanh, gated(x, bent(x)), g * gated_slope(x, bent(x), bent_slope(x)))
GATED_UNIT(geglu_sigmoid, gated(x, 1.702 * x), g * gated_slope(x, 1.702 * x, 1.702))
GATED_UNIT(reglu, x <= 0 ? 0 : x, x <= 0 ? 0 : g)
