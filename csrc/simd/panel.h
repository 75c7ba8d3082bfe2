#ifndef CK_PANEL_H
#define CK_PANEL_H
/*
 * Operands of a product brought into the order that ck_tile() reads, as float: panels [k][16] of the right operand,
 * rows `step` apart of the left one.  Lanes past the end are zero.
 */
#include "simd/tile.h"

static const float ck_zeros[16];

/* to[j*step + i] = element (row + i, column + j) of x, i < 16, j < n; zero for i >= rows. */
static inline void
ck_turn(float *to, size_t step, const ck_array *x, size_t row, size_t rows, size_t column, size_t n)
{
    const float *from[16], *at[16];
    const size_t have = rows < 16 ? rows : 16;

    for (size_t i = 0; i < 16; i++)
        from[i] = i < have ? (const float *)ck_row(x, row + i) + column : ck_zeros;
    for (size_t j = 0; j < n; j += 16) {
        for (size_t i = 0; i < 16; i++)
            at[i] = from[i] + (i < have ? j : 0);
        v16_transpose(to + j * step, step, at, n - j < 16 ? n - j : 16);
    }
}

/* to[i*step + j] = element (row + i, column + j) of x, i < rows, j < n; 16 lanes at a time, the rest of them zero. */
static inline void
ck_copy(float *to, size_t step, const ck_array *x, size_t row, size_t rows, size_t column, size_t n)
{
    for (size_t i = 0; i < rows; i++) {
        const elem *from = (const elem *)ck_row(x, row + i) + column;
        for (size_t j = 0; j < n; j += 16)
            v16_store_f32(to + i * step + j, v16_load(from + j, n - j), 16);
    }
}
#endif
