#include "kernels/kernel.h"
#include "ops/gemm_pack.h"
#include "simd/panel.h"

CK_KERNEL(gemm_pack)
{
    for (size_t p = task.begin; p < task.end; p++) {
        float *panel = a->packed + p * a->K * CK_PANEL;
        const size_t n = p * CK_PANEL, wide = a->N - n < CK_PANEL ? a->N - n : CK_PANEL;
        if (a->transpose_b)
            ck_turn(panel, CK_PANEL, &a->b, n, wide, 0, a->K);
        else
            ck_copy(panel, CK_PANEL, &a->b, 0, a->K, n, wide);
    }
}
