/* The products of gemm.h by OpenBLAS: blocks of c by shape alone, its sums into scratch, what follows them by ours. */
#include "ops/ops.h"
#include "runtime/blas.h"
#include "runtime/run.h"

#include <limits.h>
#include <string.h>

enum { MOST_ROWS = 512, MOST_COLUMNS = 1024, LEAST_COLUMNS = 128, LEAST_TASKS = 4 };

typedef struct {
    const ck_kernels *k;
    struct ck_gemm gemm;
    ck_sgemm *sgemm;
} blas_job;

/* An operand as BLAS takes it: rows at one positive distance, none overlapping. */
typedef struct {
    const float *data;
    int step;
    bool transposed;
} matrix;

static bool
lies_straight(const ck_array *x, size_t row, size_t rows, size_t columns)
{
    if (rows <= 1 || x->n == 0)
        return true;
    const size_t inner = x->size[x->n - 1];
    const ptrdiff_t stride = x->stride[x->n - 1];
    return row % inner + rows <= inner && stride % (ptrdiff_t)sizeof(float) == 0
           && stride >= (ptrdiff_t)(columns * sizeof(float)) && stride / (ptrdiff_t)sizeof(float) <= INT_MAX;
}

/* Rows `row`.. of x, `columns` of each from `column` on; gathered in `scratch` where they do not lie straight. */
static matrix
take(const ck_array *x, size_t row, size_t rows, size_t column, size_t columns, float *scratch)
{
    const float *first = (const float *)ck_row(x, row) + column;
    if (lies_straight(x, row, rows, columns)) {
        const bool one = rows <= 1 || x->n == 0;
        return (matrix){first, one ? (int)columns : (int)(x->stride[x->n - 1] / (ptrdiff_t)sizeof(float)), false};
    }
    for (size_t i = 0; i < rows; i++)
        memcpy(scratch + i * columns, (const float *)ck_row(x, row + i) + column, columns * sizeof(float));
    return (matrix){scratch, (int)columns, false};
}

static matrix
take_a(const struct ck_gemm *a, const ck_gemm_block *at, float *scratch)
{
    const size_t item = a->share_a ? 0 : at->batch;
    matrix m = a->transpose_a ? take(&a->a, item * a->K, a->K, at->m, at->rows, scratch)
                              : take(&a->a, item * a->M + at->m, at->rows, 0, a->K, scratch);
    m.transposed = a->transpose_a;
    return m;
}

static matrix
take_b(const struct ck_gemm *a, const ck_gemm_block *at, float *scratch)
{
    const size_t item = a->share_b ? 0 : at->batch;
    if (a->b.data == NULL) { /* only panels: unpacked */
        const float *packed = a->packed;
        for (size_t k = 0; k < a->K; k++)
            for (size_t n = 0; n < at->columns; n++)
                scratch[k * at->columns + n] = packed[((at->n + n) / CK_PANEL * a->K + k) * CK_PANEL + (at->n + n) % CK_PANEL];
        return (matrix){scratch, (int)at->columns, false};
    }
    matrix m = a->transpose_b ? take(&a->b, item * a->N + at->n, at->columns, 0, a->K, scratch)
                              : take(&a->b, item * a->K, a->K, at->n, at->columns, scratch);
    m.transposed = a->transpose_b;
    return m;
}

static void
blas_task(const void *args, ck_task task)
{
    const blas_job *job = args;
    const struct ck_gemm *a = &job->gemm;
    for (size_t i = task.begin; i < task.end; i++) {
        const ck_gemm_block at = ck_gemm_block_at(a, i);
        float *const sums = task.scratch, *const rows = sums + a->rows * a->columns;
        const matrix left = take_a(a, &at, rows), right = take_b(a, &at, rows + a->rows * a->K);
        job->sgemm(CK_BLAS_ROWS, left.transposed ? CK_BLAS_TRANSPOSED : CK_BLAS_AS_IS,
                   right.transposed ? CK_BLAS_TRANSPOSED : CK_BLAS_AS_IS, (int)at.rows, (int)at.columns, (int)a->K, 1.0f,
                   left.data, left.step, right.data, right.step, 0.0f, sums, (int)a->columns);
        job->k->kernel[CK_NR_gemm](a, (ck_task){.begin = i, .end = i + 1, .work = sums});
    }
}

ck_status
ck_gemm_blas(const ck_kernels *k, const struct ck_gemm *a, ck_sgemm *sgemm)
{
    blas_job job = {k, *a, sgemm};
    struct ck_gemm *cuts = &job.gemm;

    if (a->K > INT_MAX)
        return ck_refuse(CK_TOO_LARGE, "sums of %zu terms are more than OpenBLAS takes", a->K);
    cuts->rows = a->M < MOST_ROWS ? a->M : MOST_ROWS;
    cuts->columns = MOST_COLUMNS;
    while (cuts->columns > LEAST_COLUMNS
           && a->B * ck_blocks(a->M, cuts->rows) * ck_blocks(a->N, cuts->columns) < LEAST_TASKS)
        cuts->columns /= 2;
    const size_t tasks = a->B * ck_blocks(a->M, cuts->rows) * ck_blocks(a->N, cuts->columns);
    return ck_run(&(ck_job){.kernel = blas_task, .args = &job, .n = tasks, .grain = 1, .scratch_each = sizeof(float)
                            * (cuts->rows * cuts->columns + (cuts->rows + cuts->columns) * a->K)});
}
