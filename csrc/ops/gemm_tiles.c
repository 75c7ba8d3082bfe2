#include "ops/gemm_tiles.h"

#include "ops/ops.h"
#include "runtime/run.h"

#include <stdatomic.h>

enum {
    MOST_ROWS = 512, MOST_COLUMNS = 256, /* of a block of one part: its sums and 256 of k of A fit a large L2 */
    MOST_ROWS_OF_PARTS = 256,
    LEAST_COLUMNS = 32, LEAST_TASKS = 8, LEAST_WORK = 1 << 21, /* multiply-adds: a few microseconds */
    THIN = 32, MOST_THIN = 1 << 18, /* rows of a thin block; bytes of A that it may keep */
};

static const ck_part_products
    exact = {1, 1, 1, {{CK_HI, CK_HI}}},
    float_a = {3, 2, 2, {{CK_MID, CK_FINITE}, {CK_HI, CK_HI}}},
    float_b = {2, 3, 2, {{CK_FINITE, CK_MID}, {CK_HI, CK_HI}}},
    three = {3, 3, 3, {{CK_MID, CK_FINITE}, {CK_FINITE, CK_MID}, {CK_HI, CK_HI}}},
    six = {4, 4, 6, {{CK_LOW, CK_FINITE}, {CK_MID, CK_FINITE}, {CK_MID, CK_MID}, {CK_FINITE, CK_MID},
                     {CK_FINITE, CK_LOW}, {CK_HI, CK_HI}}};

static _Atomic ck_precision precision_in_use;

void
ck_set_matmul_precision(ck_precision precision)
{
    atomic_store(&precision_in_use, precision);
}

ck_precision
ck_matmul_precision(void)
{
    return atomic_load_explicit(&precision_in_use, memory_order_relaxed);
}

const ck_part_products *
ck_gemm_parts(const ck_kernels *k, const struct ck_gemm *a)
{
    if (k->tiles[CK_TILES_gemm_tiles] == NULL || a->K == 0)
        return NULL;
    if (k->dtype == CK_F32) {
        const ck_precision precision = ck_matmul_precision();
        return precision == CK_PRECISION_HIGHEST ? NULL : precision == CK_PRECISION_HIGH ? &six : &three;
    }
    /* packed numbers are of the weight's dtype */
    const bool wide_a = a->a.width == sizeof(float), wide_b = a->packed == NULL && a->b.width == sizeof(float);
    return wide_a && wide_b ? &six : wide_a ? &float_a : wide_b ? &float_b : &exact;
}

/* Blocks of equal size; narrower ones where tasks would be few, always whole pairs of tiles. */
static void
cut(struct ck_gemm *a, const ck_part_products *parts)
{
    const size_t most = parts->n == 1 ? MOST_ROWS : MOST_ROWS_OF_PARTS;
    a->rows = ck_blocks(a->M, ck_blocks(a->M, most));
    a->columns = MOST_COLUMNS;
    while (a->columns > LEAST_COLUMNS
           && a->B * ck_blocks(a->M, a->rows) * ck_blocks(a->N, a->columns) < LEAST_TASKS
           && a->rows * a->columns / 2 * a->K * parts->n >= LEAST_WORK)
        a->columns /= 2;
    a->thin = a->rows <= THIN && ck_blocks(a->rows, 16) * 16 * a->K * 2 * parts->parts_a <= MOST_THIN
              && (a->packed != NULL || a->transpose_b);
}

typedef struct {
    struct ck_gemm_tiles product;
    ck_kernel *sums, *finish;
} tiles_job;

/* The sums of a block into scratch, then what follows them. */
static void
tiles_task(const void *args, ck_task task)
{
    const tiles_job *job = args;
    for (size_t i = task.begin; i < task.end; i++) {
        job->sums(&job->product, (ck_task){.begin = i, .end = i + 1, .scratch = task.scratch});
        job->finish(&job->product.gemm, (ck_task){.begin = i, .end = i + 1, .work = task.scratch});
    }
}

ck_status
ck_gemm_tiles(const ck_kernels *k, const struct ck_gemm *a, const ck_part_products *parts)
{
    tiles_job job = {{*a, parts}, k->tiles[CK_TILES_gemm_tiles], CK_FAST(gemm)};
    struct ck_gemm *cuts = &job.product.gemm;

    cut(cuts, parts);
    const ck_tiles_scratch s = ck_tiles_scratch_of(cuts, parts);
    return ck_run(&(ck_job){.kernel = tiles_task, .args = &job, .grain = 1,
                            .n = a->B * ck_blocks(a->M, cuts->rows) * ck_blocks(a->N, cuts->columns),
                            .scratch_each = s.rows * cuts->columns * sizeof(float) + s.a + s.b});
}
