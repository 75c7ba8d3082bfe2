#include "kernels/kernel.h"
#include "ops/gemm_pack.h"
#include "simd/panel.h"

enum { ROWS = 64 }; /* of k at a time, where elements are turned as floats and then made 16 bits again, exactly */

/* Rows k.. of the panel of columns n.., as floats. */
static void
take(float *to, const struct ck_gemm_pack *a, size_t n, size_t k, size_t rows)
{
    const size_t wide = a->N - n < CK_PANEL ? a->N - n : CK_PANEL;
    if (a->transpose_b)
        ck_turn(to, CK_PANEL, &a->b, n, wide, k, rows);
    else
        ck_copy(to, CK_PANEL, &a->b, k, rows, n, wide);
}

CK_KERNEL(gemm_pack)
{
    float few[ROWS * CK_PANEL];
    for (size_t p = task.begin; p < task.end; p++) {
        elem *panel = a->packed + p * a->K * CK_PANEL;
        if (CK_IS_FLOAT)
            take((float *)panel, a, p * CK_PANEL, 0, a->K);
        for (size_t k = 0; !CK_IS_FLOAT && k < a->K; k += ROWS) {
            const size_t rows = a->K - k < ROWS ? a->K - k : ROWS;
            take(few, a, p * CK_PANEL, k, rows);
            for (size_t i = 0; i < rows; i++)
                v16_store(panel + (k + i) * CK_PANEL, v16_load_f32(few + i * CK_PANEL, 16), 16);
        }
    }
}
