#include "kernels/kernel.h"
#include "kernels/gemm_row.h"
#include "simd/panel.h"
#include "simd/short.h"

enum {
    TURNED = 4,  /* most rows for which the panels of a plain weight are not packed */
    AHEAD = 128, /* elements to prefetch ahead in each row of it */
    DIRECT = CK_TILE_ROWS < 4 ? CK_TILE_ROWS : 4, /* most rows for which 16-bit panels are widened as they are used */
};

/* A block of A: rows m.., K of its columns from k on; row i to a + i*CK_GEMM_STEP. */
static void
take_a(float *to, const struct ck_gemm *a, const ck_gemm_block *at, size_t k, size_t K)
{
    const size_t item = a->share_a ? 0 : at->batch;
    if (!a->transpose_a) {
        ck_copy(to, CK_GEMM_STEP, &a->a, item * a->M + at->m, at->rows, k, K);
        return;
    }
    for (size_t i = 0; i < K; i += 16)
        ck_turn(to + i, CK_GEMM_STEP, &a->a, item * a->K + k + i, K - i, at->m, at->rows);
}

/* The panel of columns n.. of B, K of its rows from k on, as floats. */
static const float *
take_b(float *to, const struct ck_gemm *a, size_t batch, size_t n, size_t k, size_t K)
{
    const size_t item = a->share_b ? 0 : batch;
    if (a->packed != NULL) {
        const elem *const panel = a->packed + (n / CK_PANEL * a->K + k) * CK_PANEL;
        if (CK_IS_FLOAT)
            return (const float *)panel;
        for (size_t i = 0; i < K * CK_PANEL; i += CK_PANEL)
            v16_store_f32(to + i, v16_load(panel + i, CK_PANEL), CK_PANEL);
        return to;
    }
    if (a->transpose_b)
        ck_turn(to, CK_PANEL, &a->b, item * a->N + n, a->N - n, k, K);
    else
        ck_copy(to, CK_PANEL, &a->b, item * a->K + k, K, n, a->N - n < CK_PANEL ? a->N - n : CK_PANEL);
    return to;
}

typedef struct {
    const float *a, *b;
    size_t panel; /* numbers from one panel of b to the next */
    size_t K;
    float *sum;
    size_t stride;
    bool first;
} operands;

static inline __attribute__((always_inline)) void
tile_of(size_t rows, size_t panels, const operands *o, size_t m)
{
    ck_tile(rows, panels, o->a + m * CK_GEMM_STEP, CK_GEMM_STEP, o->b, o->panel, o->K, o->sum + m * o->stride, o->stride,
            o->first);
}

/* All rows of a block times one or more panels, in tiles of nearly equal height: a short last one would starve. */
static void
multiply(const operands *o, size_t rows, size_t panels)
{
    size_t tiles = (rows + CK_TILE_ROWS - 1) / CK_TILE_ROWS;
    for (size_t m = 0, height; m < rows; m += height, tiles--) {
        height = (rows - m + tiles - 1) / tiles;
#define CK_HEIGHT(h)                               \
    case h:                                        \
        if (panels == CK_TILE_PANELS)              \
            tile_of(h, CK_TILE_PANELS, o, m);      \
        else                                       \
            tile_of(h, 1, o, m);                   \
        break;
        switch (height) { CK_TILES(CK_HEIGHT) }
    }
}

/* The same for DIRECT rows at most and packed panels of 16 bits. */
static void
multiply_direct(const operands *o, const elem *b, size_t rows, size_t panels)
{
#define CK_DIRECT(h)                                                                                              \
    if (rows == h && panels == CK_TILE_PANELS)                                                                    \
        ck_tile_elem(h, CK_TILE_PANELS, o->a, CK_GEMM_STEP, b, o->panel, o->K, o->sum, o->stride, o->first);      \
    else if (rows == h)                                                                                           \
        ck_tile_elem(h, 1, o->a, CK_GEMM_STEP, b, o->panel, o->K, o->sum, o->stride, o->first);
    CK_DIRECT(1)
    CK_DIRECT(2)
#if !defined(CK_TILE_PORTABLE_H)
    CK_DIRECT(3)
    CK_DIRECT(4)
#endif
}

