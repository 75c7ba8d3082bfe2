/* Sums of products by a matrix unit: operands brought into tiles, tiles multiplied two by two. */
#include "kernels/kernel.h"
#include "ops/gemm_tiles.h"
#include "simd/matrix.h"
#include "simd/pairs.h"

enum { TILE = CK_MATRIX_TILE, STEP = CK_TILES_STEP };
enum { ACROSS = CK_TILES_K / STEP * TILE }; /* bytes from one tile of a strip's columns to the other */

/* One block of c on its way.  Tiles of A lie [part][down][along k], those of a strip of B [part][2][along k]. */
typedef struct {
    ck_gemm_block at;
    float *sums;
    char *a, *b;
    size_t columns; /* from row to row of the sums */
    size_t down;    /* tiles of A, one below the other */
    size_t kept;    /* tiles along k that A has room for */
} work;

/* Columns n.. of B, two tiles of them, `tiles` along k from k on. */
static void
take_b(const struct ck_gemm_tiles *t, const work *w, size_t n, size_t k, size_t tiles)
{
    const struct ck_gemm *a = &t->gemm;
    const size_t item = a->share_b ? 0 : w->at.batch, each = 2 * ACROSS;
    for (size_t j = 0; j < 2; j++, n += 16) {
        char *to = w->b + j * ACROSS;
        const size_t have = n < a->N ? a->N - n : 0;
        if (a->packed != NULL) {
            const ck_array panel = ck_rows(a->packed + (have != 0 ? n / CK_PANEL * a->K * CK_PANEL : 0), a->K, CK_PANEL, sizeof(elem));
            ck_pairs_across(to, each, t->parts->parts_b, &panel, k, a->K - k, 0, have, tiles, false);
        } else if (a->transpose_b)
            ck_pairs_along(to, each, t->parts->parts_b, &a->b, item * a->N + n, have, k, a->K - k, tiles, true);
        else
            ck_pairs_across(to, each, t->parts->parts_b, &a->b, item * a->K + k, a->K - k, n, have, tiles, false);
    }
}

/* All rows of the block, `tiles` along k from k on. */
static void
take_a(const struct ck_gemm_tiles *t, const work *w, size_t k, size_t tiles)
{
    const struct ck_gemm *a = &t->gemm;
    const size_t item = a->share_a ? 0 : w->at.batch, each = w->down * w->kept * TILE;
    for (size_t i = 0; i < w->down; i++) {
        char *to = w->a + i * w->kept * TILE;
        const size_t m = w->at.m + 16 * i, have = w->at.rows - 16 * i;
        if (a->transpose_a)
            ck_pairs_across(to, each, t->parts->parts_a, &a->a, item * a->K + k, a->K - k, m, have, tiles, true);
        else
            ck_pairs_along(to, each, t->parts->parts_a, &a->a, item * a->M + m, have, k, a->K - k, tiles, false);
    }
}

/* Operands of a corner of the block: one or two tiles of rows times one or two of columns. */
typedef struct {
    const char *a, *b;            /* the first tiles of the first parts */
    size_t below, part_a, part_b; /* bytes to the second tile of rows, to the next part; of columns it is ACROSS */
    size_t tiles;                 /* along k */
} operands;

/* c in tiles 0 to 3, a in 4 and 5, b in 6 and 7. */
CK_TEMPLATE void
load(bool tall, bool wide, const float *c, size_t columns)
{
    const size_t row = columns * sizeof(float);
    CK_MATRIX_LOAD(0, c, row);
    if (wide) CK_MATRIX_LOAD(1, c + 16, row);
    if (tall) CK_MATRIX_LOAD(2, c + 16 * columns, row);
    if (tall && wide) CK_MATRIX_LOAD(3, c + 16 * columns + 16, row);
}

CK_TEMPLATE void
store(bool tall, bool wide, float *c, size_t columns)
{
    const size_t row = columns * sizeof(float);
    CK_MATRIX_STORE(0, c, row);
    if (wide) CK_MATRIX_STORE(1, c + 16, row);
    if (tall) CK_MATRIX_STORE(2, c + 16 * columns, row);
    if (tall && wide) CK_MATRIX_STORE(3, c + 16 * columns + 16, row);
}

static inline void
zero(void)
{
    CK_MATRIX_ZERO(0); CK_MATRIX_ZERO(1); CK_MATRIX_ZERO(2); CK_MATRIX_ZERO(3);
}

CK_TEMPLATE void
load_a(bool tall, const char *a, size_t below)
{
    CK_MATRIX_LOAD(4, a, CK_MATRIX_ROW);
    if (tall) CK_MATRIX_LOAD(5, a + below, CK_MATRIX_ROW);
}

CK_TEMPLATE void
load_b(bool wide, const char *b)
{
    CK_MATRIX_LOAD(6, b, CK_MATRIX_ROW);
    if (wide) CK_MATRIX_LOAD(7, b + ACROSS, CK_MATRIX_ROW);
}

