#ifndef CK_GEMM_ROW_H
#define CK_GEMM_ROW_H
/*
 * One row times a plain weight that comes from memory.
 *
 * A chain of CK_CHAIN terms runs along a row of the weight.  Elsewhere the lanes of a vector are sixteen rows of it, read in
 * sixteen streams; here they are sixteen neighbouring chains of one row, 1024 numbers that lie together, so that memory is
 * read from one end to the other.  A block of 16 x 16 is turned in registers either way.  Then the chains' sums are added
 * in their order: the bits are the same.
 */
#include "ops/gemm.h"
#include "simd/panel.h"

enum {
    RUN = 16 * CK_CHAIN,      /* numbers of a row that go together */
    FAR = 4096,               /* how far ahead of them memory is asked for, RUN at a time, so that it does not wait */
    LARGE_WEIGHT = 16 << 20,  /* bytes: more than a core has of the last cache */
};

/* Whether a block is done here, but for what K leaves beyond whole runs. */
static inline bool
reads_runs(const struct ck_gemm *a, const ck_gemm_block *at)
{
    return at->rows == 1 && a->thin && a->packed == NULL && a->B == 1 && a->K >= RUN
           && a->N * a->K * sizeof(elem) > LARGE_WEIGHT && ck_is_flat(&a->b, a->K);
}

/* to[16j + l] = term j of chain l of a run of x; x is in scratch as thin blocks have it. */
static void
turn_run(float *to, const float *x, size_t each)
{
    const float *at[16];
    for (size_t j = 0; j < CK_CHAIN; j += 16) {
        for (size_t l = 0; l < 16; l++)
            at[l] = x + l * CK_CHAIN / CK_GEMM_K * each + l * CK_CHAIN % CK_GEMM_K + j;
        v16_transpose(to + 16 * j, 16, at, 16);
    }
}

/* The sixteen chains of one run of the weight. */
static inline v16
chains(const float *x, const elem *run)
{
    float wide[16 * 16];
    const float *at[16];
    v16 s = v16_zero();

    for (size_t i = 0; i < RUN * sizeof(elem); i += 64) /* into L2; any address will do */
        __builtin_prefetch((const char *)(run + FAR) + i, 0, 2);
    for (size_t j = 0; j < CK_CHAIN; j += 16) {
        CK_UNROLL for (size_t l = 0; l < 16; l++)
            at[l] = ck_floats(wide + 16 * l, run + l * CK_CHAIN + j, 16);
        s = v16_fma_each(s, x + 16 * j, at);
    }
    return s;
}

/* The sums of columns n.. over all whole runs of K; `x` is turned, and room for 256 floats a run follows it. */
static v16
read_runs(const struct ck_gemm *a, size_t n, float *x)
{
    const size_t have = a->N - n < CK_PANEL ? a->N - n : CK_PANEL, runs = a->K / RUN;
    float *const sums = x + runs * RUN; /* [run][column][chain] */
    v16 total = v16_zero();

    for (size_t i = 0; i < CK_PANEL; i++) { /* columns past the end repeat the last: nobody stores them */
        const elem *column = ck_row(&a->b, n + (i < have ? i : have - 1));
        for (size_t r = 0; r < runs; r++)
            v16_store_f32(sums + 256 * r + 16 * i, chains(x + r * RUN, column + r * RUN), 16);
    }
    for (size_t r = 0; r < runs; r++) {
        const float *at[16];
        float turned[16 * 16];
        for (size_t i = 0; i < 16; i++)
            at[i] = sums + 256 * r + 16 * i;
        v16_transpose(turned, 16, at, 16);
        for (size_t l = 0; l < 16; l++)
            total = r + l == 0 ? v16_load_f32(turned, 16) : v16_add(total, v16_load_f32(turned + 16 * l, 16));
    }
    return total;
}
#endif
