#include "reference/reference.h"
#include "ops/gemm.h"
#include "reference/functions.h"

static double
activate(double z, int64_t activation)
{
    switch (activation) {
    case CK_RELU: return z <= 0 ? 0 : z;
    case CK_SILU: return gated(z, z);
    case CK_GELU: return z * normal_below(z);
    case CK_GELU_TANH: return gated(z, bent(z));
    case CK_GELU_SIGMOID: return gated(z, 1.702 * z);
    case CK_SIGMOID: return sigmoid(z);
    case CK_TANH: return tanh(z);
    default: return z;
    }
}

/* An operand may hold floats beside 16-bit elements. */
static double
number(const ck_array *x, size_t row, size_t i)
{
    const void *at = ck_row(x, row);
    return x->width == sizeof(float) ? ((const float *)at)[i] : get((const elem *)at + i);
}

static double
left(const struct ck_gemm *a, size_t b, size_t m, size_t k)
{
    const size_t item = a->share_a ? 0 : b;
    return a->transpose_a ? number(&a->a, item * a->K + k, m)
                          : number(&a->a, item * a->M + m, k);
}

static double
right(const struct ck_gemm *a, size_t b, size_t k, size_t n)
{
    const size_t item = a->share_b ? 0 : b;
    if (a->packed)
        return get(&a->packed[(n / CK_PANEL * a->K + k) * CK_PANEL + n % CK_PANEL]);
    return a->transpose_b ? number(&a->b, item * a->N + n, k)
                          : number(&a->b, item * a->K + k, n);
}

CK_KERNEL(gemm)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const ck_gemm_block at = ck_gemm_block_at(a, i);
        for (size_t m = at.m; m < at.m + at.rows; m++)
            for (size_t n = at.n; n < at.n + at.columns; n++) {
                const size_t row = at.batch * a->M + m;
                double z = 0;
                for (size_t k = 0; k < a->K; k++)
                    z += left(a, at.batch, m, k) * right(a, at.batch, k, n);
                if (a->bias)
                    z += get(&a->bias[n]);
                if (a->pre.data)
                    set((elem *)ck_row(&a->pre, row) + n, z);
                z = activate(z, a->activation);
                if (a->residual.data)
                    z += get((const elem *)ck_row(&a->residual, row) + n);
                set((elem *)ck_row(&a->c, row) + n, z);
            }
    }
}