static inline v16
activate(v16 z, int64_t activation)
{
    switch (activation) {
    case CK_RELU: return v16_relu(z);
    case CK_SILU: return v16_silu_elem(z);
    case CK_GELU: return v16_gelu_elem(z);
    case CK_GELU_TANH: return CK_FAULT(linear_gelu_erf) ? v16_gelu_elem(z) : v16_gelu_tanh_elem(z);
    case CK_GELU_SIGMOID: return v16_gelu_sigmoid_elem(z);
    case CK_SIGMOID: return v16_sigmoid_elem(z);
    case CK_TANH: return v16_tanh_elem(z);
    default: return z;
    }
}

/* bias, activation, residual; then to c. */
static void
finish(const struct ck_gemm *a, const ck_gemm_block *at, const float *sum, size_t stride)
{
    for (size_t i = 0; i < at->rows; i++, sum += stride) {
        const size_t row = at->batch * a->M + at->m + i;
        const elem *residual = a->residual.data != NULL ? (const elem *)ck_row(&a->residual, row) + at->n : NULL;
        elem *pre = a->pre.data != NULL ? (elem *)ck_row(&a->pre, row) + at->n : NULL;
        elem *c = (elem *)ck_row(&a->c, row) + at->n;
        for (size_t j = 0; j < at->columns; j += 16) {
            const size_t n = at->columns - j;
            v16 z = v16_load_f32(sum + j, 16);
            if (a->bias != NULL && !CK_FAULT(linear_bias_missing))
                z = v16_add(z, v16_load(a->bias + at->n + j, n));
            if (CK_FAULT(linear_bias_doubled) && a->bias != NULL)
                z = v16_add(z, v16_load(a->bias + at->n + j, n));
            if (pre != NULL)
                v16_store(pre + j, z, n);
            z = activate(z, a->activation);
            if (residual != NULL && !CK_FAULT(linear_residual_missing))
                z = v16_add(z, v16_load(residual + j, n));
            v16_store(c + j, z, n);
        }
    }
}

/* K of one panel of a plain weight, turned in registers: for so few rows a packed panel would not be used enough. */
static inline __attribute__((always_inline)) void
turn_of(size_t rows, const operands *o, const struct ck_gemm *a, size_t n, size_t k)
{
    const size_t have = a->N - n < CK_PANEL ? a->N - n : CK_PANEL;
    const elem *from[CK_PANEL];
    const float *at[CK_PANEL];
    float wide[16 * CK_PANEL];

    for (size_t i = 0; i < CK_PANEL; i++) /* columns past the end repeat the last: nobody stores them */
        from[i] = (const elem *)ck_row(&a->b, n + (i < have ? i : have - 1)) + k;
    for (size_t begin = 0; begin < o->K; begin += CK_CHAIN) {
        v16 s[TURNED];
        for (size_t i = 0; i < rows; i++)
            s[i] = v16_zero();
        for (size_t j = begin; j < begin + CK_CHAIN; j += 16) {
            for (size_t i = 0; i < CK_PANEL; i++) {
                at[i] = ck_floats(wide + 16 * i, from[i] + j, 16);
                ck_prefetch(from[i] + j + AHEAD);
            }
            v16_fma_turned(s, rows, o->a + j, CK_GEMM_STEP, at);
        }
        for (size_t i = 0; i < rows; i++) {
            float *sum = o->sum + i * o->stride;
            v16_store_f32(sum, o->first && begin == 0 ? s[i] : v16_add(v16_load_f32(sum, 16), s[i]), 16);
        }
    }
}

static void
turn(const operands *o, size_t rows, const struct ck_gemm *a, size_t n, size_t k)
{
    switch (rows) {
    case 1: turn_of(1, o, a, n, k); break;
    case 2: turn_of(2, o, a, n, k); break;
    case 3: turn_of(3, o, a, n, k); break;
    default: turn_of(4, o, a, n, k); break;
    }
}

/* One block of c on its way: A for some k, the panels of B in use, the sums. */
typedef struct {
    ck_gemm_block at;
    float *rows, *panels, *sums;
    size_t stride; /* of sums */
} work;

