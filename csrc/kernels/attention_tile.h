#ifndef CK_ATTENTION_TILE_H
#define CK_ATTENTION_TILE_H
/*
 * The products that attention is made of: how their operands are packed, and tiles that stay in registers.
 *
 * The right operand is panels of sixteen columns: row k of panel j at b + j * panel + k * step.  The left one is
 * either packed, tile after tile of rows, [depth][rows of the tile] each, or scores: rows STEP apart, taken as
 * they are or turned. An element of a product is a sum of chains of fused multiply-adds, anchored at 0 of the
 * depth, each from zero, added in order, whatever the tile: so a row's bits do not depend on its neighbours.
 */
#include "kernels/attention_rule.h"
#include "kernels/attention_source.h"
#include "simd/panel.h"

#define ALWAYS static inline __attribute__((always_inline))

enum {
    CHAIN = CK_ATTENTION_CHAIN,
    TERMS = CK_ATTENTION_TERMS,
    STEP = CK_ATTENTION_STEP, /* from row to row of scores */
    AHEAD = 16,               /* rows between the one that is packed and the one that is fetched */
};

/* Rows of the next tile, where `left` are left: few different ones, as each is compiled apart. */
static inline size_t
tile_height(size_t left)
{
    const size_t half = CK_TILE_ROWS / 2;
    if (left >= CK_TILE_ROWS)
        return CK_TILE_ROWS;
    if (half > 4 && left < half && left >= 4)
        return 4;
    return half > 2 && left >= half ? half : left >= 2 ? 2 : 1;
}

/* ---- packing ---- */

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

/* Rows as a left operand: tile after tile, [D][rows of the tile] each. */
static inline void
pack_left(float *to, const source *x, const place *at, size_t n)
{
    for (size_t i = 0, height; i < n; i += height) {
        height = tile_height(n - i);
        for (size_t d = 0; d < x->D; d += 16) {
            float turned[16 * 16];
            turn(turned, x, at + i, height, d);
            for (size_t c = 0; c < 16 && d + c < x->D; c++, to += height)
                v16_store_f32(to, v16_load_f32(turned + 16 * c, 16), height);
        }
    }
}

/* Rows as they are, `step` floats apart, 0 from D to the end of the last panel. */
static inline void
pack_plain(float *to, size_t step, const source *x, const place *at, size_t n)
{
    for (size_t i = 0, m; i < n; i += m) {
        m = n - i < PLACES ? n - i : PLACES;
        for (size_t d = 0; d < x->D; d += 16) {
            float widened[16 * PLACES];
            const float *row[PLACES];
            source_floats(x, at + i, m, d, widened, row);
            for (size_t j = 0; j < m; j++)
                v16_store_f32(to + (i + j) * step + d, v16_load_f32(row[j], x->D - d), 16);
        }
    }
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
        for (size_t d = 0; d < x->D; d += 16) {
            source_floats(x, at, n, d, widened, row);
            for (size_t j = 0; j < n; j++) {
                source_fetch(x, s0 + i + j + AHEAD, d);
                const v16 z = v16_load_f32(row[j], x->D - d);
                strange = v16_fma(z, v16_zero(), strange); /* NaN from the first that is not finite */
                v16_store_f32(to + d * depth + (i + j) * 16, z, 16);
            }
        }
    }
    return v16_sum(strange) == 0.0f;
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
        for (size_t d = 0; d < x->D; d += 16) {
            for (size_t j = 0; j < n; j++)
                source_fetch(x, s0 + i + from + j + AHEAD, d);
            source_floats(x, at, n, d, widened, row + from);
            v16_transpose(to + i * x->D + d * 16, 16, row, x->D - d < 16 ? x->D - d : 16);
        }
    }
}

/* ---- products ---- */

/* The left operand: see above; TURNED: element (i,k) at a[k * STEP + i]. */
typedef enum { PACKED, SCORES, TURNED } left;

/* The right operand, the place of the result, and the depth. */
typedef struct {
    float *c;
    size_t ldc;
    const float *b;
    size_t panel, step;
    span k;
    size_t chain;
    bool fresh; /* whether c is written; otherwise it is added to */
} product;

ALWAYS void
tile(const product *o, const float *a, float *c, const float *b, size_t rows, size_t panels, left how)
{
    const size_t row = how == SCORES ? STEP : 1, deep = how == PACKED ? rows : how == TURNED ? STEP : 1;
    bool fresh = o->fresh;
    for (size_t k = o->k.from, end; k < o->k.to; k = end, fresh = false) {
        v16 sum[CK_TILE_ROWS][CK_TILE_PANELS];
        const float *x = a + k * deep, *y = b + k * o->step;
        end = k / o->chain * o->chain + o->chain;
        end = end < o->k.to ? end : o->k.to;
        CK_UNROLL for (size_t i = 0; i < rows; i++)
            CK_UNROLL for (size_t j = 0; j < panels; j++)
                sum[i][j] = v16_zero();
        for (size_t n = end - k; n > 0; n--, x += deep, y += o->step) {
            v16 z[CK_TILE_PANELS];
            CK_UNROLL for (size_t j = 0; j < panels; j++)
                z[j] = v16_load_f32(y + j * o->panel, 16);
            CK_UNROLL for (size_t i = 0; i < rows; i++) {
                const v16 f = v16_splat(x[i * row]);
                CK_UNROLL for (size_t j = 0; j < panels; j++)
                    sum[i][j] = v16_fma(f, z[j], sum[i][j]);
            }
        }
        CK_UNROLL for (size_t i = 0; i < rows; i++)
            CK_UNROLL for (size_t j = 0; j < panels; j++) {
                float *to = c + i * o->ldc + 16 * j;
                v16_store_f32(to, fresh ? sum[i][j] : v16_add(v16_load_f32(to, 16), sum[i][j]), 16);
            }
    }
}

