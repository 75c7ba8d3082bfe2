/* Sums of products by a matrix unit: operands brought into tiles, tiles multiplied two by two. */
#include "kernels/kernel.h"
#include "ops/gemm_tiles.h"
#include "simd/matrix.h"
#include "simd/pairs.h"

enum { TILE = CK_MATRIX_TILE, STEP = CK_TILES_STEP };

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
    const size_t item = a->share_b ? 0 : w->at.batch, each = 2 * (CK_TILES_K / STEP) * (size_t)TILE;
    for (size_t j = 0; j < 2; j++, n += 16) {
        char *to = w->b + j * (CK_TILES_K / STEP) * TILE;
        const size_t have = n < a->N ? a->N - n : 0;
        if (a->packed != NULL) {
            const ck_array panel = ck_rows(a->packed + (have != 0 ? n / CK_PANEL * a->K * CK_PANEL : 0), a->K, CK_PANEL, sizeof(float));
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

/*
 * One or two tiles of rows times one or two of columns: c in tiles 0 to 3, a in 4 and 5, b in 6 and 7.  `parts` is NULL for
 * one product, of the first parts.
 */
CK_TEMPLATE void
corner(bool tall, bool wide, const ck_part_products *parts, const char *a, size_t down, size_t part_a, const char *b,
       size_t part_b, size_t tiles, float *c, size_t columns, bool first)
{
    const size_t row = columns * sizeof(float), across = CK_TILES_K / STEP * (size_t)TILE;
    if (first) {
        CK_MATRIX_ZERO(0); CK_MATRIX_ZERO(1); CK_MATRIX_ZERO(2); CK_MATRIX_ZERO(3);
    } else {
        CK_MATRIX_LOAD(0, c, row);
        if (wide) CK_MATRIX_LOAD(1, c + 16, row);
        if (tall) CK_MATRIX_LOAD(2, c + 16 * columns, row);
        if (tall && wide) CK_MATRIX_LOAD(3, c + 16 * columns + 16, row);
    }
    for (size_t k = 0; k < tiles; k++, a += TILE, b += TILE)
        for (size_t p = 0; p < (parts != NULL ? parts->n : 1); p++) {
            const size_t i = parts != NULL ? parts->product[p].a : 0, j = parts != NULL ? parts->product[p].b : 0;
            if (p == 0 || i != parts->product[p - 1].a) {
                CK_MATRIX_LOAD(4, a + i * part_a, CK_MATRIX_ROW);
                if (tall) CK_MATRIX_LOAD(5, a + i * part_a + down, CK_MATRIX_ROW);
            }
            if (p == 0 || j != parts->product[p - 1].b) {
                CK_MATRIX_LOAD(6, b + j * part_b, CK_MATRIX_ROW);
                if (wide) CK_MATRIX_LOAD(7, b + j * part_b + across, CK_MATRIX_ROW);
            }
            CK_MATRIX_DOT_BF16(0, 4, 6);
            if (wide) CK_MATRIX_DOT_BF16(1, 4, 7);
            if (tall) CK_MATRIX_DOT_BF16(2, 5, 6);
            if (tall && wide) CK_MATRIX_DOT_BF16(3, 5, 7);
        }
    CK_MATRIX_STORE(0, c, row);
    if (wide) CK_MATRIX_STORE(1, c + 16, row);
    if (tall) CK_MATRIX_STORE(2, c + 16 * columns, row);
    if (tall && wide) CK_MATRIX_STORE(3, c + 16 * columns + 16, row);
}

/* Columns n.. of the block, two tiles of them; A from its tile `from` along k on. */
static void
strip(const struct ck_gemm_tiles *t, const work *w, size_t n, size_t k, size_t from, size_t tiles)
{
    const ck_part_products *parts = t->parts->n == 1 ? NULL : t->parts;
    const size_t part_a = w->down * w->kept * TILE, part_b = 2 * (CK_TILES_K / STEP) * (size_t)TILE, below = w->kept * TILE;
    const bool wide = w->at.columns - n > 16;

    take_b(t, w, w->at.n + n, k, tiles);
    for (size_t i = 0; i < w->down; i += 2) {
        const char *a = w->a + i * below + from * TILE;
        float *c = w->sums + 16 * i * w->columns + n;
        const bool tall = i + 1 < w->down;
#define CORNER(tall, wide, parts) corner(tall, wide, parts, a, below, part_a, w->b, part_b, tiles, c, w->columns, k == 0)
        if (parts != NULL)
            CORNER(tall, wide, parts);
        else if (tall && wide)
            CORNER(true, true, NULL);
        else if (tall)
            CORNER(true, false, NULL);
        else if (wide)
            CORNER(false, true, NULL);
        else
            CORNER(false, false, NULL);
#undef CORNER
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