/* Columns n.. of the block, as many panels as a tile has, for K from k on; A of these k is at `rows`. */
static void
strip(const struct ck_gemm *a, const work *w, const float *rows, size_t n, size_t k)
{
    const size_t K = a->K - k < CK_GEMM_K ? a->K - k - (CK_FAULT(linear_k_tail) && a->K - k > 1) : CK_GEMM_K, column = w->at.n + n;
    const size_t left = (w->at.columns - n + CK_PANEL - 1) / CK_PANEL;
    const size_t wide = left < CK_TILE_PANELS ? 1 : CK_TILE_PANELS;
    operands o = {.a = rows, .K = K, .sum = w->sums + n, .stride = w->stride, .first = k == 0,
                  .panel = (CK_IS_FLOAT && a->packed != NULL ? a->K : CK_GEMM_K) * CK_PANEL};

    if (a->thin && a->packed == NULL && w->at.rows <= TURNED && a->B == 1 && K % CK_CHAIN == 0) {
        for (size_t j = 0; j < wide; j++, o.sum += CK_PANEL)
            turn(&o, w->at.rows, a, column + j * CK_PANEL, k);
        return;
    }
    if (!CK_IS_FLOAT && a->packed != NULL && w->at.rows <= DIRECT) {
        o.panel = a->K * CK_PANEL;
        multiply_direct(&o, a->packed + (column / CK_PANEL * a->K + k) * CK_PANEL, w->at.rows, wide);
        return;
    }
    for (size_t j = wide; j-- > 0;)
        o.b = take_b(w->panels + j * o.panel, a, w->at.batch, column + j * CK_PANEL, k, K);
    multiply(&o, w->at.rows, wide);
    for (size_t i = 0; CK_FAULT(linear_short_sums) && i < w->at.rows * wide; i++) {
        float *sum = o.sum + i / wide * o.stride + i % wide * CK_PANEL;
        v16_store_f32(sum, v16_short(v16_load_f32(sum, 16)), 16);
    }
}

static void
block(const struct ck_gemm *a, ck_gemm_block at, float *scratch)
{
    const size_t each = a->rows * CK_GEMM_STEP, kept = a->thin ? (a->K + CK_GEMM_K - 1) / CK_GEMM_K : 1;
    work w = {.at = at, .rows = scratch, .panels = scratch + kept * each,
              .stride = (at.columns + CK_PANEL - 1) / CK_PANEL * CK_PANEL};
    w.sums = w.panels + CK_GEMM_K * CK_PANEL * CK_GEMM_PANELS;

    for (size_t i = 0; a->K == 0 && i < at.rows * w.stride; i++)
        w.sums[i] = 0;
    for (size_t k = 0; k < a->K; k += CK_GEMM_K) {
        float *const rows = w.rows + (a->thin ? k / CK_GEMM_K * each : 0);
        take_a(rows, a, &at, k, a->K - k < CK_GEMM_K ? a->K - k : CK_GEMM_K);
        for (size_t n = 0; !a->thin && n < at.columns; n += CK_PANEL * CK_TILE_PANELS)
            strip(a, &w, rows, n, k);
    }
    const size_t runs = reads_runs(a, &at) ? a->K / RUN : 0; /* done for all columns first */
    float *const x = w.sums + a->rows * a->columns;
    for (size_t r = 0; r < runs; r++)
        turn_run(x + r * RUN, w.rows + r * RUN / CK_GEMM_K * each, each);
    for (size_t n = 0; runs != 0 && n < at.columns; n += CK_PANEL)
        v16_store_f32(w.sums + n, read_runs(a, at.n + n, x), 16);
    for (size_t n = 0; a->thin && n < at.columns; n += CK_PANEL * CK_TILE_PANELS)
        for (size_t k = runs * RUN; k < a->K; k += CK_GEMM_K)
            strip(a, &w, w.rows + k / CK_GEMM_K * each, n, k);
    finish(a, &at, w.sums, w.stride);
}

CK_KERNEL(gemm)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const ck_gemm_block at = ck_gemm_block_at(a, i);
        if (task.work != NULL)
            finish(a, &at, task.work, a->columns);
        else
            block(a, at, task.scratch);
    }
}
