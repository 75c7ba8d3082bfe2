#ifndef CK_ATTENTION_DIRECT_H
#define CK_ATTENTION_DIRECT_H
/*
 * The two products of attention for a few rows, as in decoding: keys and values are read where they lie, turned in
 * registers, and never packed.  The same sums in the same order as attention_tile.h.
 */
#include "kernels/attention_tile.h"

enum { DIRECT = CK_TILE_ROWS >= 8 ? 8 : 4 }; /* most rows that go this way: as many as have sums in registers */

/*
 * Memory is read best in the order of its addresses, which is not the order of use: a place in a source, from
 * which the next lines are fetched while others are at work.
 */
typedef struct { size_t s, d; } ahead;

ALWAYS void
fetch_next(const source *x, ahead *at, size_t lines)
{
    for (size_t i = 0; i < lines; i++) {
        source_fetch(x, at->s, at->d);
        at->d += 64 / sizeof(elem);
        if (at->d >= x->D) {
            at->d = 0;
            at->s++;
        }
    }
}

/* Columns d.. of n rows as whole vectors, 0 past D; those of rows outside `n` are zeros already. */
ALWAYS void
whole_floats(const source *x, const place *at, size_t n, size_t d, float *widened, const float **row)
{
    source_floats(x, at, n, d, widened, row);
    if (!CK_IS_FLOAT || x->D - d >= 16)
        return;
    for (size_t i = 0; i < n; i++) {
        v16_store_f32(widened + 16 * i, v16_load_f32(row[i], x->D - d), 16);
        row[i] = widened + 16 * i;
    }
}

/* Sixteen scores of each row: those of the keys s.. */
ALWAYS void
sixteen_scores(float *x, const float *q, size_t step, const source *k, ahead *next, const place *at, size_t from,
               size_t n, size_t rows)
{
    float widened[16 * PLACES];
    const float *row[PLACES];
    v16 sum[DIRECT];
    for (size_t i = 0; i < PLACES; i++)
        row[i] = ck_zeros;
    for (size_t d = 0; d == 0 || d < k->D; d += CHAIN) {
        CK_UNROLL for (size_t i = 0; i < rows; i++)
            sum[i] = v16_zero();
        for (size_t c = d; c < d + CHAIN && c < k->D; c += 16) {
            fetch_next(k, next, PLACES * sizeof(elem) / sizeof(float));
            whole_floats(k, at, n, c, widened, row + from);
            v16_fma_turned(sum, rows, q + c, step, row);
        }
        CK_UNROLL for (size_t i = 0; i < rows; i++)
            v16_store_f32(x + i * STEP, d == 0 ? sum[i] : v16_add(v16_load_f32(x + i * STEP, 16), sum[i]), 16);
    }
}

/* x[r,key] = inner products over D of plain rows, `step` apart, and the keys s0 + of. */
ALWAYS void
scores_of(float *x, const float *q, size_t step, const source *k, size_t s0, span of, size_t rows)
{
    ahead next = {s0 + of.from / 16 * 16 + 32, 0};
    for (size_t i = of.from / 16 * 16; i < of.to; i += 16) {
        place at[PLACES];
        const size_t from = of.from > i ? of.from - i : 0, n = (of.to - i < 16 ? of.to - i : 16) - from;
        source_places(k, s0 + i + from, n, at);
        sixteen_scores(x + i, q, step, k, &next, at, from, n, rows);
    }
}

/* y[r, 16j..] += a chain over the keys `now`, of `panels` panels; `strange` becomes NaN from what is not finite. */
ALWAYS void
chain_of_values(float *y, size_t width, const float *w, const source *v, size_t s0, span now, size_t j, v16 *strange,
                ahead *next, size_t rows, size_t panels)
{
    v16 sum[DIRECT][8];
    CK_UNROLL for (size_t r = 0; r < rows; r++)
        CK_UNROLL for (size_t p = 0; p < panels; p++)
            sum[r][p] = v16_zero();
    for (size_t i = now.from, n; i < now.to; i += n) {
        float widened[8][16 * PLACES];
        const float *row[8][PLACES];
        place at[PLACES];
        n = now.to - i < PLACES ? now.to - i : PLACES;
        source_places(v, s0 + i, n, at);
        for (size_t p = 0; p < panels; p++)
            source_floats(v, at, n, 16 * (j + p), widened[p], row[p]);
        for (size_t c = 0; c < n; c++) {
            v16 x[8];
            fetch_next(v, next, panels > 1 ? panels * sizeof(elem) / sizeof(float) : 1);
            CK_UNROLL for (size_t p = 0; p < panels; p++) {
                x[p] = v16_load_f32(row[p][c], v->D - 16 * (j + p));
                *strange = v16_fma(x[p], v16_zero(), *strange);
            }
            CK_UNROLL for (size_t r = 0; r < rows; r++) {
                const v16 f = v16_splat(w[r * STEP + i + c]);
                CK_UNROLL for (size_t p = 0; p < panels; p++)
                    sum[r][p] = v16_fma(f, x[p], sum[r][p]);
            }
        }
    }
    CK_UNROLL for (size_t r = 0; r < rows; r++)
        CK_UNROLL for (size_t p = 0; p < panels; p++) {
            float *to = y + r * width + 16 * (j + p);
            v16_store_f32(to, v16_add(v16_load_f32(to, 16), sum[r][p]), 16);
        }
}

/* y[r,:] += the weighted sum of the rows s0 + of; false when one of them is not finite, and then y is of no use. */
ALWAYS bool
values_of(float *y, size_t width, const float *w, const source *v, size_t s0, span of, size_t rows)
{
    enum { SUMS = CK_TILE_ROWS * CK_TILE_PANELS };
    const size_t most = SUMS / rows, many = most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
    v16 strange = v16_zero();
    for (size_t s = of.from / TERMS * TERMS; s < of.to; s += TERMS) {
        const span here = within(of, s, TERMS), now = {here.from + s, here.to + s};
        size_t j = 0;
        ahead next = {s0 + s + TERMS, 0};
        for (; width / 16 - j >= many; j += many)
            chain_of_values(y, width, w, v, s0, now, j, &strange, &next, rows, many);
        for (; j < width / 16; j++)
            chain_of_values(y, width, w, v, s0, now, j, &strange, &next, rows, 1);
    }
    return v16_sum(strange) == 0.0f;
}

#define CK_DIRECT_ROWS(_) _(1) _(2) _(3) _(4) _(5) _(6) _(7) _(8)
#define CK_AT_MOST(n) ((n) < DIRECT ? (n) : DIRECT)

static void
direct_scores(float *x, const float *q, size_t step, const source *k, size_t s0, span of, size_t rows)
{
#define CK_SCORES(n) case n: scores_of(x, q, step, k, s0, of, CK_AT_MOST(n)); break;
    switch (rows) { CK_DIRECT_ROWS(CK_SCORES) }
}

static bool
direct_values(float *y, size_t width, const float *w, const source *v, size_t s0, span of, size_t rows)
{
#define CK_VALUES(n) case n: return values_of(y, width, w, v, s0, of, CK_AT_MOST(n));
    switch (rows) { CK_DIRECT_ROWS(CK_VALUES) }
    return true;
}
#endif
