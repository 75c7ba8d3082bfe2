#include "reference/reference.h"
#include "ops/linear_dz.h"

CK_KERNEL(linear_dz)
{
    for (size_t r = task.begin; r < task.end; r++)
        for (size_t n = 0; n < a->N; n++) {
            double slope = 1;
            if (a->activation != CK_NO_ACTIVATION) {
                const double z = get((const elem *)ck_row(&a->pre, r) + n), s = 1 / (1 + exp(-z));
                slope = a->activation == CK_SILU ? s + z * s * (1 - s) : z <= 0 ? 0 : 1;
            }
            const double dy = get((const elem *)ck_row(&a->dy, r) + n);
            const double dz = slope == 0 && a->activation == CK_RELU ? 0 : dy * slope;
            if (a->dz.width == sizeof(float))
                ((float *)ck_row(&a->dz, r))[n] = (float)dz;
            else
                set((elem *)ck_row(&a->dz, r) + n, dz);
        }
}
