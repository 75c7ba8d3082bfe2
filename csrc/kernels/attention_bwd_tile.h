#ifndef CK_ATTENTION_BWD_TILE_H
#define CK_ATTENTION_BWD_TILE_H
/*
 * What forward and backward of attention are made of: which keys a query sees, packed panels, the product of a tile of
 * six rows with panels, scores, and the weighted sum of rows that skips what is not seen.
 *
 * A panel is sixteen columns wide: panel j of depth n lies at j * n * 16, [n][16].  A product's element is one chain of
 * fused multiply-adds over the depth, ascending, whatever the tile: so a row's bits do not depend on its neighbours.
 */
#include "kernels/attention_source.h"
#include "kernels/kernel.h"
#include "ops/attention.h"
#include "simd/math.h"
#include "simd/panel.h"
#include "simd/words.h"

#include <math.h>
#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))

enum { KEYS = CK_ATTENTION_KEYS, CHAIN = CK_ATTENTION_CHAIN, TERMS = CK_ATTENTION_TERMS, ROWS = 6, AHEAD = 16 }; /* rows of a tile: 6 x 16 fills the registers of AVX2 */

/* AHEAD: rows between the one that is packed and the one that is fetched; in decoding, packing waits for memory. */

typedef struct { size_t from, to; } span; /* empty: {0, 0} */

/* The options that decide what a query sees and how its scores are bent. */
typedef struct {
    const int64_t *offsets, *lengths;
    int64_t q_offset, left, right;
    int causal;
    float scale, cap;
    size_t S;
    ck_array mask;
} rule;

#define RULE(a)                                                                                                  \
    ((rule){(a)->offsets, (a)->lengths, (a)->q_offset, (a)->left, (a)->right, (a)->causal, (float)(a)->scale,    \
            (float)(a)->softcap, (a)->S, (a)->attn_mask})

/* Keys in reach of query t of item b. */
static inline span
seen(const rule *u, size_t b, size_t t)
{
    const int64_t far = INT64_C(1) << 61, p = (u->offsets != NULL ? u->offsets[b] : u->q_offset) + (int64_t)t;
    int64_t from = 0, to = u->lengths != NULL ? u->lengths[b] : (int64_t)u->S;
    if (u->causal && p < to)
        to = p + 1;
    if (u->right >= 0 && u->right < far && p + u->right < to)
        to = p + u->right + 1;
    if (u->left >= 0 && u->left < far && p - u->left > 0)
        from = p - u->left;
    return from < to ? (span){(size_t)from, (size_t)to} : (span){0, 0};
}

/* The part of x in [at, at + n), counted from `at`. */
static inline span
within(span x, size_t at, size_t n)
{
    const size_t from = x.from > at ? x.from - at : 0, to = x.to > at ? x.to - at : 0;
    return from < (to < n ? to : n) ? (span){from, to < n ? to : n} : (span){0, 0};
}

/* The smallest span around both. */
static inline span
around(span x, span y)
{
    if (x.from == x.to || y.from == y.to)
        return x.from == x.to ? y : x;
    return (span){x.from < y.from ? x.from : y.from, x.to > y.to ? x.to : y.to};
}

static inline size_t wide(size_t n) { return (n + 15) / 16 * 16; }

/* The first of the rows [b,i,:,:] of an array, whose distance is x->stride[2]. */
static inline const char *
rows_at(const ck_array *x, size_t b, size_t i)
{
    return (const char *)x->data + (ptrdiff_t)b * x->stride[0] + (ptrdiff_t)i * x->stride[1];
}

/* Where the mask of (b, h, t, s) lies; NULL without one. */
static inline const char *
mask_at(const rule *u, size_t b, size_t h, size_t t, size_t s)
{
    if (u->mask.data == NULL)
        return NULL;
    return rows_at(&u->mask, b, h) + (ptrdiff_t)t * u->mask.stride[2] + (ptrdiff_t)s * u->mask.stride[3];
}

/* ---- packing ---- */

/* Rows of D, as they are, `wide(D)` apart, the rest 0. */
static inline void
pack_plain(float *to, const char *row, ptrdiff_t step, size_t n, size_t D)
{
    for (size_t i = 0; i < n; i++, row += step)
        for (size_t d = 0; d < D; d += 16, to += 16)
            v16_store_f32(to, v16_load((const elem *)row + d, D - d), 16);
}

