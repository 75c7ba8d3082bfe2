#include "reference/reference.h"
#include "ops/linear_dz.h"
#include "reference/functions.h"

static double
gradient(double dy, double z, int64_t activation)
{
    switch (activation) {
    case CK_RELU: return z <= 0 ? 0 : dy;
    case CK_SILU: return dy * gated_slope(z, z, 1);
    case CK_GELU: return dy * (normal_below(z) + z * normal_at(z));
    case CK_GELU_TANH: return dy * gated_slope(z, bent(z), bent_slope(z));
    case CK_GELU_SIGMOID: return dy * gated_slope(z, 1.702 * z, 1.702);
    case CK_SIGMOID: return dy * sigmoid(z) * sigmoid(-z);
    case CK_TANH: return dy / square(cosh(z));
    default: return dy;
    }
}

CK_KERNEL(linear_dz)
{
    for (size_t r = task.begin; r < task.end; r++)
        for (size_t n = 0; n < a->N; n++) {
            const double z = a->pre.data != NULL ? get((const elem *)ck_row(&a->pre, r) + n) : 0;
            const double dz = gradient(get((const elem *)ck_row(&a->dy, r) + n), z, a->activation);
            if (a->dz.width == sizeof(float))
                ((float *)ck_row(&a->dz, r))[n] = (float)dz;
            else
                set((elem *)ck_row(&a->dz, r) + n, dz);
        }
}