ALWAYS void
tile_of(const product *o, const float *a, float *c, const float *b, size_t rows, size_t panels, left how)
{
    if (panels == CK_TILE_PANELS)
        tile(o, a, c, b, rows, CK_TILE_PANELS, how);
    else
        tile(o, a, c, b, rows, 1, how);
}

/* A tile's height of rows of the left operand `a` with `panels` panels from panel j on, at most CK_TILE_PANELS. */
ALWAYS void
multiply(const product *o, const float *a, size_t rows, size_t r, size_t j, size_t panels, left how)
{
    float *c = o->c + r * o->ldc + 16 * j;
    const float *b = o->b + j * o->panel;
    enum { HALF = CK_TILE_ROWS / 2 };
    if (rows == CK_TILE_ROWS)
        tile_of(o, a, c, b, CK_TILE_ROWS, panels, how);
    else if (HALF > 2 && rows == HALF)
        tile_of(o, a, c, b, HALF > 2 ? HALF : 1, panels, how);
    else if (HALF > 4 && rows == 4)
        tile_of(o, a, c, b, HALF > 4 ? 4 : 1, panels, how);
    else if (CK_TILE_ROWS > 2 && rows == 2)
        tile_of(o, a, c, b, CK_TILE_ROWS > 2 ? 2 : 1, panels, how);
    else
        tile_of(o, a, c, b, 1, panels, how);
}

static void
multiply_packed(const product *o, const float *a, size_t rows, size_t r, size_t j, size_t panels)
{
    multiply(o, a, rows, r, j, panels, PACKED);
}

static void
multiply_scores(const product *o, const float *a, size_t rows, size_t r, size_t j, size_t panels)
{
    multiply(o, a, rows, r, j, panels, SCORES);
}

/* How many panels go together from panel j on, where there are n. */
static inline size_t
panels_from(size_t j, size_t n)
{
    return n - j < CK_TILE_PANELS ? 1 : CK_TILE_PANELS;
}

/* ---- rows against the keys of a partition ---- */

/* What each tile of rows sees of a partition: the span around what its rows see, at the index of its first row. */
static inline void
spans_of_tiles(span *tiles, const span *of, size_t rows)
{
    for (size_t r = 0, height; r < rows; r += height) {
        height = tile_height(rows - r);
        tiles[r] = of[r];
        for (size_t i = 1; i < height; i++)
            tiles[r] = around(tiles[r], of[r + i]);
    }
}

/* x[r,key] = inner products over D of packed rows and the keys of `of`, packed as columns: by panels, kept in L1. */
static inline void
inner_products(float *x, const float *left, const float *columns, size_t D, size_t rows, const span *tiles, span of)
{
    const size_t last = wide(of.to) / 16;
    if (D == 0)
        memset(x, 0, rows * STEP * sizeof *x);
    const product o = {.c = x, .ldc = STEP, .b = columns, .panel = D * 16, .step = 16, .k = {0, D}, .chain = CHAIN,
                       .fresh = true};
    for (size_t j = of.from / 16, n; j < last; j += n) {
        n = panels_from(j, last);
        for (size_t r = 0, height; r < rows; r += height) {
            height = tile_height(rows - r);
            if (tiles[r].from < 16 * (j + n) && tiles[r].to > 16 * j)
                multiply_packed(&o, left + r * D, height, r, j, n);
        }
    }
}

/*
 * y[r,:] += sum over the keys of of[r], ascending, of w[r,key] * row key of the packed b: a chain for every TERMS
 * keys.  A tile takes the keys that some of its rows see; to the others these are weights of 0, which change no
 * bit of a sum.
 */
static inline void
weigh(float *y, size_t width, const float *w, const float *b, size_t rows, const span *tiles)
{
    product o = {.c = y, .ldc = width, .b = b, .panel = KEYS * 16, .step = 16, .chain = TERMS};
    for (size_t j = 0, n; j < width / 16; j += n) {
        n = panels_from(j, width / 16);
        for (size_t r = 0, height; r < rows; r += height) {
            height = tile_height(rows - r);
            o.k = tiles[r];
            if (o.k.from < o.k.to)
                multiply_scores(&o, w + r * STEP, height, r, j, n);
        }
    }
}

/*
 * The same for one row where a packed row is not finite: 0 * NaN is NaN, so keys that this row does not see are
 * left out, and those that its mask closes are taken with 0 in place of what is not finite.  Elsewhere the same
 * numbers in the same order.
 */
static inline void
weigh_strange(const rule *u, float *y, size_t width, const float *w, const float *b, span of, const char *mask)
{
    const ptrdiff_t step = mask_step(u);
    for (size_t j = 0; j < width / 16; j++) {
        v16 sum = v16_load_f32(y + 16 * j, 16), chain = v16_zero();
        for (size_t i = of.from; i < of.to; i++) {
            v16 x = v16_load_f32(b + (j * KEYS + i) * 16, 16);
            if (is_shut(u, mask, step, i))
                x = v16_select(v16_lt(v16_abs(x), v16_splat(INFINITY)), x, v16_zero());
            chain = v16_fma(v16_splat(w[i]), x, chain);
            if ((i + 1) % TERMS == 0 || i + 1 == of.to) {
                sum = v16_add(sum, chain);
                chain = v16_zero();
            }
        }
        v16_store_f32(y + 16 * j, sum, 16);
    }
}
#endif
