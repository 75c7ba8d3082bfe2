#ifndef CK_ATTENTION_SOURCE_H
#define CK_ATTENTION_SOURCE_H
/*
 * Where attention finds the rows of keys, or of values, of one item and kv head.  The one place that knows how they are
 * stored: everything behind it sees floats.
 *
 *     source_of(x, b, g, D)                  the rows x[b,g,:,:] of an array
 *     source_of_cache(cache, part, b, g)     those of a key-value cache, in whatever form; part is its k or v
 *     source_places(x, s, n, at)             at[i] = where row s + i lies, i < n <= 16
 *     source_floats(x, at, n, d, wide, row)  row[i] = columns d.. of those rows, up to 16: there, or in wide[16 i]
 *     source_fetch(x, s, d)                  the line of row s with column d will be wanted soon; any s will do
 *
 * Rows need not lie end to end, nor at one distance.  Of row[i] no more than min(16, D - d) floats are read.
 */
#include "kernels/kernel.h"
#include "kernels/kv_decode.h"
#include "ops/kv_store.h"
#include "simd/words.h"

enum { PLACES = 16 }; /* rows that a source gives at a time */

typedef struct {
    const char *first;
    ptrdiff_t step; /* bytes from row to row */
    size_t D;
    const ck_kv_form *form; /* of a cache; NULL for an array */
    const ck_kv_part *part;
    size_t b, g;
} source;

typedef const char *place; /* an address; of a quantised cache, a number of a row */

static inline source
source_of(const ck_array *x, size_t b, size_t g, size_t D)
{
    return (source){.first = (const char *)x->data + (ptrdiff_t)b * x->stride[0] + (ptrdiff_t)g * x->stride[1],
                    .step = x->stride[2], .D = D};
}

/* Without a table, `first` and `step` say where rows lie if a ring has not come round: fetching asks no more. */
static inline source
source_of_cache(const ck_kv_cache *cache, const ck_kv_part *part, size_t b, size_t g)
{
    const ck_kv_form *form = &cache->form;
    source x = {.D = form->D, .form = form, .part = part, .b = b, .g = g};
    if (form->table == NULL && form->S != 0) {
        size_t one = 1;
        x.first = (const char *)part->codes + ck_kv_run(form, b, g, 0, &one) * form->W;
        x.step = (ptrdiff_t)form->W;
    }
    return x;
}

static inline void
source_places(const source *x, size_t s, size_t n, place *at)
{
    if (x->form == NULL) {
        for (size_t i = 0; i < n; i++)
            at[i] = x->first + (ptrdiff_t)(s + i) * x->step;
        return;
    }
    const bool plain = x->form->format == CK_KV_PLAIN;
    for (size_t i = 0, run; i < n; i += run) {
        const bool by_token = CK_FAULT(kv_layout) && x->form->table == NULL;
        run = by_token ? 1 : n - i;
        const size_t row = by_token ? (x->b * x->form->S + s + i) * x->form->G + x->g
                                    : ck_kv_run(x->form, x->b, x->g, s + i, &run);
        for (size_t j = 0; j < run; j++)
            at[i + j] = plain ? (const char *)x->part->codes + (row + j) * x->form->W : (const char *)(uintptr_t)(row + j);
    }
}

static inline void
source_floats(const source *x, const place *at, size_t n, size_t d, float *wide, const float **row)
{
    if (x->form != NULL && x->form->format != CK_KV_PLAIN) {
        size_t rows[PLACES];
        for (size_t i = 0; i < n; i++) {
            rows[i] = (uintptr_t)at[i];
            row[i] = wide + 16 * i;
        }
        kv_get_columns(wide, x->form, x->part, rows, n, d);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const elem *from = (const elem *)at[i] + d;
        row[i] = CK_IS_FLOAT ? (const float *)from : wide + 16 * i;
        if (!CK_IS_FLOAT)
            v16_store_f32(wide + 16 * i, v16_load(from, x->D - d), 16);
    }
}

static inline void
source_fetch(const source *x, size_t s, size_t d)
{
    if (x->form == NULL || x->form->format == CK_KV_PLAIN) {
        if (x->step != 0)
            ck_prefetch((const char *)((uintptr_t)x->first + s * (uintptr_t)x->step + d * sizeof(elem)));
    }
    else if (x->step != 0 && d == 0)
        for (size_t at = 0; at < x->form->W; at += 64)
            ck_prefetch((const char *)((uintptr_t)x->first + s * (uintptr_t)x->step + at));
    if (x->step != 0 || d != 0 || x->form == NULL || s >= x->form->P * x->form->S)
        return;
    size_t one = 1; /* paged: a whole row at once, for the price of finding it */
    const size_t row = ck_kv_run(x->form, x->b, x->g, s, &one);
    for (size_t at = 0; at < x->form->W; at += 64)
        ck_prefetch((const char *)((uintptr_t)x->part->codes + row * x->form->W + at));
}
#endif
