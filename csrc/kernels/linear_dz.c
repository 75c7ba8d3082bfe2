#include "kernels/kernel.h"
#include "ops/linear_dz.h"
#include "simd/short.h"

static inline v16
gradient(v16 dy, v16 pre, int64_t activation)
{
    switch (activation) {
    case CK_RELU: return v16_relu_back(dy, pre);
    case CK_SILU: return v16_mul(dy, v16_silu_slope_elem(pre));
    case CK_GELU: return v16_mul(dy, v16_gelu_slope_elem(pre));
    case CK_GELU_TANH: return v16_mul(dy, v16_gelu_tanh_slope_elem(pre));
    case CK_GELU_SIGMOID: return v16_mul(dy, v16_gelu_sigmoid_slope_elem(pre));
    case CK_SIGMOID: return v16_mul(dy, v16_sigmoid_slope_elem(pre));
    case CK_TANH: return v16_mul(dy, v16_tanh_slope_elem(pre));
    default: return dy;
    }
}

/* Where elements have 16 bits dz may be floats: workspace, not to be rounded yet. */
CK_KERNEL(linear_dz)
{
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *dy = ck_row(&a->dy, r), *pre = a->pre.data != NULL ? ck_row(&a->pre, r) : dy;
        void *dz = ck_row(&a->dz, r);
        for (size_t n = 0; n < a->N; n += 16) {
            const v16 g = gradient(v16_load(dy + n, a->N - n), v16_load(pre + n, a->N - n), a->activation);
            if (a->dz.width == sizeof(float))
                v16_store_f32((float *)dz + n, g, a->N - n);
            else
                v16_store((elem *)dz + n, g, a->N - n);
        }
    }
}