/* Rows s0 + from..to as depth: panel j holds columns 16j.. of every row.  False when one of them is not finite. */
static inline bool
pack_rows(float *to, size_t depth, const source *x, size_t s0, span of)
{
    v16 strange = v16_zero();
    for (size_t i = of.from, n; i < of.to; i += n) {
        float widened[16 * PLACES];
        const float *row[PLACES];
        place at[PLACES];
        n = of.to - i < PLACES ? of.to - i : PLACES;
        source_places(x, s0 + i, n, at);
        for (size_t j = 0; j < n; j++)
            source_fetch(x, s0 + i + j + AHEAD, 0);
        for (size_t d = 0; d < x->D; d += 16) {
            source_floats(x, at, n, d, widened, row);
            for (size_t j = 0; j < n; j++) {
                const v16 z = v16_load_f32(row[j], x->D - d);
                strange = v16_fma(z, v16_zero(), strange); /* NaN from the first that is not finite */
                v16_store_f32(to + d * depth + (i + j) * 16, z, 16);
            }
        }
    }
    return v16_sum(strange) == 0.0f;
}

/* Columns d.. of n <= 16 rows, turned: to[c * 16 + row], 0 for the rows past n. */
static inline void
turn(float *to, const source *x, const place *at, size_t n, size_t d)
{
    float widened[16 * PLACES];
    const float *row[PLACES];
    source_floats(x, at, n, d, widened, row);
    for (size_t i = n; i < 16; i++)
        row[i] = ck_zeros;
    v16_transpose(to, 16, row, x->D - d < 16 ? x->D - d : 16);
}

/* Rows s0 + from..to as columns: panel j holds rows 16j.. over the depth D, 0 for those outside. */
static inline void
pack_columns(float *to, const source *x, size_t s0, span of)
{
    for (size_t i = of.from / 16 * 16; i < of.to; i += 16) {
        float widened[16 * PLACES];
        const float *row[PLACES];
        place at[PLACES];
        const size_t from = of.from > i ? of.from - i : 0, n = (of.to - i < 16 ? of.to - i : 16) - from;
        for (size_t j = 0; j < 16; j++)
            row[j] = ck_zeros;
        source_places(x, s0 + i + from, n, at);
        for (size_t j = 0; j < n; j++)
            source_fetch(x, s0 + i + from + j + AHEAD, 0);
        for (size_t d = 0; d < x->D; d += 16) {
            source_floats(x, at, n, d, widened, row + from);
            v16_transpose(to + i * x->D + d * 16, 16, row, x->D - d < 16 ? x->D - d : 16);
        }
    }
}

/* ---- products ---- */

/* What becomes of c before: nothing, the beginning of the chain, or it is added to the finished chain. */
typedef enum { FRESH, GO_ON, ADD } before;

/* c[r, 16j..] = sum over from <= k < to of a[r,k] * panel j[k], and what was there before: the tile stays in registers. */
ALWAYS void
tile(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t depth, span k, before c_is, const size_t rows,
     const size_t panels)
{
    v16 sum[ROWS][4];
    CK_UNROLL for (size_t r = 0; r < rows; r++)
        CK_UNROLL for (size_t j = 0; j < panels; j++)
            sum[r][j] = c_is == GO_ON ? v16_load_f32(c + r * ldc + 16 * j, 16) : v16_zero();
    for (size_t i = k.from; i < k.to; i++) {
        v16 x[4];
        CK_UNROLL for (size_t j = 0; j < panels; j++)
            x[j] = v16_load_f32(b + (j * depth + i) * 16, 16);
        CK_UNROLL for (size_t r = 0; r < rows; r++) {
            const v16 y = v16_splat(a[r * lda + i]);
            CK_UNROLL for (size_t j = 0; j < panels; j++)
                sum[r][j] = v16_fma(y, x[j], sum[r][j]);
        }
    }
    CK_UNROLL for (size_t r = 0; r < rows; r++)
        CK_UNROLL for (size_t j = 0; j < panels; j++) {
            float *to = c + r * ldc + 16 * j;
            v16_store_f32(to, c_is == ADD ? v16_add(v16_load_f32(to, 16), sum[r][j]) : sum[r][j], 16);
        }
}

