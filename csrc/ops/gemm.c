#include "ops/ops.h"
#include "runtime/blas.h"
#include "runtime/cache.h"
#include "runtime/run.h"

#include <string.h>

enum { MOST_THIN = 1 << 16 }; /* elements of A that a thin block may keep: a quarter of a small L2 */
enum { LEAST_TASKS = 8, LEAST_WORK = 1 << 19 }; /* multiply-adds: some 10 us */

/* Most rows of a block: what it keeps of A and of the sums takes half of L2 at most. */
static size_t
most_rows(void)
{
    const size_t each = (CK_GEMM_STEP + CK_GEMM_COLUMNS) * sizeof(float), fit = ck_cache_l2() / 2 / each / CK_GEMM_ROWS;
    return CK_GEMM_ROWS * (fit < 1 ? 1 : fit > 8 ? 8 : fit);
}

/* Blocks of equal size rather than a small one at the end; narrower ones where tasks would be few. */
static void
cut(struct ck_gemm *a)
{
    const size_t down = ck_blocks(a->M, most_rows());
    a->rows = ck_blocks(a->M, down);
    a->columns = CK_GEMM_COLUMNS;
    while (a->columns > 2 * CK_PANEL && a->B * down * ck_blocks(a->N, a->columns) < LEAST_TASKS
           && a->rows * a->columns / 2 * a->K >= LEAST_WORK)
        a->columns /= 2;
    a->thin = a->rows <= CK_GEMM_THIN && a->rows * a->K <= MOST_THIN && (a->packed != NULL || a->transpose_b);
}

CK_RUN(gemm)
{
    struct ck_gemm cuts = *a;
    if (a->B == 0 || a->M == 0 || a->N == 0)
        return CK_OK;
    ck_sgemm *const sgemm = ck_blas_chosen(); /* once: another thread may choose anew meanwhile */
    if (a->K != 0 && sgemm != NULL && k->dtype == CK_F32 && strcmp(k->isa, "reference") != 0)
        return ck_gemm_blas(k, a, sgemm);
    const ck_part_products *const parts = ck_gemm_parts(k, a);
    if (parts != NULL)
        return ck_gemm_tiles(k, a, parts);
    cut(&cuts);

    const size_t tasks = a->B * ck_blocks(a->M, cuts.rows) * ck_blocks(a->N, cuts.columns);
    const size_t kept = cuts.thin ? ck_blocks(a->K, CK_GEMM_K) : 1;
    const size_t scratch = kept * cuts.rows * CK_GEMM_STEP + CK_GEMM_K * CK_PANEL * CK_GEMM_PANELS + cuts.rows * cuts.columns
                           + (cuts.thin && cuts.rows == 1 ? ck_row_scratch(a->K) : 0);
    return ck_run(&(ck_job){.kernel = CK_FAST(gemm), .args = &cuts, .n = tasks, .grain = 1,
                            .scratch_each = scratch * sizeof(float)});
}
