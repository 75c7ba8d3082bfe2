#include "reference/reference.h"
#include "ops/gemm_pack.h"

CK_KERNEL(gemm_pack)
{
    for (size_t p = task.begin; p < task.end; p++)
        for (size_t k = 0; k < a->K; k++)
            for (size_t l = 0; l < CK_PANEL; l++) {
                const size_t n = p * CK_PANEL + l;
                const size_t row = a->transpose_b ? n : k, column = a->transpose_b ? k : n;
                set(&a->packed[(p * a->K + k) * CK_PANEL + l], n >= a->N ? 0 : get((const elem *)ck_row(&a->b, row) + column));
            }
}
