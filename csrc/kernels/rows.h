#ifndef CK_ROWS_H
#define CK_ROWS_H
/* What the kernels that go over a row several times share: its maximum, its exponentials, and how it is written. */
#include "kernels/kernel.h"
#include "ops/pieces.h"
#include "simd/math.h"
#include "simd/words.h"

enum { CK_ROW_BLOCK = 2048 }; /* elements whose sum is one float */

/* The end of a block from `begin` on. */
CK_TEMPLATE size_t block_end(size_t begin, size_t n) { return n - begin < CK_ROW_BLOCK ? n : begin + CK_ROW_BLOCK; }

/* Up to 16 elements of scale * x, -inf behind the n that are left */
CK_TEMPLATE v16
scaled(const elem *x, size_t n, v16 scale)
{
    const v16 z = v16_mul(v16_load(x, n), scale);
    return n >= 16 ? z : v16_select(v16_first(n), z, v16_splat(-INFINITY));
}

/* Lane by lane, the largest of scale * x; a NaN may get lost. */
CK_TEMPLATE v16
largest_lanes(const elem *x, size_t n, v16 scale)
{
    const v16 least = v16_splat(-INFINITY);
    v16 peaks[4] = {least, least, least, least};
    size_t c = 0;
    for (; c + 64 <= n; c += 64)
        for (size_t i = 0; i < 4; i++)
            peaks[i] = v16_max(peaks[i], v16_mul(v16_load(x + c + 16 * i, 16), scale));
    for (; c + 16 <= n; c += 16)
        peaks[0] = v16_max(peaks[0], v16_mul(v16_load(x + c, 16), scale));
    if (c < n)
        peaks[1] = v16_max(peaks[1], scaled(x + c, n - c, scale));
    return v16_max(v16_max(peaks[0], peaks[1]), v16_max(peaks[2], peaks[3]));
}
CK_TEMPLATE float largest(const elem *x, size_t n, v16 scale) { return v16_peak(largest_lanes(x, n, scale)); }

/* to[j] = the fold of lanes[j], j < n <= CK_ROW_GANG. */
CK_TEMPLATE void
fold_gang(float *to, v16 *lanes, size_t n, bool peaks)
{
    if (n < CK_ROW_GANG)
        for (size_t j = n; j < CK_ROW_GANG; j++)
            lanes[j] = v16_zero();
    v16_store_f32(to, peaks ? v16_peaks(lanes) : v16_sums(lanes), CK_ROW_GANG);
}

/* What exponentials are relative to: of a row without a number above -inf, all are 0, but for NaN. */
CK_TEMPLATE v16 base_of(float peak) { return v16_splat(peak == -INFINITY || CK_FAULT(softmax_no_maximum) ? 0.0f : peak); }

/* Lane by lane, the sum of exp(scale * x - base) of a block.  `keep`, where it is not NULL, gets them. */
CK_TEMPLATE v16
exponential_lanes(float *keep, const elem *x, size_t n, v16 scale, v16 base, const elem *next)
{
    v16 sums = v16_zero();
    size_t c = 0;
    for (; c + 16 <= n; c += 16) {
        ck_prefetch(next + c);
        const v16 e = v16_exp_elem(v16_sub(v16_mul(v16_load(x + c, 16), scale), base));
        sums = v16_add(sums, e);
        if (keep != NULL)
            v16_store_f32(keep + c, e, 16);
    }
    if (c < n) {
        const v16 e = v16_exp_elem(v16_sub(scaled(x + c, n - c, scale), base));
        sums = v16_add(sums, e);
        if (keep != NULL)
            v16_store_f32(keep + c, e, n - c);
    }
    return sums;
}

/*
 * The sum of exp(scale * x - base) of a row, block by block in double.  `keep`, where it is not NULL, gets them.
 * The line at `next` is fetched for each of x: the row that follows, or any address.
 */
CK_TEMPLATE double
exponentials(float *keep, const elem *x, size_t n, v16 scale, v16 base, const elem *next)
{
    double sum = 0;
    for (size_t begin = 0; begin < n; begin += CK_ROW_BLOCK)
        sum += v16_sum(exponential_lanes(keep != NULL ? keep + begin : NULL, x + begin, block_end(begin, n) - begin, scale, base,
                                         next + begin));
    return sum;
}

/* Whether an output goes past the caches, of a call whose arrays are so many. */
CK_TEMPLATE bool
streams(size_t arrays, const ck_array *y, const ck_array *x, size_t R, size_t C)
{
    return y->data != x->data && ck_streams(arrays * R * C * sizeof(elem));
}

/* y[c] = each(of, c, n) for n elements, up to 16 in a call. */
typedef v16 ck_each(const void *of, size_t c, size_t n);
CK_TEMPLATE void
write_row(elem *y, size_t n, bool stream, ck_each *each, const void *of)
{
    if (stream)
        CK_WALK(c, w, y, n, true, { v16_put(y + c, each(of, c, w), w, true); });
    else
        CK_WALK(c, w, y, n, false, { v16_put(y + c, each(of, c, w), w, false); });
}
#endif
