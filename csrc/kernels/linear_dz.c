#include "kernels/kernel.h"
#include "ops/linear_dz.h"
#include "simd/activation.h"

CK_KERNEL(linear_dz)
{
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *dy = ck_row(&a->dy, r), *pre = a->pre.data != NULL ? ck_row(&a->pre, r) : NULL;
        elem *dz = ck_row(&a->dz, r);
        if (a->activation == CK_RELU)
            for (size_t n = 0; n < a->N; n++)
                dz[n] = pre[n] <= 0 ? 0 : dy[n];
        else
            for (size_t n = 0; n < a->N; n += 16) {
                v16 g = v16_load(dy + n, a->N - n);
                if (a->activation == CK_SILU)
                    g = v16_mul(g, v16_silu_slope(v16_load(pre + n, a->N - n)));
                v16_store(dz + n, g, a->N - n);
            }
    }
}
