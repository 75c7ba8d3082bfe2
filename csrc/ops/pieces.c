#include "ops/pieces.h"

#include "runtime/run.h"

#include <math.h>
#include <string.h>

enum { GROUP = 2 << 20 }; /* elements of the rows that are measured before they are written */

static ck_measure
merged(const ck_measure *part, size_t pieces)
{
    ck_measure whole = {0, 0, -INFINITY};
    for (size_t i = 0; i < pieces; i++)
        if (part[i].peak > whole.peak)
            whole.peak = part[i].peak;
    for (size_t i = 0; i < pieces; i++) {
        whole.sum += part[i].peak == whole.peak ? part[i].sum : part[i].sum * exp((double)part[i].peak - whole.peak);
        whole.other += part[i].other;
    }
    return whole;
}

ck_status
ck_run_pieces(ck_kernel *kernel, const void *args, size_t R, size_t C, size_t scratch_of_element, double *total)
{
    const size_t pieces = ck_blocks(C, CK_PIECE), most = GROUP / C + 1, rows = R < most ? R : most;
    const size_t bytes = rows * (pieces + 1) * sizeof(ck_measure);
    ck_measure *part = ck_take(bytes);
    if (part == NULL)
        return CK_NO_MEMORY;
    memset(part, 0, bytes);

    ck_status status = CK_OK;
    for (size_t row = 0; row < R && status == CK_OK; row += rows) {
        const size_t n = R - row < rows ? R - row : rows;
        ck_pieces cut = {.row = row, .pieces = pieces, .part = part, .whole = part + rows * pieces};
        const ck_job job = {.kernel = kernel, .args = args, .n = n * pieces, .grain = 1, .work = &cut,
                            .scratch_each = scratch_of_element * CK_PIECE};
        status = ck_run(&job);
        for (size_t r = 0; r < n; r++)
            cut.whole[r] = merged(part + r * pieces, pieces);
        cut.write = true;
        if (status == CK_OK)
            status = ck_run(&job);
        for (size_t r = 0; r < n && total != NULL; r++)
            *total += cut.whole[r].other;
    }
    ck_give(part, bytes);
    return status;
}

ck_status
ck_run_rows(ck_kernel *kernel, const void *args, size_t R, size_t C, size_t scratch_of_element)
{
    if (C > CK_PIECE)
        return ck_run_pieces(kernel, args, R, C, scratch_of_element, NULL);
    return ck_run(&(ck_job){.kernel = kernel, .args = args, .n = R, .grain = ck_rows_grain(R, C),
                            .scratch_each = scratch_of_element * C});
}