CK_TEMPLATE void
dot(bool tall, bool wide)
{
    CK_MATRIX_DOT_BF16(0, 4, 6);
    if (wide) CK_MATRIX_DOT_BF16(1, 4, 7);
    if (tall) CK_MATRIX_DOT_BF16(2, 5, 6);
    if (tall && wide) CK_MATRIX_DOT_BF16(3, 5, 7);
}

/* One product: k goes on in the sums that there are. */
CK_TEMPLATE void
corner(bool tall, bool wide, const operands *o, float *c, size_t columns, bool first)
{
    if (first)
        zero();
    else
        load(tall, wide, c, columns);
    for (size_t k = 0; k < o->tiles; k++) {
        load_a(tall, o->a + k * TILE, o->below);
        load_b(wide, o->b + k * TILE);
        dot(tall, wide);
    }
    store(tall, wide, c, columns);
}

/* Products from..to-1 of parts, for each 32 of k; an operand that the one before had stays. */
static inline void
multiply_parts(bool tall, bool wide, const operands *o, const ck_part_products *parts, size_t from, size_t to)
{
    for (size_t k = 0; k < o->tiles; k++)
        for (size_t p = from; p < to; p++) {
            const size_t i = parts->product[p].a, j = parts->product[p].b;
            if (p == from || i != parts->product[p - 1].a)
                load_a(tall, o->a + i * o->part_a + k * TILE, o->below);
            if (p == from || j != parts->product[p - 1].b)
                load_b(wide, o->b + j * o->part_b + k * TILE);
            dot(tall, wide);
        }
}

/* Products of parts: the small ones first, from zero, so that little is lost; then added to the sums that there are. */
static void
corner_of_parts(bool tall, bool wide, const operands *o, const ck_part_products *parts, float *c, size_t columns, bool first)
{
    float fresh[32 * 32];
    zero();
    multiply_parts(tall, wide, o, parts, 0, parts->n - 1);
    multiply_parts(tall, wide, o, parts, parts->n - 1, parts->n);
    if (first) {
        store(tall, wide, c, columns);
        return;
    }
    store(tall, wide, fresh, 32);
    for (size_t m = 0; m < (tall ? 32 : 16); m++)
        for (size_t n = 0; n < (wide ? 32 : 16); n += 16)
            v16_store_f32(c + m * columns + n, v16_add(v16_load_f32(c + m * columns + n, 16), v16_load_f32(fresh + 32 * m + n, 16)), 16);
}

/* Columns n.. of the block, two tiles of them; A from its tile `from` along k on. */
static void
strip(const struct ck_gemm_tiles *t, const work *w, size_t n, size_t k, size_t from, size_t tiles)
{
    operands o = {.b = w->b, .below = w->kept * TILE, .part_a = w->down * w->kept * TILE, .part_b = 2 * ACROSS, .tiles = tiles};
    const bool wide = w->at.columns - n > 16, first = k == 0;

    take_b(t, w, w->at.n + n, k, tiles);
    for (size_t i = 0; i < w->down; i += 2) {
        float *c = w->sums + 16 * i * w->columns + n;
        const bool tall = i + 1 < w->down;
        o.a = w->a + i * o.below + from * TILE;
        if (t->parts->n > 1)
            corner_of_parts(tall, wide, &o, t->parts, c, w->columns, first);
        else if (tall && wide)
            corner(true, true, &o, c, w->columns, first);
        else if (tall)
            corner(true, false, &o, c, w->columns, first);
        else if (wide)
            corner(false, true, &o, c, w->columns, first);
        else
            corner(false, false, &o, c, w->columns, first);
    }
}

static void
block(const struct ck_gemm_tiles *t, ck_gemm_block at, char *scratch)
{
    const struct ck_gemm *a = &t->gemm;
    const ck_tiles_scratch s = ck_tiles_scratch_of(a, t->parts);
    const size_t all = (a->K + STEP - 1) / STEP, most = CK_TILES_K / STEP;
    work w = {.at = at, .sums = (float *)scratch, .columns = a->columns, .down = (at.rows + 15) / 16, .kept = s.kept};
    w.a = scratch + s.rows * a->columns * sizeof(float);
    w.b = w.a + s.a;

    if (a->thin) {
        take_a(t, &w, 0, all);
        for (size_t n = 0; n < at.columns; n += 32)
            for (size_t k = 0; k < all; k += most)
                strip(t, &w, n, k * STEP, k, all - k < most ? all - k : most);
        return;
    }
    for (size_t k = 0; k < all; k += most) {
        const size_t tiles = all - k < most ? all - k : most;
        take_a(t, &w, k * STEP, tiles);
        for (size_t n = 0; n < at.columns; n += 32)
            strip(t, &w, n, k * STEP, 0, tiles);
    }
}

CK_KERNEL(gemm_tiles)
{
    ck_matrix_begin();
    for (size_t i = task.begin; i < task.end; i++)
        block(a, ck_gemm_block_at(&a->gemm, i), task.scratch);
    ck_matrix_end();
}
