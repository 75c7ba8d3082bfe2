#include "kernels/kernel.h"
#include "ops/probe.h"
#include "simd/matrix.h"

/* Four sums hide the latency of a product; operands stay in tiles. */
CK_KERNEL(probe_amx)
{
    uint16_t ones[CK_MATRIX_TILE / 2];
    float sums[4][16][16];
    for (size_t i = 0; i < CK_MATRIX_TILE / 2; i++)
        ones[i] = 0x3f80;
    ck_matrix_begin();
    for (size_t b = task.begin; b < task.end; b++) {
        CK_MATRIX_ZERO(0); CK_MATRIX_ZERO(1); CK_MATRIX_ZERO(2); CK_MATRIX_ZERO(3);
        CK_MATRIX_LOAD(4, ones, CK_MATRIX_ROW); CK_MATRIX_LOAD(5, ones, CK_MATRIX_ROW);
        CK_MATRIX_LOAD(6, ones, CK_MATRIX_ROW); CK_MATRIX_LOAD(7, ones, CK_MATRIX_ROW);
        for (int64_t i = 0; i < a->n; i++) {
            CK_MATRIX_DOT_BF16(0, 4, 6);
            CK_MATRIX_DOT_BF16(1, 4, 7);
            CK_MATRIX_DOT_BF16(2, 5, 6);
            CK_MATRIX_DOT_BF16(3, 5, 7);
        }
        CK_MATRIX_STORE(0, sums[0], CK_MATRIX_ROW); CK_MATRIX_STORE(1, sums[1], CK_MATRIX_ROW);
        CK_MATRIX_STORE(2, sums[2], CK_MATRIX_ROW); CK_MATRIX_STORE(3, sums[3], CK_MATRIX_ROW);
        a->sum[b] = sums[0][0][0] + sums[1][0][15] + sums[2][15][0] + sums[3][15][15];
    }
    ck_matrix_end();
}