/* `rows` rows with all panels, `at_once` of them at a time: as many as have sums in registers, up to four. */
ALWAYS void
tiles(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t depth, span k, before c_is, size_t panels,
      const size_t rows)
{
    const size_t most = CK_TILE_ROWS * CK_TILE_PANELS / rows, at_once = most > 4 ? 4 : most > 1 ? most : 1;
    size_t j = 0;
    for (; panels - j >= at_once; j += at_once)
        tile(c + 16 * j, ldc, a, lda, b + j * depth * 16, depth, k, c_is, rows, at_once);
    for (; at_once > 1 && j < panels; j++)
        tile(c + 16 * j, ldc, a, lda, b + j * depth * 16, depth, k, c_is, rows, 1);
}

/* Up to ROWS rows. */
static void
product(float *c, size_t ldc, const float *a, size_t lda, size_t rows, const float *b, size_t depth, span k, before c_is,
        size_t panels)
{
    if (rows == ROWS) {
        tiles(c, ldc, a, lda, b, depth, k, c_is, panels, ROWS);
        return;
    }
    for (; rows >= 3; rows -= 3, c += 3 * ldc, a += 3 * lda)
        tiles(c, ldc, a, lda, b, depth, k, c_is, panels, 3);
    for (; rows >= 1; rows--, c += ldc, a += lda)
        tiles(c, ldc, a, lda, b, depth, k, c_is, panels, 1);
}

/* Inner products over D: chains of CK_ATTENTION_CHAIN, added in order, which errs less than one chain. */
static inline void
inner_products(float *c, const float *a, size_t width, size_t rows, const float *columns, size_t D, size_t panels)
{
    for (size_t d = 0; d == 0 || d < D; d += CHAIN)
        product(c, KEYS, a, width, rows, columns, D, (span){d, D - d < CHAIN ? D : d + CHAIN}, d == 0 ? FRESH : ADD, panels);
}

/* ---- scores ---- */

static inline float one_value(const elem *x) { return v16_sum(v16_load(x, 1)); }

/* x = scale * x, bent by softcap; slope, if wanted, its derivative by scale * q.k; -inf outside `of`, in whole panels. */
static inline void
bend(const rule *u, float *x, float *slope, span of)
{
    const v16 scale = v16_splat(u->scale), cap = v16_splat(u->cap), one = v16_splat(1.0f);
    const size_t begin = of.from / 16 * 16, end = wide(of.to);
    for (size_t i = begin; i < end; i += 16) {
        v16 z = v16_mul(v16_load_f32(x + i, 16), scale);
        if (u->cap > 0.0f) {
            const v16 bent = v16_tanh(v16_div(z, cap));
            z = v16_mul(cap, bent);
            if (slope != NULL)
                v16_store_f32(slope + i, v16_mul(v16_sub(one, bent), v16_add(one, bent)), 16);
        }
        v16_store_f32(x + i, z, 16);
    }
    for (size_t i = begin; i < of.from; i++)
        x[i] = -INFINITY;
    for (size_t i = of.to; i < end; i++)
        x[i] = -INFINITY;
}

/* Adds the mask's entries of x[of]; -inf where it closes, whatever the score. */
static inline void
add_mask(const rule *u, float *x, span of, const char *m, ptrdiff_t step)
{
    if (m == NULL)
        return;
    if (u->mask.width == 1) {
        for (size_t i = of.from; i < of.to; i++)
            x[i] = m[(ptrdiff_t)i * step] != 0 ? x[i] : -INFINITY;
        return;
    }
    const bool dense = step == (ptrdiff_t)sizeof(elem);
    const v16 shut = v16_splat(-INFINITY);
    for (size_t i = of.from, n = 1; i < of.to; i += n) {
        n = !dense ? 1 : of.to - i < 16 ? of.to - i : 16;
        const v16 more = v16_load((const elem *)(m + (ptrdiff_t)i * step), n), z = v16_load_f32(x + i, n);
        v16_store_f32(x + i, v16_select(v16_eq(more, shut), shut, v16_add(z, more)), n);
    }
}

/* ---- weighted sums ---- */

