#ifndef CK_SUM_COLUMNS_H
#define CK_SUM_COLUMNS_H
/* Sums over rows: what tasks leave of a gradient, made one. */
#include "kernels/kernel.h"
#include "simd/words.h"

/* n numbers of x from place i on, as floats: where they are, or in `wide`. */
static inline const float *
ck_as_floats(float *wide, const ck_array *x, size_t i, size_t n)
{
    enum { AHEAD = 1024 };
    if (x->width == sizeof(float))
        return (const float *)x->data + i;
    for (size_t j = 0; j < n; j += 16) {
        ck_prefetch((const elem *)x->data + i + j + AHEAD);
        v16_store_f32(wide + j, v16_load((const elem *)x->data + i + j, n - j), 16);
    }
    return wide;
}

/*
 * sum[c] = (accumulate ? sum[c] : 0) + sum_r x[r * step + c - from], c in begin..end-1: R rows, ascending, in double, one
 * rounding.  Plain loops: bound by memory, and the compiler knows doubles.
 */
static inline void
ck_sum_columns(const ck_array *to, const ck_array *x, size_t R, size_t step, size_t from, size_t begin, size_t end, bool accumulate)
{
    enum { WIDE = 64 };
    float wide[WIDE];

    for (size_t c = begin; c < end; c += WIDE) {
        const size_t n = end - c < WIDE ? end - c : WIDE;
        double sum[WIDE] = {0};
        for (size_t r = CK_FAULT(gradient_row_lost) && R > 1; r < R; r++) {
            const float *row = ck_as_floats(wide, x, r * step + (c - from), n);
            for (size_t i = 0; i < n; i++)
                sum[i] += row[i];
        }
        if (accumulate || CK_FAULT(gradient_not_zeroed)) {
            const float *before = ck_as_floats(wide, to, c, n);
            for (size_t i = 0; i < n; i++)
                sum[i] = before[i] + sum[i];
        }
        for (size_t i = 0; i < n; i++)
            wide[i] = (float)sum[i];
        for (size_t i = 0; i < n; i += 16)
            if (to->width == sizeof(float))
                v16_store_f32((float *)to->data + c + i, v16_load_f32(wide + i, n - i), n - i);
            else
                v16_store((elem *)to->data + c + i, v16_load_f32(wide + i, n - i), n - i);
    }
}
#endif
