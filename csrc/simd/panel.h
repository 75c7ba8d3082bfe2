#ifndef CK_PANEL_H
#define CK_PANEL_H
/*
 * Operands of a product brought into the order that ck_tile() reads, as float: panels [k][16] of the right operand,
 * rows `step` apart of the left one.  Lanes past the end are zero.  An operand may hold floats beside 16-bit elements.
 */
#include "simd/tile.h"

static const float ck_zeros[16];

/* Up to 16 elements as floats: where they are, or widened into `wide`. */
static inline const float *
ck_floats(float *wide, const elem *from, size_t n)
{
    if (CK_IS_FLOAT)
        return (const float *)from;
    v16_store_f32(wide, v16_load(from, n), 16);
    return wide;
}

/* Up to 16 numbers of a row whose width says whether they are elements or floats, from place j on. */
static inline v16
ck_load_either(const char *row, size_t width, size_t j, size_t n)
{
    return width == sizeof(float) ? v16_load_f32((const float *)row + j, n) : v16_load((const elem *)row + j, n);
}

/* to[j*step + i] = element (row + i, column + j) of x, i < 16, j < n; zero for i >= rows. */
static inline void
ck_turn(float *to, size_t step, const ck_array *x, size_t row, size_t rows, size_t column, size_t n)
{
    const char *from[16];
    const float *at[16];
    float wide[16 * 16]; /* where they are no floats */
    const size_t have = rows < 16 ? rows : 16;

    for (size_t i = 0; i < have; i++)
        from[i] = (const char *)ck_row(x, row + i) + column * x->width;
    for (size_t j = 0; j < n; j += 16) {
        for (size_t i = 0; i < 16; i++)
            if (i >= have)
                at[i] = ck_zeros;
            else if (x->width == sizeof(float))
                at[i] = (const float *)from[i] + j;
            else
                at[i] = ck_floats(wide + 16 * i, (const elem *)from[i] + j, n - j);
        v16_transpose(to + j * step, step, at, n - j < 16 ? n - j : 16);
    }
}

/* to[i*step + j] = element (row + i, column + j) of x, i < rows, j < n; 16 lanes at a time, the rest of them zero. */
static inline void
ck_copy(float *to, size_t step, const ck_array *x, size_t row, size_t rows, size_t column, size_t n)
{
    for (size_t i = 0; i < rows; i++) {
        const char *from = (const char *)ck_row(x, row + i) + column * x->width;
        for (size_t j = 0; j < n; j += 16)
            v16_store_f32(to + i * step + j, ck_load_either(from, x->width, j, n - j), 16);
    }
}
#endif
