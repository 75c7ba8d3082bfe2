#include "ops/norm_rows.h"

#include "ops/ops.h"
#include "runtime/run.h"

#include <string.h>

/*
 * Whether rows are cut.  A second pass over a row that is cut finds it in the last-level cache or in memory, where whole
 * rows of a few 100 KiB find it nearer; so these are cut only where nearly all threads would have nothing to do.
 */
static bool
cuts(const ck_kernels *k, const ck_norm *norm)
{
    enum { SHORTEST = 1 << 15, LEAST = 1 << 18, LONG = 1 << 18 };
    const size_t R = norm->R, C = norm->C;
    return C >= SHORTEST && R * C >= LEAST && ck_blocks(R, norm->grain) < (C >= LONG ? 16 : 4) &&
           strcmp(k->isa, "reference") != 0;
}

static ck_status
run_cut(ck_norm_rows *rows)
{
    const ck_norm *norm = &rows->norm;
    const size_t size = norm->R * rows->pieces * sizeof *rows->sums, blocks = norm->block != 0 ? ck_blocks(norm->R, norm->block) : 0;
    const size_t piece = norm->block != 0 ? 2 * CK_NORM_PIECE : 0, slice = (2 + 2 * blocks) * CK_NORM_SLICE;
    ck_job job = {.kernel = norm->kernel, .args = norm->args, .n = rows->pieces, .grain = 1, .work = rows,
                  .scratch_each = piece * sizeof(float)};

    if ((rows->sums = ck_take(size)) == NULL)
        return CK_NO_MEMORY;
    ck_status status = ck_run(&job);
    rows->write = true;
    job.n = rows->slices, job.scratch_each = slice * sizeof(float);
    if (status == CK_OK)
        status = ck_run(&job);
    ck_give(rows->sums, size);
    return status;
}

static ck_status
run_whole(const ck_kernels *k, ck_norm_rows *rows)
{
    const ck_norm *norm = &rows->norm;
    const size_t blocks = norm->block != 0 ? ck_blocks(norm->R, norm->block) : 0;
    const size_t wanted = (norm->sum[0].data != NULL) + (norm->sum[1].data != NULL), size = wanted * blocks * norm->C * sizeof(float);
    if (wanted != 0 && (rows->parts = ck_take(size)) == NULL)
        return CK_NO_MEMORY;
    const float *parts = rows->parts;
    ck_status status = ck_run(&(ck_job){.kernel = norm->kernel, .args = norm->args, .n = norm->R, .grain = norm->grain, .work = rows});
    for (size_t i = 0; i < 2 && status == CK_OK; i++)
        if (norm->sum[i].data != NULL) {
            status = ck_sum_rows(k, &(struct ck_sum_rows){
                .sum = norm->sum[i], .x = ck_rows(parts, blocks, norm->C, sizeof(float)),
                .accumulate = norm->accumulate[i], .R = blocks, .C = norm->C});
            parts += blocks * norm->C;
        }
    ck_give(rows->parts, size);
    return status;
}

ck_status
ck_run_norm(const ck_kernels *k, const ck_norm *norm)
{
    ck_norm_rows rows = {.norm = *norm, .pieces = ck_blocks(norm->C, CK_NORM_PIECE), .slices = ck_blocks(norm->C, CK_NORM_SLICE)};
    float *wide[2] = {NULL, NULL};
    ck_status status = CK_OK;

    if (norm->R != 0 && cuts(k, norm))
        return run_cut(&rows);
    for (size_t i = 0; i < 2 && status == CK_OK; i++)
        status = ck_widen_weight(k, &rows.norm.weight[i], norm->C, &wide[i]);
    if (status == CK_OK)
        status = run_whole(k, &rows);
    ck_give(wide[1], norm->C * sizeof(float));
    ck_give(wide[0], norm->C * sizeof(float));
    return status;
}
