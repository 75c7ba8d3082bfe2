#include "kernels/kernel.h"
#include "ops/embedding.h"
#include "simd/copy.h"

enum { AHEAD = 3, ASKED = 4 * CK_LINE }; /* rows, and bytes of each */

static inline const char *
row_of(const struct ck_embedding_fwd *a, size_t r)
{
    return (const char *)a->weight.data + ck_id(&a->ids, r) * a->weight.stride[0];
}

CK_TEMPLATE void
pick(const struct ck_embedding_fwd *a, ck_task task, bool stream)
{
    const size_t width = a->C * sizeof(elem), asked = width < ASKED ? width : ASKED;

    for (size_t r = task.begin; r < task.end; r++) {
        if (r + AHEAD < task.end)
            for (size_t i = 0; i < asked; i += CK_LINE)
                ck_prefetch(row_of(a, r + AHEAD) + i);
        ck_copy(ck_row(&a->y, r), row_of(a, r), width, stream);
    }
    if (stream)
        ck_stream_end();
}

/* The beginning of a row, wherever it is in the table, is asked for while those before it are copied. */
CK_KERNEL(embedding_fwd)
{
    if (ck_streams(2 * a->R * a->C * sizeof(elem)))
        pick(a, task, true);
    else
        pick(a, task, false);
}

enum { WIDE = 64 }; /* columns summed at a time */

/* Columns c to c+n-1 of the rows of one id, and of dweight before where `accumulate`: plain loops, as bound by memory
 * as sum_rows.  Whatever the dtype, sums are double, and rounded at the end. */
static void
sum_columns(const struct ck_embedding_bwd *a, const size_t *row, size_t rows, elem *dweight, size_t c, size_t n)
{
    float x[WIDE];
    double sum[WIDE];

    for (size_t k = CK_FAULT(embedding_run) && rows > 1; k < rows; k++) {
        const elem *dy = (const elem *)ck_row(&a->dy, row[k]) + c;
        for (size_t i = 0; i < n; i += 16)
            v16_store_f32(x + i, v16_load(dy + i, n - i), 16);
        for (size_t i = 0; i < n; i++)
            sum[i] = k == (CK_FAULT(embedding_run) && rows > 1) ? x[i] : sum[i] + x[i];
    }
    if (a->accumulate) {
        for (size_t i = 0; i < n; i += 16)
            v16_store_f32(x + i, v16_load(dweight + c + i, n - i), 16);
        for (size_t i = 0; i < n; i++)
            sum[i] += x[i];
    }
    for (size_t i = 0; i < n; i++)
        x[i] = (float)sum[i];
    for (size_t i = 0; i < n; i += 16)
        v16_store(dweight + c + i, v16_load_f32(x + i, n - i), n - i);
}

CK_TEMPLATE void
gather(const struct ck_embedding_bwd *a, ck_task task, bool stream)
{
    const ck_embedding_order *order = task.work;
    const size_t C = a->C, width = C * sizeof(elem);

    for (size_t v = task.begin; v < task.end; v++) {
        const size_t begin = v == 0 ? 0 : order->end[v - 1], rows = order->end[v] - begin;
        elem *dweight = ck_row(&a->dweight, v); /* [v,:] */
        if (rows == 0 && a->accumulate)
            continue;
        if (rows == 0 || (CK_FAULT(embedding_row_0) && v == 0))
            ck_clear((char *)dweight, width, stream);
        else if (rows == 1 && !a->accumulate)
            ck_copy((char *)dweight, ck_row(&a->dy, order->row[begin]), width, stream);
        else
            for (size_t c = 0; c < C; c += WIDE)
                sum_columns(a, order->row + begin, rows, dweight, c, C - c < WIDE ? C - c : WIDE);
    }
    if (stream)
        ck_stream_end();
}

/* A task is rows task.begin to task.end-1 of dweight: each is written once, by one task. */
CK_KERNEL(embedding_bwd)
{
    if (ck_streams((a->V + a->R) * a->C * sizeof(elem)))
        gather(a, task, true);
    else
        gather(a, task, false);
}
