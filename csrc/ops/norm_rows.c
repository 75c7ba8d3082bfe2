#include "ops/norm_rows.h"

#include "runtime/run.h"

/*
 * Whether rows are cut.  A second pass over a row that is cut finds it in the last-level cache or in memory, where whole
 * rows of a few 100 KiB find it nearer; so these are cut only where nearly all threads would have nothing to do.
 */
static bool
cuts(size_t R, size_t C, size_t grain)
{
    enum { LEAST = 1 << 18, LONG = 1 << 18 };
    return C >= 4 * CK_NORM_SLICE && R * C >= LEAST && ck_blocks(R, grain) < (C >= LONG ? 16 : 4);
}

ck_status
ck_run_norm(ck_kernel *kernel, const void *args, size_t R, size_t C, size_t grain, float *parts)
{
    ck_norm_rows rows = {.R = R, .parts = parts, .pieces = ck_blocks(C, CK_NORM_PIECE)};
    ck_job job = {.kernel = kernel, .args = args, .n = R, .grain = grain, .work = &rows};
    if (R == 0 || !cuts(R, C, grain))
        return ck_run(&job);

    const size_t size = R * rows.pieces * sizeof *rows.sums;
    if ((rows.sums = ck_take(size)) == NULL)
        return CK_NO_MEMORY;
    job.n = R * rows.pieces, job.grain = 1;
    ck_status status = ck_run(&job);
    rows.write = true;
    job.n = ck_blocks(C, CK_NORM_SLICE);
    if (status == CK_OK)
        status = ck_run(&job);
    ck_give(rows.sums, size);
    return status;
}