/* Whether the mask closes entry i. */
static inline bool
is_shut(const rule *u, const char *m, ptrdiff_t step, size_t i)
{
    m += (ptrdiff_t)i * step;
    return u->mask.width == 1 ? *m == 0 : one_value((const elem *)m) == -INFINITY;
}

/*
 * weigh_some() for one row where a packed row is not finite: a closed entry's weight is 0, but 0 * NaN is NaN, so its row is
 * taken with 0 in place of what is not finite.  Elsewhere the same numbers in the same order.
 */
static void
weigh_strange(const rule *u, float *c, const float *w, span of, const float *b, size_t depth, size_t panels, const char *m,
              ptrdiff_t step)
{
    for (size_t j = 0; j < panels; j++) {
        v16 sum = v16_load_f32(c + 16 * j, 16);
        for (size_t i = of.from; i < of.to; i++) {
            v16 x = v16_load_f32(b + (j * depth + i) * 16, 16);
            if (is_shut(u, m, step, i))
                x = v16_select(v16_lt(v16_abs(x), v16_splat(INFINITY)), x, v16_zero());
            sum = v16_fma(v16_splat(w[i]), x, sum);
        }
        v16_store_f32(c + 16 * j, sum, 16);
    }
}

/* Where the mask of each row of weights begins, for packed rows that are not finite. */
typedef struct {
    const char *of[ROWS];
    ptrdiff_t step;
} closed;

/* c[r,:] += sum over k in of[r], ascending, of w[r,k] * row k of the packed b.  The keys that all rows see go together. */
static void
weigh_some(float *c, size_t width, const float *w, size_t ldw, const span *of, size_t rows, const float *b, size_t depth)
{
    const size_t panels = width / 16;
    span all = of[0];
    for (size_t r = 1; r < rows; r++)
        all = (span){all.from > of[r].from ? all.from : of[r].from, all.to < of[r].to ? all.to : of[r].to};
    for (size_t r = 0; r < rows; r++) {
        const span before = {of[r].from, all.from < all.to ? all.from : of[r].to};
        if (before.from < before.to)
            product(c + r * width, width, w + r * ldw, ldw, 1, b, depth, before, GO_ON, panels);
    }
    if (all.from >= all.to)
        return;
    product(c, width, w, ldw, rows, b, depth, all, GO_ON, panels);
    for (size_t r = 0; r < rows; r++)
        if (all.to < of[r].to)
            product(c + r * width, width, w + r * ldw, ldw, 1, b, depth, (span){all.to, of[r].to}, GO_ON, panels);
}

/*
 * c[r,:] += sum over k in of[r] of w[r,k] * row k of the packed b: a chain for every CK_ATTENTION_TERMS of k, anchored at
 * 0, and the chains added in order.  c and chain are [ROWS,width]; shut is NULL where packed rows are finite.
 */
static void
weigh(const rule *u, float *c, float *chain, size_t width, const float *w, size_t ldw, const span *of, size_t rows,
      const float *b, size_t depth, const closed *shut)
{
    const size_t panels = width / 16;
    span any = {0, 0};
    for (size_t r = 0; r < rows; r++)
        any = around(any, of[r]);
    for (size_t k = any.from / TERMS * TERMS; k < any.to; k += TERMS) {
        span now[ROWS];
        bool same = shut == NULL;
        for (size_t r = 0; r < rows; r++) {
            now[r] = within(of[r], k, TERMS);
            now[r] = (span){now[r].from + k, now[r].to + k};
            same = same && now[r].from == now[0].from && now[r].to == now[0].to;
        }
        if (same) {
            product(c, width, w, ldw, rows, b, depth, now[0], ADD, panels);
            continue;
        }
        memset(chain, 0, rows * width * sizeof *chain);
        if (shut == NULL)
            weigh_some(chain, width, w, ldw, now, rows, b, depth);
        for (size_t r = 0; shut != NULL && r < rows; r++)
            weigh_strange(u, chain + r * width, w + r * ldw, now[r], b, depth, panels, shut->of[r], shut->step);
        for (size_t i = 0; i < rows * width; i += 16)
            v16_store_f32(c + i, v16_add(v16_load_f32(c + i, 16), v16_load_f32(chain + i, 16)), 16);
    }
}
#endif
