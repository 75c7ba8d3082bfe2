#ifndef CK_ATTENTION_SOURCE_H
#define CK_ATTENTION_SOURCE_H
/*
 * Where attention finds the rows of keys, or of values, of one item and kv head.  The one place that knows how they are
 * stored: everything behind it sees floats.
 *
 *     source_of(x, b, g, D)                  the rows x[b,g,:,:] of an array
 *     source_places(x, s, n, at)             at[i] = where row s + i lies, i < n <= 16
 *     source_floats(x, at, n, d, wide, row)  row[i] = columns d.. of those rows, up to 16: where they lie, or in wide[16 i]
 *     source_fetch(x, s)                     row s will be wanted soon; any s will do
 *
 * Rows need not lie end to end, nor at one distance.  Of row[i] no more than min(16, D - d) floats are read.
 */
#include "kernels/kernel.h"
#include "simd/words.h"

enum { PLACES = 16 }; /* rows that a source gives at a time */

typedef struct {
    const char *first;
    ptrdiff_t step; /* bytes from row to row */
    size_t D;
} source;

typedef const char *place;

static inline source
source_of(const ck_array *x, size_t b, size_t g, size_t D)
{
    return (source){(const char *)x->data + (ptrdiff_t)b * x->stride[0] + (ptrdiff_t)g * x->stride[1], x->stride[2], D};
}

static inline void
source_places(const source *x, size_t s, size_t n, place *at)
{
    for (size_t i = 0; i < n; i++)
        at[i] = x->first + (ptrdiff_t)(s + i) * x->step;
}

static inline void
source_floats(const source *x, const place *at, size_t n, size_t d, float *wide, const float **row)
{
    for (size_t i = 0; i < n; i++) {
        const elem *from = (const elem *)at[i] + d;
        row[i] = CK_IS_FLOAT ? (const float *)from : wide + 16 * i;
        if (!CK_IS_FLOAT)
            v16_store_f32(wide + 16 * i, v16_load(from, x->D - d), 16);
    }
}

static inline void
source_fetch(const source *x, size_t s)
{
    const char *row = x->first + (ptrdiff_t)s * x->step;
    for (size_t at = 0; at < x->D * sizeof(elem); at += 64)
        ck_prefetch(row + at);
}
#endif
